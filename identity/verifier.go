// Package identity decides whom an OpenID Connect token vouches for and what a
// certificate may say of them. [Verifier.Authenticate] takes a token of a
// configured issuer and gives a [Principal], which nothing else can make: the
// evidence that all of this was checked, in this order.
//
//  1. The token's form, its issuer and its audience choose one entry of the
//     configuration (an exact issuer before a pattern, the most specific pattern
//     before others); then its authorized party, its times and its age.
//  2. The signature, with the issuer's keys: package identity/oidc, which fetches
//     and holds them.
//  3. The name and the provenance that the entry's type makes of the claims: a
//     mail address, a URI, a username, a SPIFFE ID, a Kubernetes service account,
//     or what a CI vendor's preset says (package identity/presets).
//  4. The deny rules, then the entry's own condition, in CEL (package
//     identity/policy), which may also choose the certificate's lifetime.
//  5. Where the entry accepts tokens once, that this one wasn't used before.
//
// Claims are read strictly and once: no member twice, and what goes into a
// certificate has no control characters and reads in one way. Every refusal is a
// *fault.Error and holds nothing of the token but its issuer and audience.
//
// A configuration is checked ([CheckIssuers]) by the code that compiles it. A
// Verifier takes a new one without a restart ([Verifier.Prepare]): issuers whose
// keys are fetched as before keep them. [Verifier.Explain] runs the same code and
// says how each step went.
package identity

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/identity/oidc"
	"github.com/mayfly-ca/mayfly/identity/policy"
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
	// included: for tests, and for a verifier that is to ask nobody.
	Transport http.RoundTripper
	// JWKS has the keys of every issuer, as a JSON Web Key Set, in place of those that the
	// configuration names, so that nothing is fetched; nil leaves those.
	JWKS []byte
	// Replay remembers the tokens of issuers with one_time; nil means the memory
	// of the process, for at most 200,000 tokens at a time, of which one issuer has
	// the half at most.
	Replay Replay
	// Requests is how many requests the caller serves at once, some of which may
	// wait for issuers' keys; 0 means 256. See [Verifier.SetRequests].
	Requests int
	// Deny are the rules that refuse requests of any issuer.
	Deny []policy.Deny
}

// Verifier authenticates tokens of the configured issuers. It is safe for
// concurrent use.
type Verifier struct {
	options Options // Deny is of no meaning after NewVerifier
	metrics *metrics
	places  *oidc.Places
	used    *memory // where Options has no Replay
	current atomic.Pointer[snapshot]
	changed chan struct{} // has room for one: Run looks at current again
}

// snapshot is one configuration, compiled: immutable. A token is verified by the
// snapshot that it met, whatever follows it meanwhile.
type snapshot struct {
	v        *Verifier
	issuers  []*issuer            // in the configuration's order
	exact    map[string][]*issuer // by URL and alias; several for one differ in their audiences
	patterns patternIndex
	deny     []*denyRule
}

// issuer is one entry of the configuration, compiled.
type issuer struct {
	config      IssuerConfig
	keysConfig  oidc.Config
	rule        rule
	presetReads []string   // the claims that the templates of its preset read
	pattern     pattern    // where the entry is a pattern
	keys        *oidc.Keys // entries for the same issuer share them
	policy      *policy.Policy
}

func (i *issuer) name() string { return i.config.URL + i.config.Pattern } // one of them is empty

// NewVerifier checks the configuration, compiles it and reads the files it
// names. It makes no request and starts nothing. The error of a configuration
// is a *setting.FaultError with every fault.
func NewVerifier(issuers []IssuerConfig, o Options) (*Verifier, error) {
	v := &Verifier{options: o, metrics: newMetrics(), places: oidc.NewPlaces(o.Requests), changed: make(chan struct{}, 1)}
	if v.options.Now == nil {
		v.options.Now = time.Now
	}
	v.options.Logger = cmp.Or(v.options.Logger, slog.New(slog.DiscardHandler))
	v.used = newMemory(v.options.Now, maxRemembered)
	commit, err := v.Prepare(issuers, o.Deny)
	if err != nil {
		return nil, err
	}
	commit()
	return v, v.metrics.register(o.Metrics, v.Status)
}

// Prepare checks and compiles a new configuration as NewVerifier does, and leaves
// the one in force. commit puts the new one in force; it may be left out, and of
// two that were prepared only one may be committed. The error is NewVerifier's.
//
// Issuers whose keys are fetched as before keep them, and what runs in the
// background for them goes on: a token that was good a moment ago needs no
// request that wasn't needed then. Keys from a file are read again: one that
// changed is a reason to be here. One-time tokens stay used.
func (v *Verifier) Prepare(issuers []IssuerConfig, deny []policy.Deny) (commit func(), err error) {
	var f setting.Faults
	next := &snapshot{v: v, issuers: compile("issuers", issuers, &f), exact: make(map[string][]*issuer)}
	denyRules := policy.Rules("deny", deny, &f)
	if err := f.Err(); err != nil {
		return nil, err
	}
	before := v.current.Load()
	var patterns []*issuer
	for n, i := range next.issuers {
		i.keys = keysLike(next.issuers[:n], i, false) // before those that were kept: one issuer has one status
		if i.keys == nil && before != nil && i.keysConfig.JWKSFile == "" {
			i.keys = keysLike(before.issuers, i, true)
		}
		if i.keys == nil {
			if i.keys, err = oidc.NewKeys(i.keysConfig, v.keysOptions(i.config.Type)); err != nil {
				return nil, fmt.Errorf("issuer %s: %w", i.name(), err)
			}
		}
		if i.config.Pattern != "" {
			patterns = append(patterns, i)
		} else {
			for _, name := range append([]string{i.config.URL}, i.config.Aliases...) {
				next.exact[name] = append(next.exact[name], i)
			}
		}
	}
	next.patterns = newPatternIndex(patterns)
	next.setDeny(denyRules)
	return func() {
		v.current.Store(next)
		select {
		case v.changed <- struct{}{}:
		default: // Run has yet to see an earlier change, and will see this one with it
		}
	}, nil
}

