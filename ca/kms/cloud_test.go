package kms_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// lockedLog is a log that a test reads.
type lockedLog struct{ catest.Lines }

func (l *lockedLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// standIn makes a vendor's stand-in with a key of an algorithm.
func standIn(t testing.TB, vendor string, a kms.Algorithm) *kmstest.StandIn {
	t.Helper()
	return kmstest.Vendors[vendor](t, kmstest.Key(t, a))
}

// opened opens a key and closes it with the test.
func opened(t testing.TB, ref string, o kms.Options) kms.Signer {
	t.Helper()
	s, err := keystore.Open(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kms.Close(s) })
	return s
}

// eachVendor runs f for every vendor at the same time, whatever -parallel says:
// what these tests do is wait.
func eachVendor(t *testing.T, f func(t *testing.T, vendor string)) {
	t.Helper()
	var all sync.WaitGroup
	for vendor := range kmstest.Vendors {
		all.Go(func() { t.Run(vendor, func(t *testing.T) { f(t, vendor) }) })
	}
	all.Wait()
}

func digestOf(t testing.TB, hash crypto.Hash) []byte {
	t.Helper()
	d := make([]byte, hash.Size())
	if _, err := rand.Read(d); err != nil {
		t.Fatal(err)
	}
	return d
}

// sign asks for one signature of a certificate's kind.
func sign(t testing.TB, ctx context.Context, s kms.Signer) ([]byte, error) { //nolint:revive // context-as-argument: t comes first in tests
	t.Helper()
	return s.Sign(ctx, digestOf(t, crypto.SHA256), crypto.SHA256)
}

// within is a context that ends soon.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
