package identity

import (
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// denial is a deny rule in force, and whether it was said that it has ended.
type denial struct {
	policy.Rule
	ended atomic.Bool
}

// setDeny puts the rules in force.
func (v *Verifier) setDeny(rules []policy.Rule) {
	v.metrics.denials.WithLabelValues(policy.Allow)
	for _, r := range rules {
		d := &denial{Rule: r}
		v.deny = append(v.deny, d)
		v.metrics.denials.WithLabelValues(r.Name)
		v.inForce(d)
	}
}

// inForce reports whether the rule hasn't ended, and logs once that it has.
func (v *Verifier) inForce(d *denial) bool {
	if !d.Expired(v.now()) {
		return true
	}
	if !d.ended.Swap(true) {
		v.log.Info("a deny rule has ended and is ignored; remove it from the configuration",
			slog.String("rule", d.Name), slog.Time("until", d.Until))
	}
	return false
}

// judge makes the principal of verified claims, and asks the policies: the deny
// rules in their order, then the issuer's own.
func (v *Verifier) judge(i *issuer, c claim.Set, url, audience string, tr *trace) (Principal, error) {
	p, err := i.principal(c, url, audience)
	if tr.check(stepSubject, err) != nil {
		return Principal{}, err
	}
	tr.names(p)
	in := &policy.Input{
		Claims: c, Issuer: p.issuer, Subject: p.subject, SAN: p.san.Value, SANType: p.san.Kind.String(),
		Type: string(p.issuerType), Audience: p.audience, Time: v.now(),
	}
	for _, d := range v.deny {
		if !v.inForce(d) {
			tr.ended(d)
			continue
		}
		holds, why := d.Holds(in)
		tr.ruled(stepDeny, d.Name, d.Text(), !holds, why)
		if holds {
			return Principal{}, v.denied(tr, d.Name, why, fault.New(fault.PolicyDenied,
				"the rule %s of this CA's policy refuses the identity that %s vouches for; ask the CA's operators", d.Name, quote(i.name())), i)
		}
	}
	allowed, why := i.policy.Allows(in)
	tr.ruled(stepAllow, policy.Allow, i.policy.Condition(), allowed, why)
	if !allowed {
		e := fault.New(fault.PolicyDenied, "the rule %s of the issuer %s doesn't hold for this identity; ask the CA's operators", policy.Allow, quote(i.name()))
		var undecided *policy.Undecided
		if errors.As(why, &undecided) && undecided.Claim != "" {
			e.Public = "the rule " + policy.Allow + " of the issuer " + quote(i.name()) + " reads the claim " + quote(undecided.Claim) + ", which the token doesn't have; ask the CA's operators"
		}
		return Principal{}, v.denied(tr, policy.Allow, why, e, i)
	}
	p.choice = i.policy.Choose(in)
	tr.chose(p.choice)
	return p, nil
}

// denied counts a refusal by a rule, and names the rule in it.
func (v *Verifier) denied(tr *trace, rule string, why error, e *fault.Error, i *issuer) error {
	if tr == nil {
		v.metrics.denials.WithLabelValues(rule).Inc()
	}
	return e.With("rule", rule).With("issuer", i.name()).Because(why)
}
