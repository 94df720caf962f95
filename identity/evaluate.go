package identity

import (
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// denyRule is a compiled deny rule, and whether it was logged that it has ended.
type denyRule struct {
	policy.Rule
	ended atomic.Bool
}

// setDeny puts the rules in force.
func (s *snapshot) setDeny(compiled []policy.Rule) {
	s.v.metrics.denials.WithLabelValues(policy.Allow)
	s.v.metrics.undecided.WithLabelValues(policy.Allow, resultRefused)
	for _, one := range compiled {
		d := &denyRule{Rule: one}
		s.deny = append(s.deny, d)
		s.v.metrics.denials.WithLabelValues(one.Name)
		s.v.metrics.undecided.WithLabelValues(one.Name, resultRefused)
		s.v.metrics.undecided.WithLabelValues(one.Name, resultIgnored)
		s.inForce(d)
	}
}

// inForce reports whether the rule hasn't ended, and logs once that it has.
func (s *snapshot) inForce(d *denyRule) bool {
	if !d.Expired(s.v.options.Now()) {
		return true
	}
	if !d.ended.Swap(true) {
		s.v.options.Logger.Info("a deny rule has ended and is ignored; remove it from the configuration",
			slog.String("rule", d.Name), slog.Time("until", d.Until))
	}
	return false
}

// named makes the principal of verified claims and what rules read of it, and asks the
// deny rules in their order. Beside an error the principal is as far as it was made: for
// the record, and never to be issued to.
func (s *snapshot) named(g genuine, tr *trace) (Principal, *policy.Input, error) {
	i, c := g.issuer, g.token.Claims
	p, err := i.principal(c, g.url, g.audience)
	if tr.check(stepSubject, err) != nil {
		return p, nil, err
	}
	tr.named(p)
	in := &policy.Input{
		Claims: c, Issuer: p.issuer, Subject: p.subject, SAN: p.san.Value, SANType: p.san.Kind.String(),
		Type: string(p.issuerType), Audience: g.audience, Time: s.v.options.Now(),
	}
	for _, d := range s.deny {
		if !s.inForce(d) {
			tr.ended(d)
			continue
		}
		holds, why := d.Holds(in)
		tr.ruled(stepDeny, d.Name, d.Expression, !holds, why)
		if why != nil && tr == nil {
			s.undecided(d.Name, i, holds, why)
		}
		if holds {
			return p, nil, s.denied(tr, d.Name, why, fault.New(fault.PolicyDenied,
				"the rule %s of this CA's policy refuses the identity that %s vouches for; ask the CA's operators", d.Name, claim.Quote(i.name())), i)
		}
	}
	return p, in, nil
}

// evaluatePolicy makes the principal as named does, and asks the issuer's own rule.
func (s *snapshot) evaluatePolicy(g genuine, tr *trace) (Principal, error) {
	i := g.issuer
	p, in, err := s.named(g, tr)
	if err != nil {
		return p, err
	}
	allowed, why := i.policy.Allow.Holds(in)
	tr.ruled(stepAllow, policy.Allow, i.policy.Allow, allowed, why)
	if !allowed {
		e := fault.New(fault.PolicyDenied, "the rule %s of the issuer %s doesn't hold for this identity; ask the CA's operators", policy.Allow, claim.Quote(i.name()))
		if undecided, ok := errors.AsType[*policy.Undecided](why); ok && undecided.Absent != "" {
			e = fault.New(fault.PolicyDenied, "the rule %s of the issuer %s reads the claim %s, which the token doesn't have; ask the CA's operators",
				policy.Allow, claim.Quote(i.name()), claim.Quote(undecided.Absent))
		}
		if why != nil && tr == nil {
			s.v.metrics.undecided.WithLabelValues(policy.Allow, resultRefused).Inc()
		}
		return p, s.denied(tr, policy.Allow, why, e, i)
	}
	p.choice = i.policy.Choose(in)
	tr.chose(p.choice, i.policy)
	return p, nil
}

// What became of a token that a rule couldn't decide on: labels.
const (
	resultRefused = "refused"
	resultIgnored = "ignored"
)

// undecided counts a deny rule that couldn't be decided, and logs it where it
// refused a token: a rule over claims that the token lacks isn't meant for it,
// and is nothing to look at.
func (s *snapshot) undecided(rule string, i *issuer, refused bool, why error) {
	if !refused {
		s.v.metrics.undecided.WithLabelValues(rule, resultIgnored).Inc()
		return
	}
	s.v.metrics.undecided.WithLabelValues(rule, resultRefused).Inc()
	s.v.options.Logger.Warn("a rule of the policy couldn't be decided, and refused a genuine token; mayfly token explain shows what it met",
		slog.String("rule", rule), slog.String("issuer", i.name()), slog.String("why", why.Error()))
}

// denied counts a refusal by a rule, and names the rule in it.
func (s *snapshot) denied(tr *trace, rule string, why error, e *fault.Error, i *issuer) error {
	if tr == nil {
		s.v.metrics.denials.WithLabelValues(rule).Inc()
	}
	return e.With("rule", rule).With("issuer", i.name()).Because(why)
}
