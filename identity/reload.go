package identity

import (
	"context"
	"reflect"
	"sync"
	"sync/atomic"
)

// Succession is a verifier that another one can follow while it is in use: the
// way to a new configuration without a restart. It is safe for concurrent use.
//
// Issuers whose keys are fetched as before keep them, and what runs in the
// background for them goes on: a token that was good a moment ago needs no
// request that wasn't needed then. One-time tokens stay used.
type Succession struct {
	current atomic.Pointer[Verifier]
	changed chan struct{} // has room for one: Run looks at current again
}

// NewSuccession is [NewVerifier] for a verifier that can be followed.
func NewSuccession(issuers []IssuerConfig, o Options) (*Succession, error) {
	v, err := newVerifier(issuers, o, nil)
	if err != nil {
		return nil, err
	}
	s := &Succession{changed: make(chan struct{}, 1)}
	s.current.Store(v)
	return s, v.metrics.register(o.Metrics, s.Status)
}

// Prepare makes the verifier that may follow, as NewVerifier would, and leaves
// the one that is in force. Of o, Metrics and Replay have no effect: they go
// from one to the next.
func (s *Succession) Prepare(issuers []IssuerConfig, o Options) (*Verifier, error) {
	return newVerifier(issuers, o, s.current.Load())
}

// Follow puts next, which Prepare made since the last Follow, in force. Tokens
// that are being verified are finished by the verifier that they met.
func (s *Succession) Follow(next *Verifier) {
	s.current.Store(next)
	select {
	case s.changed <- struct{}{}:
	default: // Run has yet to see an earlier change, and will see this one with it
	}
}

// Authenticate is [Verifier.Authenticate] of the verifier in force.
func (s *Succession) Authenticate(ctx context.Context, token string) (Principal, error) {
	return s.current.Load().Authenticate(ctx, token)
}

// Issuers is [Verifier.Issuers] of the verifier in force.
func (s *Succession) Issuers() []Description { return s.current.Load().Issuers() }

// AcceptsOnce is [Verifier.AcceptsOnce] of the verifier in force.
func (s *Succession) AcceptsOnce() bool { return s.current.Load().AcceptsOnce() }

// Status is [Verifier.Status] of the verifier in force.
func (s *Succession) Status() []IssuerStatus { return s.current.Load().Status() }

// Probe is [Verifier.Probe] of the verifier in force.
func (s *Succession) Probe(ctx context.Context) []Step { return s.current.Load().Probe(ctx) }

// Run does what [Verifier.Run] does, for whichever verifier is in force. It
// returns nil when ctx ends, with nothing of its own left running.
func (s *Succession) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	running := map[any]context.CancelFunc{}
	defer func() {
		for _, cancel := range running {
			cancel()
		}
		wg.Wait()
	}()
	for {
		wanted := map[any]bool{}
		for _, i := range s.current.Load().issuers {
			id := i.background()
			wanted[id] = true
			if running[id] != nil {
				continue
			}
			one, cancel := context.WithCancel(ctx)
			running[id] = cancel
			wg.Go(func() { i.keepFresh(one) })
		}
		for id, cancel := range running {
			if !wanted[id] {
				cancel()
				delete(running, id)
			}
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// background identifies what keepFresh works on.
func (i *issuer) background() any {
	if i.ring != nil {
		return i.ring
	}
	return i.family
}

// lendKeys gives i the keys, and the way to them, of an entry of v that fetches
// the same in the same way; false when there is none. v may be nil. Keys from a
// file are read again instead: a file that changed is a reason to be here.
func (v *Verifier) lendKeys(i *issuer) bool {
	if v == nil || i.config.JWKSFile != "" {
		return false
	}
	for _, old := range v.issuers {
		if i.name() == old.name() && reflect.DeepEqual(fetching(i.config), fetching(old.config)) {
			i.fetcher, i.ring, i.family = old.fetcher, old.ring, old.family
			return true
		}
	}
	return false
}

// fetching is what of an entry decides how its keys are fetched: all but what
// is known to be about claims alone.
func fetching(c IssuerConfig) IssuerConfig {
	c.Audiences, c.AuthorizedParties, c.Algorithms = nil, nil, nil
	c.SubjectDomain, c.SPIFFETrustDomain, c.ChallengeClaim, c.IssuerClaim = "", "", "", ""
	c.SkipEmailVerification, c.OneTime = false, false
	c.Preset, c.InlinePreset, c.PresetConstants = "", nil, nil
	c.MaxTokenLifetime, c.MaxTokenAge, c.Leeway = 0, 0, 0
	c.Allow, c.Lifetime, c.MaxLifetime, c.Profiles = "", 0, 0, nil
	return c
}
