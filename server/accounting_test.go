package server

import (
	"testing"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Whose token it was is on record once its signature is good, and never before.
func TestRefusedIdentityIsOnRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	config := r.issuer.Config()
	config.Allow = `principal.san != "bob@example.com"`
	verifier, err := identity.NewVerifier([]identity.IssuerConfig{config}, identity.Options{
		Deny: []policy.Deny{{Name: "mallory", When: `principal.san.startsWith("mallory@")`}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.server.with.Identity = verifier
	stranger := identitytest.New(t)
	for name, tt := range map[string]struct {
		token  string
		reason fault.Reason
		want   [5]string // issuer and its type, subject, SAN and its kind
	}{
		"the issuer's rule": {r.issuer.Token(t, object{"sub": "b", "email": "bob@example.com"}), fault.PolicyDenied,
			[5]string{r.issuer.URL, "email", "b", "bob@example.com", "email"}},
		"a deny rule": {r.issuer.Token(t, object{"sub": "m", "email": "mallory@example.com"}), fault.PolicyDenied,
			[5]string{r.issuer.URL, "email", "m", "mallory@example.com", "email"}},
		"no name": {r.issuer.Token(t, object{"sub": "e", "email_verified": false}), fault.EmailUnverified,
			[5]string{r.issuer.URL, "email", "e", "", ""}},
		"another's signature": {stranger.Token(t, object{"iss": r.issuer.URL, "sub": "b", "email": "bob@example.com"}), fault.TokenSignature, [5]string{}},
		"another's issuer":    {stranger.Token(t, nil), fault.IssuerUnknown, [5]string{}},
	} {
		before := len(r.audit.of(audit.Denied))
		response := r.postV2(t, setToken(r.bodyV2(t), tt.token))
		readRefusal(t, response, response.StatusCode, tt.reason)
		denied := r.audit.of(audit.Denied)[before:]
		if len(denied) != 1 {
			t.Fatalf("%s: %d records", name, len(denied))
		}
		got := denied[0]
		if who := [5]string{got.Issuer, got.IssuerType, got.Subject, got.SAN, got.SANType}; who != tt.want {
			t.Errorf("%s: on record %q, want %q", name, who, tt.want)
		}
	}
}
