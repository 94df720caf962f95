package identity

import (
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
	s := v.current.Load()
	return s.authenticate(ctx, token, nil, func(g genuine) (Principal, error) { return s.evaluatePolicy(g, nil) })
}

// Caller verifies a token as Authenticate does, deny rules included, but asks no
// issuer's allow: whether its bearer may do what isn't issuing is for package
// identity/access, whose rules read what is returned. Nothing can be issued to it. The
// error is Authenticate's, and only then there is no Input.
func (v *Verifier) Caller(ctx context.Context, token string) (in *policy.Input, err error) {
	s := v.current.Load()
	_, err = s.authenticate(ctx, token, nil, func(g genuine) (p Principal, err error) {
		p, in, err = s.named(g, nil)
		return p, err
	})
	if err != nil {
		return nil, err
	}
	return in, nil
}

// authenticate is Authenticate, with what judges a genuine token, and tells the trace,
// which may be nil, about every step on the way.
func (s *snapshot) authenticate(ctx context.Context, token string, tr *trace, judge func(genuine) (Principal, error)) (Principal, error) {
	g, err := s.genuine(ctx, token, tr)
	if err != nil {
		return Principal{}, err
	}
	p, err := judge(g)
	if err == nil && g.issuer.config.OneTime && tr == nil { // looking at a token doesn't use it
		err = s.v.once(ctx, g.issuer, g.url, &g.token)
	}
	if err != nil {
		return Principal{}, &RefusedError{Issuer: p.issuer, IssuerType: string(p.issuerType), Subject: p.subject, SAN: p.san, Err: err}
	}
	return p, nil
}

// genuine is a token whose signature is good, and the entry that it is for.
type genuine struct {
	token         oidc.Token
	issuer        *issuer
	url, audience string // the issuer as certificates have it, and the audience that the token named
}

// genuine checks all of a token that its issuer vouches for.
func (s *snapshot) genuine(ctx context.Context, token string, tr *trace) (g genuine, err error) {
	g.token, err = oidc.ParseUnverified(token)
	tr.reads(g.token)
	if tr.check(stepForm, err) != nil {
		return g, err
	}
	claims := g.token.Claims
	if g.issuer, g.url, g.audience, err = s.route(claims, tr); err != nil {
		return g, err
	}
	c, now := &g.issuer.config, s.v.options.Now()
	if err := tr.check(stepTimes, checkTimes(claims, now, c.Leeway, c.MaxTokenLifetime)); err != nil {
		return g, err
	}
	if err := tr.check(stepAge, checkAge(claims, now, c.Leeway, c.MaxTokenAge)); err != nil {
		return g, err
	}
	if err = g.token.CheckAlgorithm(c.Algorithms); err == nil {
		err = g.issuer.keys.Verify(ctx, &g.token, g.url)
	}
	return g, tr.check(stepSignature, err)
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
// its authorized party. url is the issuer as certificates have it.
func (s *snapshot) route(c claim.Set, tr *trace) (i *issuer, url, audience string, err error) {
	iss := c.Get("iss")
	if iss.Kind() != claim.String {
		return nil, "", "", tr.check(stepIssuer, claim.Malformed("its iss must be a string"))
	}
	url = iss.Literal()
	entries := s.match(url)
	if len(entries) == 0 {
		return nil, "", "", tr.check(stepIssuer, s.unknown(url))
	}
	if own := entries[0].config.URL; own != "" {
		url = own // and not the alias
	}
	tr.enters(entries)
	_ = tr.check(stepIssuer, nil)
	i, audience, err = forAudience(entries, c)
	if err == nil {
		tr.enters(entries[slices.Index(entries, i):])
	}
	if err = tr.check(stepAudience, err); err == nil {
		err = tr.check(stepParty, checkParty(c, i.config.Audiences, i.config.AuthorizedParties))
	}
	return i, url, audience, err
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

// principal applies the issuer's rule to verified claims. Beside an error it is
// as far as it was made.
func (i *issuer) principal(c claim.Set, url, audience string) (Principal, error) {
	p := Principal{issuer: url, issuerType: i.config.Type, audience: audience}
	sub, err := c.Get("sub").Text("sub") // written into every certificate
	if err != nil {
		return p, err
	}
	p.subject = sub
	if err := i.rule(&p, c); err != nil {
		return p, err
	}
	p.extensions.Issuer, p.extensions.TokenSubject = p.issuer, sub
	if e := c.Get("email"); e.Kind() == claim.String && e.Literal() != "" {
		p.challenges = append(p.challenges, e.Literal())
	}
	p.challenges = append(p.challenges, sub)
	return p, nil
}
