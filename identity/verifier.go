// Package identity turns an OpenID Connect token into a verified [Principal].
package identity

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Options is what a Verifier needs beside its configuration.
type Options struct {
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger takes what happens in the background; nil discards it.
	Logger *slog.Logger
	// Metrics takes the verifier's metrics; nil registers none.
	Metrics prometheus.Registerer
	// Transport replaces the hardened HTTP transport, ca_file and allow_networks
	// included; nil is right outside tests.
	Transport http.RoundTripper
	// Replay remembers the tokens of issuers with one_time; nil means
	// NewMemoryReplay.
	Replay Replay
	// Deny are the rules that refuse requests of any issuer.
	Deny []policy.Deny
}

// Description is one configured issuer, as GetConfiguration tells it.
type Description struct {
	URL                   string // empty for a pattern
	WildcardURL           string // empty for an exact issuer
	Audience              string // the first of the configured audiences
	Type                  string
	ChallengeClaim        string
	SPIFFETrustDomain     string
	SubjectDomain         string
	SkipEmailVerification bool
}

// IssuerStatus is how one exact issuer stands, for readiness in detail.
type IssuerStatus struct {
	Name    string        // the issuer's URL
	Ready   bool          // its keys are here and not too old
	Err     error         // why the last fetch failed; nil when it did not. For the log, not for clients
	KeysAge time.Duration // since the keys were fetched; zero when they never were
}

// Verifier authenticates tokens of the configured issuers. It is safe for
// concurrent use.
type Verifier struct {
	issuers  []*issuer          // in the configuration's order
	exact    map[string]*issuer // by URL
	patterns []*issuer          // in the configuration's order
	index    patternIndex       // of patterns
	deny     []*denial
	now      func() time.Time
	replay   Replay
	log      *slog.Logger
	metrics  *metrics
}

// issuer is one entry of the configuration, compiled.
type issuer struct {
	config   IssuerConfig
	provider provider
	fetcher  *fetcher // nil where the keys are in a file
	pattern  pattern  // where the entry is a pattern
	ring     *keyring // where it is a URL
	family   *family  // where it is a pattern
	policy   *policy.Policy
	next     *issuer // another entry for the same issuer, with other audiences
}

// NewVerifier checks the configuration, compiles it and reads the files it
// names. It makes no request and starts nothing. The error of a configuration
// is a *setting.FaultError with every fault.
func NewVerifier(issuers []IssuerConfig, o Options) (*Verifier, error) {
	v, err := newVerifier(issuers, o, nil)
	if err != nil {
		return nil, err
	}
	return v, v.metrics.register(o.Metrics, v.Status)
}

// newVerifier is NewVerifier without registering metrics. The keys of issuers
// that before, which may be nil, fetches in the same way are shared with it.
func newVerifier(issuers []IssuerConfig, o Options, before *Verifier) (*Verifier, error) {
	var f setting.Faults
	compiled := compile("issuers", issuers, &f)
	rules := compileDeny("deny", o.Deny, &f)
	if err := f.Err(); err != nil {
		return nil, err
	}
	v := &Verifier{issuers: compiled, exact: make(map[string]*issuer), now: o.Now, replay: o.Replay, log: o.Logger, metrics: newMetrics()}
	if v.now == nil {
		v.now = time.Now
	}
	if v.replay == nil {
		v.replay = NewMemoryReplay(v.now)
	}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	if before != nil {
		v.metrics, v.replay = before.metrics, before.replay
	}
	v.setDeny(rules)
	for _, i := range compiled {
		if err := v.add(i, o.Transport, before); err != nil {
			return nil, fmt.Errorf("issuer %s: %w", i.name(), err)
		}
	}
	v.index = newPatternIndex(v.patterns)
	return v, nil
}

