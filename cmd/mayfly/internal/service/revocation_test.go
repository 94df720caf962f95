package service

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

const admin = "sue@example.com"

// revoking adds revocation to a rig's configuration, with one administrator.
func revoking(t *testing.T, r *rig, c *config.Config) {
	t.Helper()
	key := filepath.Join(r.dir, "revocations.key.pem")
	if _, err := keystore.GenerateFile(key, kms.ECDSAP256, nil); err != nil {
		t.Fatal(err)
	}
	c.Revocation = revoke.Config{
		Directory: setting.Path(filepath.Join(r.dir, "revocations")), MarkFile: setting.Path(filepath.Join(r.dir, "revocations.mark")),
		Key: setting.KeyRef("file:" + key), SelfService: true,
	}
	c.Access.Admins = []access.Rule{{Name: "security", When: fmt.Sprintf("principal.san == %q", admin)}}
}

// revoke asks over REST, and gives the status, the reason of a refusal, and the answer.
func (r *rig) revoke(t *testing.T, token string, body map[string]any) (int, string, map[string]any) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/api/v1/mayfly/revocations", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
	a, err := r.http.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	data, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatalf("%d %s", a.StatusCode, data)
	}
	details, _ := out["details"].([]any)
	reason := ""
	if len(details) > 0 {
		reason, _ = details[0].(map[string]any)["reason"].(string)
	}
	return a.StatusCode, reason, out
}

// list is an authority's list as it is served once it has so many entries.
func (r *rig) list(t *testing.T, issuer *x509.Certificate, entries int) []byte {
	t.Helper()
	var list []byte
	poll(t, "a list", func() bool {
		code, der, err := get(t.Context(), r.url+revoke.ListPath+revoke.ID(issuer)+".crl")
		if err != nil || code != http.StatusOK {
			return false
		}
		l, err := x509.ParseRevocationList(der)
		list = der
		return err == nil && len(l.RevokedCertificateEntries) == entries
	})
	return list
}

// TestRevocationInEveryMode: openssl refuses the certificate that was revoked, and takes
// the one before and the one after it, whether the issuing key is used where it is, was
// sealed, or is in memory alone; and by the list that a restart serves.
func TestRevocationInEveryMode(t *testing.T) {
	t.Parallel()
	for mode, edit := range map[string]func(t *testing.T, r *rig, c *config.Config){
		"direct": func(*testing.T, *rig, *config.Config) {},
		"sealed": func(t *testing.T, r *rig, c *config.Config) {
			sealedBy(t, kmstest.Sealings["vault"](t), kms.ECDSAP384, r, c)
		},
		"ephemeral": func(t *testing.T, r *rig, c *config.Config) { ephemeralBy(t, "vault", r, c) },
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			var c *config.Config
			r := newRig(t, func(r *rig, own *config.Config) {
				edit(t, r, own)
				revoking(t, r, own)
				c = own
			})
			var chains [][]*x509.Certificate
			for range 3 {
				a := r.ask(t, edges[0], r.signingRequest(t, r.token(t, nil)))
				if len(a.chain) != 3 {
					t.Fatalf("%+v", a)
				}
				chains = append(chains, a.chain)
			}
			code, _, out := r.revoke(t, r.token(t, map[string]any{"email": admin}), map[string]any{
				"certificates": [][]byte{[]byte(toPEM("CERTIFICATE", chains[1][0].Raw))}, "reason": "keyCompromise", "reference": "INC-1",
			})
			if code != http.StatusOK || out["count"] != 1.0 || out["checkpoint"] == "" {
				t.Fatalf("%d %v", code, out)
			}
			check := func(list []byte) {
				t.Helper()
				for i, chain := range chains {
					if said, err := openssl(t, list, chain); (err != nil) != (i == 1) || i == 1 && !strings.Contains(said, "certificate revoked") {
						t.Errorf("certificate %d: %v\n%s", i+1, err, said)
					}
				}
			}
			list := r.list(t, chains[0][1], 1)
			check(list)
			if mode != "ephemeral" {
				return
			}
			// The key goes with its process; its list stays, and has no end.
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			after, err := os.ReadFile(filepath.Join(string(c.Revocation.Directory), "crl", revoke.ID(chains[0][1])+".crl"))
			l, err2 := x509.ParseRevocationList(after)
			if err != nil || err2 != nil || !bytes.Equal(after, list) || l.NextUpdate.Year() != 9999 {
				t.Errorf("%v, %v, %v", err, err2, l.NextUpdate)
			}
		})
	}
}

// openssl verifies a chain at the time of signing, and then with the list.
func openssl(t *testing.T, list []byte, chain []*x509.Certificate) (string, error) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	files := []string{"-CAfile", write("root", cachain.PEM(chain[2:])), "-untrusted", write("issuer", cachain.PEM(chain[1:2])), "-purpose", "any"}
	leaf := write("leaf", cachain.PEM(chain[:1]))
	first := append([]string{"verify", "-attime", fmt.Sprint(chain[0].NotBefore.Unix() + 60)}, append(files, leaf)...)
	if out, err := exec.Command("openssl", first...).CombinedOutput(); err != nil {
		t.Fatalf("the chain: %v\n%s", err, out)
	}
	crl := write("list", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}))
	out, err := exec.Command("openssl", append([]string{"verify", "-no_check_time", "-crl_check", "-CRLfile", crl}, append(files, leaf)...)...).CombinedOutput()
	return string(out), err
}