// SetRequests says how many requests the caller serves at once from now on. No
// more than a quarter of them wait for the keys of one issuer, and half in all, so
// that issuers that hang leave room for others.
func (v *Verifier) SetRequests(n int) { v.places.Resize(n) }

// WithClient returns a context that carries the network that a request came from,
// for [Verifier.Authenticate]: a token costs its sender what it makes us do before
// its signature is checked.
func WithClient(ctx context.Context, from netip.Prefix) context.Context {
	return oidc.WithClient(ctx, from)
}

// keysOptions has the fetches of an issuer's keys counted by its type, and logged.
func (v *Verifier) keysOptions(t Type) oidc.Options {
	return oidc.Options{Now: v.options.Now, Transport: v.options.Transport, JWKS: v.options.JWKS, Places: v.places, Fetched: func(f oidc.Fetched) {
		v.metrics.fetched(t, f.Err)
		issuer := slog.String("issuer", f.Issuer)
		if f.Err != nil {
			v.options.Logger.Warn("fetching the keys of an issuer failed", issuer, slog.Any("error", f.Err))
			return
		}
		v.options.Logger.Debug("fetched the keys of an issuer", issuer)
		if len(f.PassedOver) > 0 {
			v.options.Logger.Warn("an issuer publishes keys that can't be used: tokens that they sign are refused",
				issuer, slog.String("keys", oidc.DescribePassedOver(f.PassedOver)))
		}
	}}
}

// keysLike is the keys of an entry for the same issuer that is fetched in the same way,
// or nil. Where they are kept, its type is the same too: a label of the metric.
func keysLike(entries []*issuer, i *issuer, kept bool) *oidc.Keys {
	for _, o := range entries {
		if o.name() == i.name() && (!kept || o.config.Type == i.config.Type && reflect.DeepEqual(o.keysConfig, i.keysConfig)) {
			return o.keys
		}
	}
	return nil
}

// Run fetches the keys of the exact issuers and keeps those, and the keys of
// the issuers that patterns matched, fresh, for whichever configuration is in
// force. It returns nil when ctx ends, with nothing of its own left running. A
// Verifier works without it: a token then waits for the first fetch of its
// issuer's keys.
func (v *Verifier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[*oidc.Keys]context.CancelFunc{}
	for ctx.Err() == nil {
		wanted := map[*oidc.Keys]bool{}
		for _, i := range v.current.Load().issuers {
			wanted[i.keys] = true
			if running[i.keys] != nil {
				continue
			}
			one, cancel := context.WithCancel(ctx)
			running[i.keys] = cancel
			wg.Go(func() { i.keys.Run(one) })
		}
		for keys, cancel := range running {
			if !wanted[keys] {
				cancel()
				delete(running, keys)
			}
		}
		select {
		case <-v.changed:
		case <-ctx.Done():
		}
	}
	return nil
}

// Issuers are the configured issuers in the configuration's order, with the defaults
// filled in. They are shared: don't change them.
func (v *Verifier) Issuers() (all []IssuerConfig) {
	for _, i := range v.current.Load().issuers {
		all = append(all, i.config)
	}
	return all
}

// AcceptsOnce reports whether any issuer's tokens are accepted once: whether the
// Replay is asked.
func (v *Verifier) AcceptsOnce() bool {
	return slices.ContainsFunc(v.current.Load().issuers, func(i *issuer) bool { return i.config.OneTime })
}

// Status says how each exact issuer stands, in the configuration's order.
func (v *Verifier) Status() []oidc.Status {
	var out []oidc.Status
	seen := make(map[*oidc.Keys]bool)
	for _, i := range v.current.Load().issuers {
		if s, ok := i.keys.Status(); ok && !seen[i.keys] {
			seen[i.keys] = true
			out = append(out, s)
		}
	}
	return out
}

// maxProbes is how many issuers are asked at once.
const maxProbes = 8

// Probe asks every exact issuer for its discovery document and its keys, as a
// Verifier in use would, and keeps nothing of the answers. The results are in the
// configuration's order.
func (v *Verifier) Probe(ctx context.Context) []oidc.ProbeResult {
	issuers := v.current.Load().issuers
	found := make([][]oidc.ProbeResult, len(issuers))
	var all errgroup.Group
	all.SetLimit(maxProbes)
	for n, i := range issuers {
		all.Go(func() error {
			found[n] = i.keys.Probe(ctx)
			return nil
		})
	}
	_ = all.Wait() // nil: failures are among the results
	return slices.Concat(found...)
}