func (v *Verifier) add(i *issuer, transport http.RoundTripper, before *Verifier) error {
	if before.lendKeys(i) || v.shareKeys(i) {
		v.place(i)
		return nil
	}
	ring := func(url string, from source) *keyring {
		return &keyring{
			issuer: url, source: from, now: v.now, maxAge: i.config.MaxKeysAge,
			fetched: func(url string, err error) { v.fetched(i, url, err) },
		}
	}
	if i.config.JWKSFile != "" {
		from := file{i.config.JWKSFile}
		got, err := from.read()
		if err != nil {
			return err
		}
		i.ring = ring(i.config.URL, from)
		i.ring.keys.Store(newKeyset(got.keys, v.now(), got.fresh))
		v.place(i)
		return nil
	}
	var err error
	if i.fetcher, err = newFetcher(&i.config, transport); err != nil {
		return err
	}
	if i.config.Pattern != "" {
		i.family = newFamily(v.now, func(url string) *keyring { return ring(url, newRemote(i.fetcher, url, "", v.now)) })
	} else {
		i.ring = ring(i.config.URL, newRemote(i.fetcher, i.config.URL, i.config.JWKSURL, v.now))
	}
	v.place(i)
	return nil
}

// place lets match find i.
func (v *Verifier) place(i *issuer) {
	if i.config.Pattern != "" {
		v.patterns = append(v.patterns, i)
		return
	}
	v.exact[i.config.URL] = v.exact[i.config.URL].join(i)
}

// shareKeys gives i the keys of an entry for the same issuer that was added
// before; false when there is none. Both fetch in the same way (see checkTwins).
func (v *Verifier) shareKeys(i *issuer) bool {
	for _, other := range v.issuers {
		if other.name() == i.name() && (other.ring != nil || other.family != nil) {
			i.fetcher, i.ring, i.family = other.fetcher, other.ring, other.family
			return true
		}
	}
	return false
}

func (v *Verifier) fetched(i *issuer, url string, err error) {
	v.metrics.fetched(i.config.Type, err)
	if err != nil {
		v.log.Warn("fetching the keys of an issuer failed", slog.String("issuer", url), slog.Any("error", err))
		return
	}
	v.log.Debug("fetched the keys of an issuer", slog.String("issuer", url))
}

func (i *issuer) name() string { return i.config.URL + i.config.Pattern } // one of them is empty

func (i *issuer) keyring(url string) (*keyring, error) {
	if i.ring != nil {
		return i.ring, nil
	}
	return i.family.keyring(url)
}

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
// keys are fetched, it wraps ctx's error. It holds no part of the token but the
// issuer and audience.
func (v *Verifier) Authenticate(ctx context.Context, token string) (Principal, error) {
	return v.authenticate(ctx, token, nil)
}

// authenticate is Authenticate and tells the trace, which may be nil, about
// every step on the way.
func (v *Verifier) authenticate(ctx context.Context, token string, tr *trace) (Principal, error) {
	t, err := peek(token)
	if tr.check(stepForm, err) != nil {
		return Principal{}, err
	}
	tr.reads(t)
	i, url, audience, err := v.route(t.claims, tr)
	if err != nil {
		return Principal{}, err
	}
	if err := tr.check(stepParty, checkParty(t.claims, i.config.Audiences, i.config.AuthorizedParties)); err != nil {
		return Principal{}, err
	}
	now := v.now()
	if err := tr.check(stepTimes, checkTimes(t.claims, now, i.config.Leeway, i.config.MaxTokenLifetime)); err != nil {
		return Principal{}, err
	}
	if err := tr.check(stepAge, checkAge(t.claims, now, i.config.Leeway, i.config.MaxTokenAge)); err != nil {
		return Principal{}, err
	}
	if err := tr.check(stepSignature, i.verify(ctx, &t, url)); err != nil {
		return Principal{}, err
	}
	p, err := v.judge(i, t.claims, url, audience, tr)
	if err != nil || !i.config.OneTime || tr != nil { // looking at a token doesn't use it
		return p, err
	}
	if err := once(ctx, v.replay, url, &t, i.config.Leeway); err != nil {
		return Principal{}, err
	}
	return p, nil
}