// TestSelfService: whoever would get the same certificate now may revoke it, and who has
// its key; nobody else, nothing else, and not often. What is refused lists nothing and is
// on record, with the name where the token is genuine.
func TestSelfService(t *testing.T) {
	t.Parallel()
	other := startIssuer(t)
	r := newRig(t, func(r *rig, c *config.Config) {
		revoking(t, r, c)
		c.Issuers = append(c.Issuers, other.Config())
		c.Server.RateLimits.PerPrincipal.Rate, c.Server.RateLimits.PerPrincipal.Burst = 0.0001, 40
		c.Server.RateLimits.PerAddress.Rate, c.Server.RateLimits.PerAddress.Burst = 10_000, 10_000
		c.Deny = append(c.Deny, policy.Deny{Name: "stolen", When: `principal.san == "thief@example.com"`})
	})
	mine := r.ask(t, edges[0], r.signingRequest(t, r.token(t, nil))).chain[0]
	text := [][]byte{mine.Raw}
	self := map[string]any{"right": "RIGHT_SELF_SERVICE", "certificates": text}
	with := func(changes map[string]any) map[string]any {
		m := maps.Clone(self)
		maps.Copy(m, changes)
		return m
	}
	for _, c := range []struct {
		name, token string
		body        map[string]any
		code        int
		reason      string
	}{
		{"no token", "", self, 401, "TOKEN_MISSING"},
		{"an expired token", r.token(t, map[string]any{"iat": 1, "exp": 2}), self, 401, "TOKEN_EXPIRED"},
		{"another audience", r.token(t, map[string]any{"aud": "other"}), self, 401, "TOKEN_AUDIENCE"},
		{"the same name of another issuer", other.Token(t, nil), self, 403, "ACCESS_DENIED"},
		{"another name of the same issuer", r.token(t, map[string]any{"email": "mallory@example.com", "sub": "mallory"}), self, 403, "ACCESS_DENIED"},
		{"whom a deny rule means", r.token(t, map[string]any{"email": "thief@example.com"}), self, 403, "POLICY_DENIED"},
		{"two at once", r.token(t, nil), with(map[string]any{"certificates": append(text, text...)}), 403, "ACCESS_DENIED"},
		{"a range", r.token(t, nil), map[string]any{"right": "RIGHT_SELF_SERVICE", "find": map[string]any{"where": []string{"san=" + identitytest.Email}}}, 403, "ACCESS_DENIED"},
		{"a serial number alone", r.token(t, nil), map[string]any{"right": "RIGHT_SELF_SERVICE", "serial": mine.SerialNumber.Text(16)}, 403, "ACCESS_DENIED"},
		{"no administrator", r.token(t, nil), map[string]any{"certificates": text}, 403, "ACCESS_DENIED"},
		{"no signature", "", map[string]any{"right": "RIGHT_KEY", "certificates": text}, 400, "PROOF_INVALID"},
		{"a signature by another key", "", map[string]any{"right": "RIGHT_KEY", "certificates": text, "signature": prove(t, newKey(t), string(revoke.Challenge(mine.Raw)))}, 400, "PROOF_INVALID"},
		{"an approval", r.token(t, nil), map[string]any{"right": "RIGHT_SELF_SERVICE", "approve": "X"}, 403, "ACCESS_DENIED"},
		{"an unknown reason", r.token(t, nil), with(map[string]any{"reason": "removeFromCRL"}), 400, "REQUEST_MALFORMED"},
		{"a right that there isn't", r.token(t, nil), with(map[string]any{"right": 9}), 400, "REQUEST_MALFORMED"},
		{"a certificate of another CA", r.token(t, map[string]any{"email": admin}), map[string]any{"certificates": [][]byte{foreign(t)}}, 400, "REQUEST_MALFORMED"},
	} {
		if code, reason, out := r.revoke(t, c.token, c.body); code != c.code || reason != c.reason {
			t.Errorf("%s: %d %s %v", c.name, code, reason, out)
		}
	}
	over, same := 0, r.token(t, map[string]any{"email": "mallory@example.com", "sub": "mallory"})
	for range 1000 {
		if _, reason, _ := r.revoke(t, same, self); reason == "RATE_EXCEEDED" {
			over++
		}
	}
	if over < 950 {
		t.Errorf("%d of a thousand calls were over the limit", over)
	}
	if n := r.revoker.Log.Size(); n != 0 {
		t.Errorf("%d statements of what was refused", n)
	}
	code, _, out := r.revoke(t, r.token(t, nil), with(map[string]any{"comment": "mine"}))
	if code != http.StatusOK {
		t.Fatalf("%d %v", code, out)
	}
	signature := prove(t, r.key, string(revoke.Challenge(mine.Raw)))
	code, _, again := r.revoke(t, "", map[string]any{"right": "RIGHT_KEY", "certificates": text, "signature": signature})
	if code != http.StatusOK || fmt.Sprint(again["statements"]) != fmt.Sprint(out["statements"]) || r.revoker.Log.Size() != 1 {
		t.Errorf("once more, by the key: %d %v", code, again)
	}
	trail, err := os.ReadFile(filepath.Join(r.dir, auditName, "audit.jsonl"))
	refusals, err2 := os.ReadFile(filepath.Join(r.dir, auditName, "audit.refused.jsonl"))
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if !bytes.Contains(trail, []byte(`"act":"revoke"`)) || !bytes.Contains(trail, []byte(`"what":"`+mine.SerialNumber.Text(16))) {
		t.Errorf("the trail doesn't say what was done:\n%s", trail)
	}
	if got := bytes.Count(refusals, []byte(`"act":"revoke"`)); got < 16 || !bytes.Contains(refusals, []byte("mallory@example.com")) {
		t.Errorf("%d refusals are on record", got)
	}
}

