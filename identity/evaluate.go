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

// judge makes the principal of verified claims and what rules read of it, and asks the
// deny rules in their order and, for a certificate, the issuer's own condition.
func (a *attempt) judge(certificate bool) (err error) {
	i, p := a.issuer, &a.principal
	err = i.principal(p, a.token.Claims, a.url, a.audience)
	if a.check(stepSubject, err) != nil {
		return err
	}
	a.input = policy.Input{
		Claims: a.token.Claims, Issuer: p.issuer, Subject: p.subject, SAN: p.san.Value, SANType: p.san.Kind.String(),
		Type: string(p.issuerType), Audience: a.audience, Time: a.v.options.Now(),
	}
	for _, d := range a.deny {
		if !a.inForce(d) {
			a.ended(d)
			continue
		}
		holds, why := d.Holds(&a.input)
		a.ruled(stepDeny, d.Name, d.Expression, !holds, why)
		if why != nil && !a.explains {
			a.undecided(d.Name, i, holds, why)
		}
		if holds {
			return a.denied(d.Name, why, fault.New(fault.PolicyDenied,
				"the rule %s of this CA's policy refuses the identity that %s vouches for; ask the CA's operators", d.Name, claim.Quote(i.name())))
		}
	}
	if !certificate {
		return nil
	}
	allowed, why := i.policy.Allow.Holds(&a.input)
	a.ruled(stepAllow, policy.Allow, i.policy.Allow, allowed, why)
	if !allowed {
		e := fault.New(fault.PolicyDenied, "the rule %s of the issuer %s doesn't hold for this identity; ask the CA's operators", policy.Allow, claim.Quote(i.name()))
		if undecided, ok := errors.AsType[*policy.Undecided](why); ok && undecided.Absent != "" {
			e = fault.New(fault.PolicyDenied, "the rule %s of the issuer %s reads the claim %s, which the token doesn't have; ask the CA's operators",
				policy.Allow, claim.Quote(i.name()), claim.Quote(undecided.Absent))
		}
		if why != nil && !a.explains {
			a.v.metrics.undecided.WithLabelValues(policy.Allow, resultRefused).Inc()
		}
		return a.denied(policy.Allow, why, e)
	}
	p.choice = i.policy.Choose(&a.input)
	a.chose()
	return nil
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
func (a *attempt) denied(rule string, why error, e *fault.Error) error {
	if !a.explains {
		a.v.metrics.denials.WithLabelValues(rule).Inc()
	}
	return e.With("rule", rule).With("issuer", a.issuer.name()).Because(why)
}
