// Package oidc checks who signed an OpenID Connect token: it reads the token
// ([ParseUnverified]), finds where the issuer publishes its keys, fetches and
// holds them ([Keys]), and verifies the signature with them ([Keys.Verify]).
// What a token's claims mean is for package identity, which imports this one.
//
// An issuer's keys come from its own server, by discovery (OpenID Connect
// Discovery §4) or from a configured URL, or from a file. A token may name any
// issuer of a pattern before its signature is checked, so all that a token can
// cause is bounded: one fetch at a time for an issuer, one a second at the most,
// 5 seconds and 1 MiB each; so many new issuers of a pattern from one client, and
// so many tokens that wait ([Places]). Keys serve for as long as the issuer's Cache-Control says, within
// bounds, and are renewed in the background ([Keys.Run]) before a token finds
// them old.
//
// Where a request may go is decided for each address at the moment of the
// connection: the public Internet, and the networks that the configuration
// allows. Redirects stay on their origin, and keys on the issuer's host or one
// that is configured.
package oidc

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

// Options is what Keys need beside their configuration.
type Options struct {
	// Now is the clock; required.
	Now func() time.Time
	// Fetched is told of every fetch that has ended; required.
	Fetched func(Fetched)
	// Places bound how many tokens wait for keys, of all Keys that have the same;
	// required.
	Places *Places
	// Transport replaces the hardened HTTP transport, ca_file and allow_networks
	// included; nil doesn't.
	Transport http.RoundTripper
	// JWKS has the keys of every issuer, as a JSON Web Key Set, in place of those that the
	// configuration names; nil leaves those. It is read when a token is verified.
	JWKS []byte
}

// Fetched is how a fetch of an issuer's keys ended.
type Fetched struct {
	Issuer string
	Err    error // why it failed; nil when it did not
	// PassedOver names the keys that can't be used, each with the reason, when
	// they are others than the fetch before found.
	PassedOver []string
}

// Keys are the keys of one issuer, or of each issuer that one pattern matches.
// They are safe for concurrent use.
type Keys struct {
	config  Config
	options Options
	fetcher *fetcher     // nil where the keys are in a file or in Options
	exact   *cache       // where the configuration has a URL, or Options the keys
	pattern *patternKeys // where it has a pattern
}

// NewKeys reads the files that c names, which was checked, and makes no request.
func NewKeys(c Config, o Options) (*Keys, error) {
	k := &Keys{config: c, options: o}
	newCache := func(issuer string, from func(context.Context) (jwks, error)) *cache {
		return &cache{issuer: issuer, source: from, maxAge: c.MaxKeysAge, pattern: k.pattern, Options: o}
	}
	if o.JWKS != nil {
		k.exact = newCache(cmp.Or(c.URL, c.Pattern), func(context.Context) (jwks, error) { return parseJWKS(o.JWKS, fileFresh) })
		return k, nil
	}
	if c.JWKSFile != "" {
		got, err := readJWKS(c.JWKSFile)
		if err != nil {
			return nil, err
		}
		k.exact = newCache(c.URL, func(context.Context) (jwks, error) { return readJWKS(c.JWKSFile) })
		k.exact.keys.Store(&keySet{got, o.Now()})
		return k, nil
	}
	var err error
	if k.fetcher, err = newFetcher(&c, o.Transport); err != nil {
		return nil, err
	}
	if c.Pattern != "" {
		k.pattern = newPatternKeys(o.Now, func(issuer string) *cache { return newCache(issuer, k.server(issuer).fetch) })
	} else {
		k.exact = newCache(c.URL, k.server(c.URL).fetch)
	}
	return k, nil
}

// Verify checks the signature of a token of the issuer, which is the configured
// one or one that the pattern matches. The errors are *fault.Error: of kind
// Unauthenticated; IssuerUnavailable when the keys can't be had at the moment,
// IssuerKeyUnusable when they can't be used, RateExceeded when the client names too
// many new issuers; when ctx ends before the keys are here, its error is wrapped.
func (k *Keys) Verify(ctx context.Context, t *Token, issuer string) error {
	c := k.exact
	if c == nil {
		var err error
		if c, err = k.pattern.cache(issuer, clientOf(ctx)); err != nil {
			return err
		}
	}
	return c.verify(ctx, t)
}

// Status is how the keys of one issuer stand.
type Status struct {
	Name    string        // the issuer's URL
	Ready   bool          // its keys are here and not too old
	Err     error         // why the last fetch failed; nil when it did not. For the log, not for clients
	KeysAge time.Duration // since the keys were fetched; zero when they never were
	// PassedOver names the keys of the issuer that can't be used, each with the reason.
	PassedOver []string
}

// Status says how the keys stand; ok is false for a pattern, whose issuers
// aren't known beforehand.
func (k *Keys) Status() (s Status, ok bool) {
	c := k.exact
	if c == nil {
		return Status{}, false
	}
	s.Name = c.issuer
	c.mu.Lock()
	if c.last != nil {
		s.Err = c.last.err
	}
	c.mu.Unlock()
	if keys := c.keys.Load(); keys != nil {
		s.KeysAge = c.Now().Sub(keys.fetched)
		s.Ready = s.KeysAge < c.maxAge
		s.PassedOver = keys.passedOver
	}
	return s, true
}

// The pace of the background: keys that are here are fetched again before a
// token finds them old, and an issuer that fails is tried again ever more slowly.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
	// patternEvery is how often the issuers of a pattern are looked over.
	patternEvery = minFresh / 2
	// refreshAtOnce is how many issuers of a pattern are asked at once.
	refreshAtOnce = 8
)

// Run fetches the keys of the configured issuer and keeps them fresh, or those
// of the issuers that the pattern matched so far, until ctx ends. Nothing of its
// own is left running then, and the connections are closed.
func (k *Keys) Run(ctx context.Context) {
	if k.exact != nil {
		k.exact.keepFresh(ctx)
	} else {
		k.pattern.keepFresh(ctx)
	}
	if k.fetcher != nil {
		k.fetcher.client.CloseIdleConnections()
	}
}

func (p *patternKeys) keepFresh(ctx context.Context) {
	for wait.For(ctx, jitter(patternEvery)) == nil {
		var turn errgroup.Group
		turn.SetLimit(refreshAtOnce) // one that hangs doesn't keep the others waiting
		for _, c := range p.active() {
			turn.Go(func() error {
				if ctx.Err() == nil && c.refreshIn() == 0 {
					_ = c.refresh(ctx) // Options.Fetched is told, and the next turn tries again
				}
				return nil
			})
		}
		_ = turn.Wait() // nil: see above
	}
}

func (c *cache) keepFresh(ctx context.Context) {
	retry := retryFirst
	for ctx.Err() == nil {
		var next time.Duration
		if err := c.refresh(ctx); err != nil {
			next, retry = retry, min(2*retry, retryMost)
		} else {
			next, retry = c.refreshIn(), retryFirst
		}
		if wait.For(ctx, jitter(next)) != nil {
			return
		}
	}
}

// jitter shortens d by up to a tenth, so that many instances don't ask at once.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1)) //nolint:gosec // no secret depends on it
}
