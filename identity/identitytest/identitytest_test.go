package identitytest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/identity/identitytest"
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
