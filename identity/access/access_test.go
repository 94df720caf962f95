package access_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

var rules = access.Config{
	Readers: []access.Rule{{Name: "auditors", When: `principal.san.endsWith("@audit.example.com")`}},
	Admins:  []access.Rule{{Name: "odd", When: `claims.teams.exists(t, t == "security")`}, {Name: "security", When: `principal.san == "sue@example.com"`}},
}

// TestGrant: a right goes to whom a rule holds for, and to nobody else; who may
// administer may read, and allow isn't asked.
func TestGrant(t *testing.T) {
	t.Parallel()
	issuer := identitytest.New(t)
	config := issuer.Config()
	config.Allow = "false" // nobody gets a certificate
	verifier, err := identity.NewVerifier([]identity.IssuerConfig{config}, identity.Options{Deny: []policy.Deny{{Name: "stolen", When: `principal.san == "thief@audit.example.com"`}}})
	if err != nil {
		t.Fatal(err)
	}
	given, err := access.New(rules, verifier)
	if err != nil {
		t.Fatal(err)
	}
	token := func(email string) string { return issuer.Token(t, map[string]any{"email": email}) }
	far, here := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		name, token string
		want        access.Right
		from        netip.Addr
		rule        string
		reason      fault.Reason
	}{
		{"a reader reads", token("a@audit.example.com"), access.Read, far, "auditors", ""},
		{"a reader doesn't administer", token("a@audit.example.com"), access.Administer, far, "", fault.AccessDenied},
		{"an admin administers", token("sue@example.com"), access.Administer, far, "security", ""},
		{"an admin reads", token("sue@example.com"), access.Read, far, "security", ""},
		{"what can't be decided doesn't hold", token("bob@example.com"), access.Administer, far, "", fault.AccessDenied},
		{"a deny rule stands above", token("thief@audit.example.com"), access.Read, far, "", fault.PolicyDenied},
		{"no token", "", access.Read, here, "", fault.TokenMissing},
		{"no token of ours", "x.y.z", access.Read, here, "", fault.TokenMalformed},
	} {
		got, err := given.Grant(t.Context(), c.want, c.token, c.from)
		f := fault.From(err)
		if f == nil {
			f = &fault.Error{}
		}
		if got.Rule != c.rule || got.Right != c.want || f.Reason != c.reason {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if f.Kind() == fault.Denied && got.SAN == "" {
			t.Errorf("%s: the record wouldn't say who", c.name)
		}
	}
}

// TestLoopback: what `mayfly dev` opens is this machine alone, and only without a token.
func TestLoopback(t *testing.T) {
	t.Parallel()
	issuer := identitytest.New(t)
	given, err := access.New(access.Config{Loopback: true}, issuer.Verifier(t))
	if err != nil {
		t.Fatal(err)
	}
	for from, ok := range map[string]bool{"127.0.0.1": true, "::1": true, "192.0.2.1": false} {
		if g, err := given.Grant(t.Context(), access.Administer, "", netip.MustParseAddr(from)); (err == nil) != ok || ok && g.Rule != access.Loopback {
			t.Errorf("from %s: %+v, %v", from, g, err)
		}
	}
	if _, err := given.Grant(t.Context(), access.Read, issuer.Token(t, nil), netip.MustParseAddr("127.0.0.1")); fault.From(err).Reason != fault.AccessDenied {
		t.Errorf("with a token: %v", err)
	}
}

// TestReload: other rules are in force once they are committed, and faulty ones never.
func TestReload(t *testing.T) {
	t.Parallel()
	issuer := identitytest.New(t)
	given, err := access.New(access.Config{}, issuer.Verifier(t))
	if err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		_, err := given.Grant(t.Context(), access.Read, issuer.Token(t, nil), netip.Addr{})
		return err
	}
	var faults *setting.FaultError
	_, err = given.Prepare(access.Config{Readers: []access.Rule{{Name: "All", When: "nonsense"}}})
	if !errors.As(err, &faults) || len(faults.Faults) != 2 || !strings.HasPrefix(faults.Faults[0], "access.readers[0].name: ") {
		t.Errorf("faulty rules: %v", err)
	}
	commit, err := given.Prepare(access.Config{Readers: []access.Rule{{Name: "all", When: "true"}}})
	if err != nil || ask() == nil {
		t.Fatalf("before the commit: %v", err)
	}
	if commit(); ask() != nil {
		t.Error("after the commit: refused")
	}
}