// TestRevokeOverGRPC: the same over gRPC, with the same refusals.
func TestRevokeOverGRPC(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(r *rig, c *config.Config) { revoking(t, r, c) })
	client := mayflyv1.NewRevocationClient(r.grpc)
	q := &mayflyv1.RevokeRequest{Serial: "0ABC", Comment: "by number"}
	as := func(email string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+r.token(t, map[string]any{"email": email}))
	}
	if _, err := client.Revoke(as("mallory@example.com"), q); status.Code(err).String() != "PermissionDenied" {
		t.Errorf("%v", err)
	}
	a, err := client.Revoke(as(admin), q)
	if err != nil || a.GetCount() != 1 || !strings.Contains(a.GetStatements()[0].GetStatement(), `"serial":"abc"`) {
		t.Errorf("%v, %v", a, err)
	}
}

// TestRevokeByIndex: an administrator finds certificates by what they say, repeats their
// number, and only then they are revoked; the index says so, and so does TUF.
func TestRevokeByIndex(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(r *rig, c *config.Config) {
		revoking(t, r, c)
		c.Store = store.Config{Path: setting.Path(filepath.Join(r.dir, "index.db"))}
	})
	for range 3 {
		r.ask(t, edges[0], r.signingRequest(t, r.token(t, nil)))
	}
	r.ask(t, edges[0], r.signingRequest(t, r.token(t, map[string]any{"email": "bob@example.com", "sub": "bob"})))
	token := r.token(t, map[string]any{"email": admin})
	ask := func(more map[string]any) (int, map[string]any) {
		q := map[string]any{"find": map[string]any{"where": []string{"san=" + identitytest.Email}}}
		maps.Copy(q, more)
		code, _, out := r.revoke(t, token, q)
		return code, out
	}
	poll(t, "all certificates in the index", func() bool {
		code, out := ask(map[string]any{"dryRun": true})
		return code == http.StatusOK && out["count"] == 3.0
	})
	if code, out := ask(map[string]any{"count": 2}); code != http.StatusBadRequest || r.revoker.Log.Size() != 0 {
		t.Errorf("another number: %d %v", code, out)
	}
	if code, out := ask(map[string]any{"count": 3, "reason": "keyCompromise"}); code != http.StatusOK || r.revoker.Log.Size() != 3 {
		t.Fatalf("%d %v", code, out)
	}
	poll(t, "the index says what is revoked", func() bool {
		page, err := r.index.Search(t.Context(), index.Query{Revoked: true})
		return err == nil && len(page.Certificates) == 3 && page.Certificates[0].RevokedReason == "keyCompromise"
	})
	r.list(t, r.Service.issuer.Authorities().Active.Certificate, 3)
}

// TestPagesOfOthers: a page of another origin revokes nothing by a browser on this machine.
func TestPagesOfOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(r *rig, c *config.Config) {
		revoking(t, r, c)
		c.Access.Loopback = true
	})
	for origin, want := range map[string]int{"": http.StatusOK, "https://evil.example": http.StatusForbidden} {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/api/v1/mayfly/revocations", strings.NewReader(`{"serial":"abc"}`))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Content-Type", "text/plain") // which a browser sends without asking
		if origin != "" {
			q.Header.Set("Origin", origin)
		}
		a, err := r.http.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Body.Close()
		if a.StatusCode != want {
			t.Errorf("from %q: %d", origin, a.StatusCode)
		}
	}
}

// TestWithoutRevocation: nothing is served where nothing can be revoked.
func TestWithoutRevocation(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	if code, reason, _ := r.revoke(t, r.token(t, nil), nil); code != http.StatusNotFound || reason != "ROUTE_UNKNOWN" {
		t.Errorf("%d %s", code, reason)
	}
}

// foreign is a certificate that no authority of ours has issued.
func foreign(t *testing.T) []byte {
	t.Helper()
	k := newKey(t)
	return catest.Sign(t, catest.Authority("Other", "Other", time.Now(), time.Now().Add(time.Hour)), nil, k.Public(), k).Raw
}
