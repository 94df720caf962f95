package identity

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/oidc"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Authenticate verifies a compact JWS and says whom it vouches for: its size
// and form, issuer, audience, times, and then its signature with the issuer's
// keys. Only a token of a configured issuer that passes all checks before the
// signature can cause a request, and only to that issuer.
//
// The error is a *fault.Error: TokenTooLarge; of kind Unauthenticated when a
// check of the token failed; of kind Denied when a claim that the issuer's rule
// needs is missing or unfit; IssuerUnavailable when the issuer's keys can't be
// had; PolicyDenied when a deny rule or the issuer's policy refuses; where tokens
// are accepted once, TokenReplayed, or what the Replay says. When ctx ends while
// keys are fetched, it wraps ctx's error. Its text holds no part of the token but
// the issuer and audience. Once the signature is good, every error is wrapped in a
// *RefusedError, which says whose token it is.
func (v *Verifier) Authenticate(ctx context.Context, token string) (Principal, error) {
	a := attempt{snapshot: v.current.Load()}
	if err := a.authenticate(ctx, token, true); err != nil {
		return Principal{}, err
	}
	return a.principal, nil
}

// Caller verifies a token as Authenticate does, deny rules included, but asks no
// issuer's allow: whether its bearer may do what isn't issuing is for package
// identity/access, whose rules read what is returned. Nothing can be issued to it. The
// error is Authenticate's, and only then there is no Input.
func (v *Verifier) Caller(ctx context.Context, token string) (*policy.Input, error) {
	a := attempt{snapshot: v.current.Load()}
	if err := a.authenticate(ctx, token, false); err != nil {
		return nil, err
	}
	return &a.input, nil
}

// attempt is one token on its way through the checks, and what was found out on it.
type attempt struct {
	*snapshot
	token         oidc.Token
	issuer        *issuer      // the entry that it is for, as far as that is known
	entries       []*issuer    // those for its issuer, from that one on
	url, audience string       // the issuer as certificates have it, and the audience that the token named
	principal     Principal    // as far as it was made: beside an error for the record, and never to be issued to
	input         policy.Input // what rules read of it

	explains bool // findings are taken down, nothing is counted, and no token used up
	findings []Finding
	rule     string
}

// authenticate is Authenticate, or without certificate Caller.
func (a *attempt) authenticate(ctx context.Context, token string, certificate bool) error {
	if err := a.genuine(ctx, token); err != nil {
		return err
	}
	err := a.judge(certificate)
	if err == nil && a.issuer.config.OneTime && !a.explains {
		err = a.v.once(ctx, a.issuer, a.url, &a.token)
	}
	if err != nil {
		p := &a.principal
		return &RefusedError{Issuer: p.issuer, IssuerType: string(p.issuerType), Subject: p.subject, SAN: p.san, Err: err}
	}
	return nil
}

// genuine checks all of a token that its issuer vouches for.
func (a *attempt) genuine(ctx context.Context, token string) (err error) {
	a.token, err = oidc.ParseUnverified(token)
	if a.check(stepForm, err) != nil {
		return err
	}
	if err := a.route(); err != nil {
		return err
	}
	claims, c, now := a.token.Claims, &a.issuer.config, a.v.options.Now()
	if err := a.check(stepTimes, checkTimes(claims, now, c.Leeway, c.MaxTokenLifetime)); err != nil {
		return err
	}
	if err := a.check(stepAge, checkAge(claims, now, c.Leeway, c.MaxTokenAge)); err != nil {
		return err
	}
	if err = a.token.CheckAlgorithm(c.Algorithms); err == nil {
		err = a.issuer.keys.Verify(ctx, &a.token, a.url)
	}
	return a.check(stepSignature, err)
}

// RefusedError is that nothing is issued for a genuine token: its signature was
// good, so the error says whose it is, for the audit trail. Its text doesn't,
// and what it wraps is what [Verifier.Authenticate] says of the failure.
type RefusedError struct {
	Issuer     string // as the certificate would have recorded it
	IssuerType string // as Principal.IssuerType
	Subject    string // "" where the token has none that is fit to be recorded
	SAN        SAN    // zero where the issuer's rule made no name
	Err        error
}

func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap gives the failure.
func (e *RefusedError) Unwrap() error { return e.Err }

// route finds the entry that a token is for, by its issuer and its audience, and checks
// its authorized party.
func (a *attempt) route() error {
	c := a.token.Claims
	iss := c.Get("iss")
	if iss.Kind() != claim.String {
		return a.check(stepIssuer, claim.Malformed("its iss must be a string"))
	}
	a.url = iss.Literal()
	if a.entries = a.match(a.url); len(a.entries) == 0 {
		return a.check(stepIssuer, a.unknown(a.url))
	}
	a.issuer = a.entries[0]
	a.url = cmp.Or(a.issuer.config.URL, a.url) // and not the alias
	_ = a.check(stepIssuer, nil)
	found, audience, err := forAudience(a.entries, c)
	if err == nil {
		a.issuer, a.audience, a.entries = found, audience, a.entries[slices.Index(a.entries, found):]
	}
	if err := a.check(stepAudience, err); err != nil {
		return err
	}
	return a.check(stepParty, checkParty(c, a.issuer.config.Audiences, a.issuer.config.AuthorizedParties))
}

// match finds the entries for an issuer: an exact URL or an alias first, then the most
// specific pattern. Bytes are compared; two spellings are one issuer only where an alias
// says so.
func (s *snapshot) match(url string) []*issuer {
	if entries := s.exact[url]; entries != nil {
		return entries
	}
	if len(url) > maxIssuer {
		return nil
	}
	return s.patterns.find(url)
}

func (s *snapshot) unknown(url string) error {
	const few = 5
	e := fault.New(fault.IssuerUnknown, "the identity token's issuer %s is not accepted here", claim.Quote(url)).With("actual", claim.Quote(url))
	if len(s.issuers) > few {
		return e
	}
	names := make([]string, len(s.issuers))
	for i := range s.issuers {
		names[i] = s.issuers[i].name()
	}
	e.Public += "; accepted: " + strings.Join(names, ", ")
	return e.With("expected", strings.Join(names, ", "))
}

// principal makes p of verified claims by the issuer's rule. Beside an error p is
// as far as it was made.
func (i *issuer) principal(p *Principal, c claim.Set, url, audience string) error {
	*p = Principal{issuer: url, issuerType: i.config.Type, audience: audience}
	sub, err := c.Get("sub").Text("sub") // written into every certificate
	if err != nil {
		return err
	}
	p.subject = sub
	if err := i.rule(p, c); err != nil {
		return err
	}
	p.extensions.Issuer, p.extensions.TokenSubject = p.issuer, sub
	if e := c.Get("email"); e.Kind() == claim.String && e.Literal() != "" {
		p.challenges = append(p.challenges, e.Literal())
	}
	p.challenges = append(p.challenges, sub)
	return nil
}
