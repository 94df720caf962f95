package conformance

import (
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"golang.org/x/sync/errgroup"
)

// TestShards goes from one log to the next while clients ask for certificates.
func TestShards(t *testing.T) {
	t.Run("log-rotation-sigstore-go", testShards)
}

// testShards rotates the embedded log under load. sigstore-go accepts each
// certificate, of the old log and of the new one, under a trusted root that lists
// both, and those of the new log under none that was fetched before.
func testShards(t *testing.T) {
	const clients, lead = 4, 15 * time.Second // the command wants ten seconds for the service
	m := startDev(t)
	before := m.trustedRoot
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	var issued []*x509.Certificate
	token := m.token(t)
	for range clients {
		group.Go(func() error {
			for ctx.Err() == nil {
				der, err := m.certificate(ctx, token)
				if ctx.Err() != nil {
					return nil //nolint:nilerr // ended by the test, not by a failure
				}
				if err != nil {
					return err
				}
				leaf, err := x509.ParseCertificate(der)
				if err != nil {
					return err
				}
				mu.Lock()
				issued = append(issued, leaf)
				mu.Unlock()
				select { // a machine has other things to do
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
			return nil
		})
	}
	mayflyBin, file := setting(t, "MAYFLY_BIN"), filepath.Join(m.dir, "mayfly.yaml")
	at := time.Now().Add(lead).UTC().Truncate(time.Second)
	command(t, nil, mayflyBin, "log", "rotate", "--config", file, "--force", "--at", at.Format(time.RFC3339))
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(issued) }
	after := 0
	for tick := time.NewTicker(pause); after == 0 || count() < after+5*clients; <-tick.C {
		if ctx.Err() != nil {
			t.Fatal("a client was refused: ", group.Wait())
		}
		if time.Since(at) > startWithin {
			t.Fatalf("no certificates %v after the switch", startWithin)
		}
		if after == 0 && time.Now().After(at) {
			after = count() + clients // what was on its way
		}
	}
	cancel()
	if err := group.Wait(); err != nil {
		t.Fatal("a client was refused: ", err)
	}
	both := m.download(t, t.TempDir(), "/trusted_root.json")
	if text, err := os.ReadFile(both); err != nil || strings.Count(string(text), `"logId"`) != 2 {
		t.Fatalf("the trusted root: %s, %v", text, err)
	}
	old, fresh := 0, 0
	for _, leaf := range issued {
		if err := provenBy(t, leaf, both); err != nil {
			t.Fatalf("the certificate %x: %v", leaf.SerialNumber, err)
		}
		if provenBy(t, leaf, before) == nil {
			old++
		} else {
			fresh++
		}
	}
	if old == 0 || fresh < 5*clients {
		t.Errorf("%d certificates of the old log, %d of the new", old, fresh)
	}
	t.Logf("sigstore-go: %d certificates of the old log and %d of the new; none refused", old, fresh)
	command(t, nil, mayflyBin, "log", "freeze", "--config", file)
	signAndVerify(t, m, both, nil, verify.WithCurrentTime())
}

// provenBy has sigstore-go verify a certificate's chain and its SCT.
func provenBy(t *testing.T, leaf *x509.Certificate, trustedRoot string) error {
	t.Helper()
	trust, err := root.NewTrustedRootFromPath(trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	return provenIn(leaf, trust)
}

func provenIn(leaf *x509.Certificate, trust root.TrustedMaterial) error {
	chains, err := verify.VerifyLeafCertificate(leaf.NotBefore.Add(time.Second), leaf, trust)
	if err != nil {
		return err
	}
	return verify.VerifySignedCertificateTimestamp(chains, 1, trust)
}