// route finds the entry that a token is for, by its issuer and its audience.
func (v *Verifier) route(c claim.Set, tr *trace) (i *issuer, url, audience string, err error) {
	iss := c.Get("iss")
	if iss.Kind() != claim.String {
		return nil, "", "", tr.check(stepIssuer, malformed("its iss must be a string"))
	}
	url = iss.Literal()
	head := v.match(url)
	if head == nil {
		return nil, "", "", tr.check(stepIssuer, v.unknown(url))
	}
	tr.enters(head)
	_ = tr.check(stepIssuer, nil)
	i, audience, err = head.forAudience(c)
	if err == nil {
		tr.enters(i)
	}
	return i, url, audience, tr.check(stepAudience, err)
}

// verify checks the signature with the keys of the issuer at url.
func (i *issuer) verify(ctx context.Context, t *unverified, url string) error {
	if !slices.Contains(i.config.Algorithms, t.algorithm) {
		return errAlgorithm(i.config.Algorithms)
	}
	ring, err := i.keyring(url)
	if err != nil {
		return err
	}
	keys, err := ring.find(ctx, t.keyID, t.algorithm)
	if err != nil {
		return err
	}
	if err := keys.check(*t); err != nil {
		return fault.New(fault.TokenSignature, "the identity token's signature doesn't verify with its issuer's key").Because(err)
	}
	return nil
}

// match finds the entry for an issuer: an exact URL first, then the most
// specific pattern. Bytes are compared; no two spellings are the same issuer.
func (v *Verifier) match(url string) *issuer {
	if i := v.exact[url]; i != nil {
		return i
	}
	if len(url) > maxIssuer {
		return nil
	}
	return v.index.find(url)
}

func (v *Verifier) unknown(url string) error {
	const few = 5
	e := fault.New(fault.IssuerUnknown, "the identity token's issuer %s is not accepted here", quote(url)).With("actual", quote(url))
	if len(v.issuers) > few {
		return e
	}
	names := make([]string, len(v.issuers))
	for i := range v.issuers {
		names[i] = v.issuers[i].name()
	}
	e.Public += "; accepted: " + strings.Join(names, ", ")
	return e.With("expected", strings.Join(names, ", "))
}

// principal applies the issuer's rule to verified claims.
func (i *issuer) principal(c claim.Set, url, audience string) (Principal, error) {
	sub, err := c.Get("sub").Text("sub") // written into every certificate
	if err != nil {
		return Principal{}, err
	}
	s, err := i.provider.subject(c)
	if err != nil {
		return Principal{}, err
	}
	p := Principal{issuer: url, issuerType: i.config.Type, subject: sub, audience: audience, san: s.SAN, extensions: s.Extensions}
	if s.Issuer != "" {
		p.issuer = s.Issuer
	}
	p.extensions.Issuer, p.extensions.TokenSubject = p.issuer, sub
	if e := c.Get("email"); e.Kind() == claim.String && e.Literal() != "" {
		p.challenges = append(p.challenges, e.Literal())
	}
	p.challenges = append(p.challenges, sub)
	return p, nil
}

// Issuers describes the configured issuers in the configuration's order.
func (v *Verifier) Issuers() []Description {
	out := make([]Description, len(v.issuers))
	for n, i := range v.issuers {
		c := &i.config
		out[n] = Description{
			URL:                   c.URL,
			WildcardURL:           c.Pattern,
			Audience:              c.Audiences[0],
			Type:                  string(c.Type),
			ChallengeClaim:        c.ChallengeClaim,
			SPIFFETrustDomain:     c.SPIFFETrustDomain,
			SubjectDomain:         c.SubjectDomain,
			SkipEmailVerification: c.SkipEmailVerification,
		}
	}
	return out
}

// AcceptsOnce reports whether any issuer's tokens are accepted once: whether the
// Replay is asked.
func (v *Verifier) AcceptsOnce() bool {
	return slices.ContainsFunc(v.issuers, func(i *issuer) bool { return i.config.OneTime })
}

// Status says how each exact issuer stands, in the configuration's order.
func (v *Verifier) Status() []IssuerStatus {
	var out []IssuerStatus
	seen := make(map[*keyring]bool, len(v.issuers))
	for _, i := range v.issuers {
		if i.ring != nil && !seen[i.ring] {
			seen[i.ring] = true
			out = append(out, i.ring.status())
		}
	}
	return out
}
