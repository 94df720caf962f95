package conformance

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/sign"
	"golang.org/x/sync/errgroup"
)

// keysServe is how long the provider lets its readers keep its keys
// (provider.mjs): a key that it removed may be used that long.
const keysServe = time.Minute

// pause is how long a client rests between two certificates.
const pause = 100 * time.Millisecond

// testRotation changes the provider's key while several clients log in and ask
// for certificates. None of them is refused; a token of the key that was
// removed is, within the time that the provider let its keys be kept.
func testRotation(t *testing.T, _ *mayfly, _ *timestampAuthority) {
	const clients = 4
	alice := startNodeProvider(t)
	m := startServe(t, issuerEntry(alice, `
    type: email
    allow: principal.san == "`+aliceEmail+`"`))
	old, err := alice.token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.issue(t.Context(), old); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var issued [clients]atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for i := range issued {
		group.Go(func() error { return work(ctx, m, alice, &issued[i]) })
	}
	// Each client gets two more certificates: the token of the second is
	// younger than the call.
	more := func(t *testing.T) {
		t.Helper()
		for i := range issued {
			for until := issued[i].Load() + 2; issued[i].Load() < until; {
				select {
				case <-ctx.Done():
					t.Fatal("a client with an honest token failed: ", group.Wait())
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}
	more(t)
	for range 2 {
		alice.control(t, "rotate")
		more(t)
	}
	if err := m.issue(t.Context(), old); err != nil {
		t.Error("the key that signs no more is still published, and its token refused: ", err)
	}
	alice.control(t, "retire")
	retired := time.Now()
	const slack = 15 * time.Second // for a fetch, on a machine that is busy
	for tick := time.NewTicker(time.Second); ; <-tick.C {
		if err := m.issue(t.Context(), old); err != nil {
			if !strings.Contains(err.Error(), "401") {
				t.Errorf("refused, but not with 401: %v", err)
			}
			break
		}
		if age := time.Since(retired); age > keysServe+slack {
			t.Fatalf("a token of a removed key is good for more than %v", age)
		}
	}
	t.Logf("a token of the removed key was refused after %v", time.Since(retired).Round(time.Second))
	more(t)
	cancel()
	if err := group.Wait(); err != nil {
		t.Error("a client with an honest token failed: ", err)
	}
	var total int64
	for i := range issued {
		total += issued[i].Load()
	}
	t.Logf("%d certificates for honest tokens, none refused", total)

	// The first fetch, one for each new key, one a minute, and a few where a
	// client came between two.
	const mostReads = 12
	if reads := alice.control(t, "reads"); reads > mostReads {
		t.Errorf("Mayfly read the provider's keys %d times", reads)
	}
}

// work logs in and gets certificates until ctx ends; it never tries again.
func work(ctx context.Context, m *mayfly, alice account, issued *atomic.Int64) error {
	for ctx.Err() == nil {
		token, err := alice.token(ctx)
		if err == nil {
			err = m.issue(ctx, token)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // ended by the test, not by a failure
		}
		if err != nil {
			return err
		}
		issued.Add(1)
		select { // a machine has other things to do
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// issue gets a certificate as sigstore-go does, in one attempt.
func (m *mayfly) issue(ctx context.Context, token string) error {
	_, err := m.certificate(ctx, token)
	return err
}

// certificate answers in DER.
func (m *mayfly) certificate(ctx context.Context, token string) ([]byte, error) {
	keypair, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		return nil, err
	}
	tls, err := loopback()
	if err != nil {
		return nil, err
	}
	fulcio := sign.NewFulcio(&sign.FulcioOptions{BaseURL: m.HTTP, Timeout: 10 * time.Second, Transport: tls.caller.Transport})
	return fulcio.GetCertificate(ctx, keypair, &sign.CertificateProviderOptions{IDToken: token})
}

// control has the provider of provider.mjs change its keys, and answers with
// how often they have been read.
func (a account) control(t *testing.T, what string) int {
	t.Helper()
	method := http.MethodPost
	if what == "reads" {
		method = http.MethodGet
	}
	var answer struct{ Reads int }
	if err := exchange(t.Context(), method, a.issuer+"/control/"+what, nil, &answer); err != nil {
		t.Fatal(err)
	}
	return answer.Reads
}
