package ca

import (
	"context"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// startEphemeral starts an authority of the mode ephemeral whose signing CA's key
// is in a vendor's stand-in.
func startEphemeral(t *testing.T, now func() time.Time, wake <-chan time.Time) (*kmstest.StandIn, *authority.Authority, *authority.Ephemeral) {
	t.Helper()
	key := kmstest.Key(t, kms.ECDSAP384)
	s := kmstest.Vendors["vault"](t, key)
	root := certify(t, nil, cacert.Profile{Organization: "Example", PathLength: cacert.Unlimited}, key.Public(), key)
	a, err := authority.Load(t.Context(), authority.Config{
		Mode: authority.ModeEphemeral, Chain: writeChain(t, root), Key: setting.KeyRef(s.Ref), Access: s.Options.Access,
		Ephemeral: authority.EphemeralConfig{History: setting.Path(filepath.Join(t.TempDir(), "history")), AcceptUnlisted: true},
	}, authority.LoadOptions{Now: now(), KMS: s.Options})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	e, err := authority.StartEphemeral(t.Context(), a, authority.EphemeralOptions{
		Lifetime: DefaultLifetime, Wake: wake,
		Trail: audit.Trail{Recorder: &recorder{}, Now: now, Logger: slog.New(slog.DiscardHandler)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, a, e
}

// TestEphemeralIssues: a whole issuance, with the signing CA's key asked for
// nothing.
func TestEphemeralIssues(t *testing.T) {
	t.Parallel()
	s, signing, e := startEphemeral(t, clock, nil)
	r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Authorities = e.Authorities(authority.Single(signing)) })
	who, key := alice(t)
	before := s.Count(s.Sign)
	s.Break(func(string, int) kmstest.Fault { return kmstest.Fault{Drop: true} })
	cert, err := r.issuer.Issue(t.Context(), who, key)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Count(s.Sign) - before; got != 0 || len(cert.Chain) != 2 {
		t.Errorf("%d signatures by the signing CA, a chain of %d", got, len(cert.Chain))
	}
	verifies(t, cert)
	if err := r.issuer.Ready(t.Context()); err != nil {
		t.Error(err)
	}

	r = newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Authorities = authority.Single(signing) })
	if cert, err := r.issuer.Issue(t.Context(), who, key); err == nil {
		t.Errorf("the signing CA issued a leaf: %v", cert)
	}
}

// TestEphemeralUnderLoad: certificates succeed each other for ten days while
// requests are under way, and none of them fails.
func TestEphemeralUnderLoad(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	now := func() time.Time { return noon.Add(time.Duration(ahead.Load())) }
	wake := make(chan time.Time)
	_, signing, e := startEphemeral(t, now, wake)
	base := authority.Single(signing)
	r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) {
		o.Authorities, o.Now, o.Log, o.AcceptUnlogged = e.Authorities(base), now, nil, true
	})
	who, key := alice(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var all sync.WaitGroup
	all.Go(func() {
		_ = e.Run(ctx, func(context.Context) error { r.issuer.Use(e.Authorities(base)); return nil }) // it returns nil
	})
	var issued atomic.Int64
	issuers := new(sync.Map)
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				cert, err := r.issuer.Issue(t.Context(), who, key)
				if err != nil {
					t.Error(err)
					return
				}
				issued.Add(1)
				issuers.Store(string(cert.Chain[0]), true)
			}
		})
	}
	for range 10 * 24 {
		before := issued.Load()
		ahead.Add(int64(time.Hour))
		wake <- now()
		wake <- now() // taken once the first is done with
		for issued.Load() == before && !t.Failed() {
			runtime.Gosched()
		}
	}
	stop()
	all.Wait()
	used := 0
	issuers.Range(func(any, any) bool { used++; return true })
	if want := len(e.Authorities(base).Trusted); used < want-1 || want < 6 || len(r.issuer.Chains()) != want {
		t.Errorf("%d issuing certificates were used, of %d; %d chains", used, want, len(r.issuer.Chains()))
	}
}

// TestRootAuthorityIssues: a root that issues leaves itself.
func TestRootAuthorityIssues(t *testing.T) {
	t.Parallel()
	key, err := kms.ECDSAP384.Generate()
	if err != nil {
		t.Fatal(err)
	}
	root := certify(t, nil, cacert.Profile{Organization: "Example", PathLength: cacert.Unlimited}, key.Public(), key)
	a := newAuthority(t, root, kms.InMemory(key), authority.Config{})
	r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Authorities = authority.Single(a) })
	who, proof := alice(t)
	cert, err := r.issuer.Issue(t.Context(), who, proof)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.Chain) != 1 || len(cert.PEM()) != 2 {
		t.Errorf("%d certificates in the chain", len(cert.Chain))
	}
	standardLibraryAgrees(t, cert, who)
	opensslAgrees(t, cert, "email:alice@example.com")
}
