// Package policy decides by expressions over a verified token whether its
// bearer gets a certificate, and for how long. It is pure: it reads no file,
// no clock and no network.
//
// An expression is written in the Common Expression Language (CEL). It is
// compiled and checked once, when the configuration is read: its type, the
// names that it uses, and what it can cost with the largest token.
package policy

import (
	"cmp"
	"errors"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Allow is the name that stands for an issuer's allow expression where a rule
// is named: in a refusal, the audit trail and the metric.
const Allow = "allow"

// Deny is a named condition under which nobody gets a certificate, whichever
// issuer vouches: for the hour after a compromise.
type Deny struct {
	// Name is what the refusal, the audit trail and the metric
	// mayfly_identity_denials_total call the rule: lower-case letters, digits
	// and `-`, at most 64.
	Name string `yaml:"name"`
	// When is the condition, an expression as in an issuer's allow. A token
	// without a claim that the condition reads by name (`claims.x`) isn't meant
	// where that leaves the condition undecided; `has(claims.x)` asks for one.
	// Undecided for any other reason, such as a member that an element of a list
	// lacks, the rule refuses.
	// Letters are compared in their case, and many providers take a mail address
	// in any: write `principal.san.lowerAscii() == "mallory@example.com"`, or
	// `.lowerAscii().endsWith("@example.com")`, with the text in lower case.
	When string `yaml:"when"`
	// Until is when the rule ends, as in `2027-01-01T00:00:00Z`. Without it the
	// rule holds until it is removed.
	Until time.Time `yaml:"until,omitempty"`
}

// Profile is a lifetime for the certificates that a condition selects.
type Profile struct {
	// Name is what `mayfly token explain` calls the profile: lower-case
	// letters, digits and `-`, at most 64.
	Name string `yaml:"name"`
	// When is the condition, an expression as in the issuer's allow. A token
	// for which it can't be decided isn't meant.
	When string `yaml:"when"`
	// Lifetime of the certificates, from 1m to the issuer's max_lifetime, in
	// whole seconds.
	Lifetime time.Duration `yaml:"lifetime"`
}

// The bounds of a lifetime that a policy can choose, and the bound of an issuer
// that states none.
const (
	MinLifetime     = time.Minute
	MaxLifetime     = time.Hour
	DefaultLifetime = 10 * time.Minute
)

// Settings is the policy of one issuer, as it is configured.
type Settings struct {
	Allow       string
	Lifetime    time.Duration // zero for the CA's own
	MaxLifetime time.Duration // zero for none stated
	Profiles    []Profile
}

// Policy is the compiled policy of one issuer.
type Policy struct {
	// Allow is the issuer's condition. Where it can't be decided it doesn't hold, and
	// the error says why.
	Allow    *Expression
	profiles []profile
	lifetime time.Duration
	most     time.Duration
}

type profile struct {
	Profile
	when *Expression
}

// New checks and compiles the policy of one issuer. It adds every fault of s
// to f, under path; what it returns is good when there was none.
func New(path string, s Settings, f *setting.Faults) *Policy {
	p := &Policy{lifetime: s.Lifetime, most: s.MaxLifetime}
	if s.Allow == "" {
		f.Add(path+".allow", "required: the condition under which a token of this issuer gets a certificate, such as claims.repository_owner == \"acme\"; \"true\" lets all of them")
	} else {
		p.Allow = compileAt(path+".allow", s.Allow, f)
	}
	bound := cmp.Or(p.most, DefaultLifetime)
	if p.most != 0 {
		checkLifetime(path+".max_lifetime", bound, MaxLifetime, f)
	}
	if s.Lifetime != 0 {
		checkLifetime(path+".lifetime", s.Lifetime, bound, f)
	}
	names := map[string]bool{}
	for i, one := range s.Profiles {
		at := setting.Index(path+".profiles", i)
		checkName(at, one.Name, names, f)
		checkLifetime(at+".lifetime", one.Lifetime, bound, f)
		p.profiles = append(p.profiles, profile{one, compileAt(at+".when", one.When, f)})
	}
	return p
}

// Rules checks and compiles deny rules. It adds every fault to f, under path;
// what it returns is good when there was none.
func Rules(path string, all []Deny, f *setting.Faults) []Rule {
	var rules []Rule
	names := map[string]bool{}
	for i, one := range all {
		at := setting.Index(path, i)
		checkName(at, one.Name, names, f)
		rules = append(rules, Rule{one.Name, one.Until, compileAt(at+".when", one.When, f)})
	}
	return rules
}

func compileAt(path, text string, f *setting.Faults) *Expression {
	x, err := compile(text)
	f.When(err != nil, path, "%s", err)
	return x
}

func checkLifetime(path string, d, most time.Duration, f *setting.Faults) {
	switch {
	case d < MinLifetime || d > most && most == MaxLifetime:
		f.Add(path, "%s is out of bounds: from %s to %s", d, MinLifetime, most)
	case d > most:
		f.Add(path, "%s is out of bounds: from %s to the issuer's max_lifetime, %s", d, MinLifetime, most)
	case d%time.Second != 0:
		f.Add(path, "%s isn't in whole seconds, and certificates know nothing finer", d)
	}
}

// checkName accepts what is fit for a metric label and an audit record.
func checkName(path, name string, seen map[string]bool, f *setting.Faults) {
	setting.CheckName(path, name, seen, f)
	f.When(name == Allow, path+".name", "%s is the name of every issuer's own condition; take another", Allow)
}

// ProfilesRead is the claims that the conditions of the profiles name.
func (p *Policy) ProfilesRead() (all []Read) {
	for i := range p.profiles {
		all = append(all, p.profiles[i].when.Reads...)
	}
	return all
}

// Choice is what a policy chose for a certificate.
type Choice struct {
	Profile  string        // its name, or "" where none holds
	Lifetime time.Duration // zero leaves it to the CA
	Most     time.Duration // the issuer's bound where one is stated, or zero
}

// Choose takes the first profile that holds, and the issuer's own lifetime
// where none does.
func (p *Policy) Choose(in *Input) Choice {
	for i := range p.profiles {
		one := &p.profiles[i]
		if holds, err := one.when.Holds(in); err == nil && holds {
			return Choice{Profile: one.Name, Lifetime: one.Lifetime, Most: p.most}
		}
	}
	return Choice{Lifetime: p.lifetime, Most: p.most}
}

// Rule is a compiled Deny.
type Rule struct {
	Name  string
	Until time.Time
	*Expression
}

// Expired reports whether the rule has ended at now.
func (r *Rule) Expired(now time.Time) bool { return !r.Until.IsZero() && !now.Before(r.Until) }

// Holds reports whether the rule refuses the request. The error is that it
// couldn't be decided, an *Undecided: the rule then isn't meant where a claim
// that it reads by name is absent from the token, and refuses otherwise.
func (r *Rule) Holds(in *Input) (bool, error) {
	holds, err := r.Expression.Holds(in)
	if undecided, ok := errors.AsType[*Undecided](err); ok {
		return undecided.Absent == "", err
	}
	return holds || err != nil, err
}
