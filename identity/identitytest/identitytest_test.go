package identitytest_test

import (
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPrincipal(t *testing.T) {
	t.Parallel()
	who := identitytest.Principal(t, nil)
	if who.IsZero() || who.SAN().Value != identitytest.Email || who.Subject() != identitytest.Subject || who.Audience() != identitytest.Audience {
		t.Errorf("principal %+v", who)
	}
	other := identitytest.Principal(t, map[string]any{"email": "bob@example.com", "sub": "bob"})
	if got := other.Challenges(); len(got) != 2 || got[0] != "bob@example.com" || got[1] != "bob" {
		t.Errorf("challenges %q", got)
	}
}

// Live issuers have keys of their own.
func TestIssuersDiffer(t *testing.T) {
	t.Parallel()
	one, two := identitytest.New(t), identitytest.New(t)
	if one.Key().Equal(two.Key()) {
		t.Fatal("two live issuers share a key")
	}
}

// The faults do what they say, and are counted.
func TestFaultsDoWhatTheySayAndAreCounted(t *testing.T) {
	t.Parallel()
	i := identitytest.New(t)
	get := func(ctx context.Context) (*http.Response, string, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, i.URL+identitytest.Keys, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return nil, "", err
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		return response, string(body), err
	}
	i.Break(identitytest.Keys, identitytest.Status(http.StatusBadGateway))
	if r, _, err := get(t.Context()); err != nil || r.StatusCode != http.StatusBadGateway {
		t.Errorf("status: %v, %v", r, err)
	}
	i.Break(identitytest.Keys, i.Hang())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := get(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hang: %v", err)
	}
	i.Break(identitytest.Keys, nil)
	if _, body, err := get(t.Context()); err != nil || !strings.Contains(body, keyID(t, i.Key().Public())) {
		t.Errorf("mended: %q, %v", body, err)
	}
	if i.Requests(identitytest.Keys) != 3 || i.Requests(identitytest.Discovery) != 0 || i.TotalRequests() != 3 {
		t.Errorf("counted %d, %d, %d", i.Requests(identitytest.Keys), i.Requests(identitytest.Discovery), i.TotalRequests())
	}
}

// With the keys down and none in memory, the verifier says so.
func TestVerifierSeesFaults(t *testing.T) {
	t.Parallel()
	i := identitytest.New(t)
	i.Break(identitytest.Keys, identitytest.Status(http.StatusServiceUnavailable))
	_, err := i.Verifier(t).Authenticate(t.Context(), i.Token(t, nil))
	if f := fault.From(err); f == nil || f.Reason != fault.IssuerUnavailable {
		t.Errorf("with the keys down: %v", err)
	}
	i.Break(identitytest.Keys, nil)
	if _, err := i.Verifier(t).Authenticate(t.Context(), i.Token(t, nil)); err != nil {
		t.Errorf("mended: %v", err)
	}
}

// keyID is the key id that the issuer publishes the public key under.
func keyID(t *testing.T, public crypto.PublicKey) string {
	t.Helper()
	thumbprint, err := (&jose.JSONWebKey{Key: public}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(thumbprint)
}
