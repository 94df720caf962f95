// Package access decides who may read what this CA recorded, and who may administer it:
// search, revocation, notices. A right is given by named rules in CEL over a verified
// token, as certificates are; without a rule nobody has it. It is no part of issuing.
package access

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Right is what somebody may do. Who may administer may read.
type Right string

// The rights, which are audit records' words.
const (
	Read       Right = "read"
	Administer Right = "administer"
)

// Config says who has which right beside that to certificates. Without rules nobody
// has any.
type Config struct {
	// Readers may search what this CA issued, and read what was revoked by whom.
	Readers []Rule `yaml:"readers,omitempty"`
	// Admins may revoke certificates of others, and do what readers may.
	Admins []Rule `yaml:"admins,omitempty"`
	// Loopback has whoever asks from this machine without a token administer: for
	// `mayfly dev`, which sets it.
	Loopback bool `yaml:"-"`
}

// Rule gives a right to those whose token it holds for.
type Rule struct {
	// Name is what the audit trail calls the rule: lower-case letters, digits and
	// `-`, at most 64.
	Name string `yaml:"name"`
	// When is the condition, an expression as in an issuer's allow, over a token of
	// one of issuers that no deny rule refuses; allow isn't asked. Where it can't be
	// decided it doesn't hold.
	When string `yaml:"when"`
}

// Check adds every fault of c to f.
func (c Config) Check(path string, f *setting.Faults) { c.compile(path, f) }

type compiled struct {
	rules    map[Right][]policy.Rule
	loopback bool
}

func (c Config) compile(path string, f *setting.Faults) *compiled {
	rules := func(field string, all []Rule) []policy.Rule {
		var named []policy.Deny
		for _, r := range all {
			named = append(named, policy.Deny{Name: r.Name, When: r.When})
		}
		return policy.Rules(setting.Join(path, field), named, f)
	}
	admins := rules("admins", c.Admins)
	return &compiled{map[Right][]policy.Rule{Read: append(rules("readers", c.Readers), admins...), Administer: admins}, c.Loopback}
}

// Access grants rights. It is safe for concurrent use.
type Access struct {
	verifier *identity.Verifier
	current  atomic.Pointer[compiled]
}

// New checks c. The error is a *setting.FaultError.
func New(c Config, v *identity.Verifier) (*Access, error) {
	a := &Access{verifier: v}
	commit, err := a.Prepare(c)
	if err == nil {
		commit()
	}
	return a, err
}

// Prepare checks c, and changes nothing before commit. The error is New's.
func (a *Access) Prepare(c Config) (commit func(), err error) {
	var f setting.Faults
	next := c.compile("access", &f)
	return func() { a.current.Store(next) }, f.Err()
}

// Grant is a right that somebody was found to have, for the record: who, and by which
// rule. Beside an error it is as far as was found out.
type Grant struct {
	Right                                     Right
	Rule                                      string
	Issuer, IssuerType, Subject, SAN, SANType string
}

// Loopback is the rule of whoever asks from this machine, in `mayfly dev`.
const Loopback = "loopback"

// Grant finds out whether the bearer of token, at the address from, has a right. The
// error is the verifier's, or of the reason TokenMissing or AccessDenied.
func (a *Access) Grant(ctx context.Context, want Right, token string, from netip.Addr) (Grant, error) {
	c, g := a.current.Load(), Grant{Right: want}
	if token == "" {
		if c.loopback && (from.IsLoopback() || !from.IsValid()) { // by a Unix socket
			g.Rule = Loopback
			return g, nil
		}
		return g, fault.New(fault.TokenMissing, "no identity token: send one in the header `Authorization: Bearer`")
	}
	in, err := a.verifier.Caller(ctx, token)
	var refused *identity.RefusedError
	if errors.As(err, &refused) {
		g.Issuer, g.IssuerType, g.Subject = refused.Issuer, refused.IssuerType, refused.Subject
		g.SAN, g.SANType = refused.SAN.Value, refused.SAN.Kind.String()
	}
	if err != nil {
		return g, err
	}
	g.Issuer, g.IssuerType, g.Subject, g.SAN, g.SANType = in.Issuer, in.Type, in.Subject, in.SAN, in.SANType
	for _, r := range c.rules[want] {
		if holds, err := r.Holds(in); holds && err == nil {
			g.Rule = r.Name
			return g, nil
		}
	}
	return g, fault.New(fault.AccessDenied, "no rule of this CA lets the token's identity %s; ask the CA's operators for a rule in access.%s", want,
		map[Right]string{Read: "readers", Administer: "admins"}[want])
}
