package service

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// Tokens that are refused. In the tests here and in the files beside every request
// goes over REST and gRPC, v2 and v1, of a whole service, and the rig's verdict
// holds each to the common oracle.

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// claims are the bytes of a good payload, with some claims replaced.
func (r *rig) claims(t testing.TB, changes map[string]any) []byte {
	t.Helper()
	now := time.Now()
	all := map[string]any{
		"iss": r.issuer.URL, "sub": identitytest.Subject, "aud": identitytest.Audience, "email": identitytest.Email, "email_verified": true,
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "canary": canary,
	}
	for name, value := range changes {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// signed is a genuine token with claims that no honest issuer would send.
func (r *rig) signed(t testing.TB, changes map[string]any) string {
	t.Helper()
	return forge(t, r.issuer, nil, r.claims(t, changes), nil)
}

// TestGoodRequests: without abuse every edge issues, and the oracle sees it: the other tests
// would pass on a service that refuses everything.
func TestGoodRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, leaf := range r.issues(t, "good", r.signingRequest(t, r.token(t, nil))) {
		if len(leaf.EmailAddresses) != 1 || leaf.EmailAddresses[0] != identitytest.Email {
			t.Errorf("certified %v", leaf.EmailAddresses)
		}
	}
	r.issues(t, "by hand", r.signingRequest(t, r.signed(t, nil)))
}

func TestTokenAlgorithms(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	payload := r.claims(t, nil)
	for _, alg := range []string{"none", "None", "nOnE", "HS256", "HS512", "rs256", "RS1", ""} {
		r.refusesToken(t, "alg "+alg, forge(t, r.issuer, map[string]any{"alg": alg}, payload, nil), fault.TokenAlgorithm)
		r.refusesToken(t, "alg "+alg+", no signature", forge(t, r.issuer, map[string]any{"alg": alg}, payload, []byte{}), fault.TokenAlgorithm, fault.TokenMalformed)
	}
	der := spkiOf(t, r.issuer.Key().Public())
	jwk, err := json.Marshal(jose.JSONWebKey{Key: r.issuer.Key().Public()})
	if err != nil {
		t.Fatal(err)
	}
	for form, secret := range map[string][]byte{"DER": der, "PEM": []byte(toPEM("PUBLIC KEY", der)), "JWK": jwk} {
		r.refusesToken(t, "HS256 keyed with the public key in "+form, forge(t, r.issuer, map[string]any{"alg": "HS256"}, payload, secret), fault.TokenAlgorithm)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r.refusesToken(t, "ES256 key, RS256 header", forge(t, r.issuer, nil, payload, ec), fault.TokenSignature)
	r.refusesToken(t, "RSA key, ES256 header", forge(t, r.issuer, map[string]any{"alg": "ES256"}, payload, nil), fault.TokenAlgorithm, fault.TokenSignature)
	r.refusesToken(t, "empty signature", forge(t, r.issuer, nil, payload, []byte{}), fault.TokenMalformed, fault.TokenSignature)
	r.refusesToken(t, "another key", forge(t, r.issuer, nil, payload, startIssuer(t).Key()), fault.TokenSignature)
	parts := strings.Split(r.token(t, nil), ".")
	r.refusesToken(t, "another payload", parts[0]+"."+b64(string(r.claims(t, map[string]any{"email": "mallory@example.com"})))+"."+parts[2], fault.TokenSignature)
}

// trap is a server that nobody may ask.
func trap(t *testing.T) (url string, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		http.NotFound(w, nil)
	}))
	t.Cleanup(s.Close)
	return s.URL, asked
}

func TestTokenHeadersThatBringKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	url, asked := trap(t)
	before := r.issuer.TotalRequests()
	mine := startIssuer(t)
	for name, header := range map[string]map[string]any{
		"jku": {"jku": url + "/keys"}, "x5u": {"x5u": url + "/chain"}, "x5c": {"x5c": []string{"MIIB"}},
		"jwk":          {"jwk": jose.JSONWebKey{Key: mine.Key().Public(), Algorithm: "RS256"}},
		"unknown crit": {"crit": []string{"exp"}, "exp": 1}, "b64": {"crit": []string{"b64"}, "b64": false}, "empty crit": {"crit": []string{}},
	} {
		r.refusesToken(t, name, forge(t, r.issuer, header, r.claims(t, nil), mine.Key()), fault.TokenMalformed, fault.TokenSignature)
		r.refusesToken(t, name+", well signed", forge(t, r.issuer, header, r.claims(t, nil), nil), fault.TokenMalformed)
	}
	if asked.Load() != 0 || r.issuer.TotalRequests() != before {
		t.Errorf("asked elsewhere %d times, the issuer %d times more", asked.Load(), r.issuer.TotalRequests()-before)
	}
}

func TestTokenKeyIDs(t *testing.T) {
	t.Parallel()
	other := startIssuer(t)
	r := newRig(t, func(_ *rig, c *config.Config) { c.Issuers = append(c.Issuers, other.Config()) })
	r.issues(t, "the other issuer's own", r.signingRequest(t, other.Token(t, nil)))
	kid := keyID(t, other.Key().Public())
	// At once: each waits for the fetch that may know its key, and all for one.
	var all sync.WaitGroup
	for _, kid := range []string{kid, "../../x", "/etc/passwd", "file:///etc/passwd", keyID(t, r.issuer.Key().Public()), strings.Repeat("k", 4000)} {
		token := forge(t, r.issuer, map[string]any{"kid": kid}, r.claims(t, nil), other.Key())
		all.Go(func() { r.refusesToken(t, fmt.Sprintf("kid %.12s", kid), token, fault.TokenSignature) })
	}
	all.Wait()
	r.refusesToken(t, "kid of 100 kB", forge(t, r.issuer, map[string]any{"kid": strings.Repeat("k", 100<<10)}, r.claims(t, nil), nil), fault.BodyTooLarge, fault.TokenTooLarge)
	r.refusesToken(t, "kid of another type", forge(t, r.issuer, map[string]any{"kid": []int{1}}, r.claims(t, nil), nil), fault.TokenMalformed)
	if n := r.issuer.Requests(issuerKeys); n > 3 {
		t.Errorf("the keys were fetched %d times: unknown kids may cause one fetch a second", n)
	}
}

func TestTokenFormAndSize(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	before := r.issuer.TotalRequests()
	good := r.token(t, nil)
	parts := strings.Split(good, ".")
	payload := func(s string) string { return parts[0] + "." + b64(s) + "." + parts[2] }
	for name, token := range map[string]string{
		"JWE of five parts":  strings.Join([]string{parts[0], "", "aaaa", "bbbb", "cccc"}, "."),
		"JSON serialisation": `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"two parts":          parts[0] + "." + parts[1],
		"only dots":          "..",
		"10,000 deep":        payload(`{"a":` + strings.Repeat("[", 10000)),
		"many members":       payload("{" + strings.Repeat(`"a":0,`, 1800) + `"b":0}`),
		"invalid UTF-8":      payload("{\"iss\":\"\xff\"}"),
		"byte order mark":    payload("\ufeff" + string(r.claims(t, nil))),
		"not an object":      payload(`"iss"`),
		"two documents":      payload("{}{}"),
		"new line":           parts[0] + "." + parts[1] + "\n." + parts[2],
		"NUL":                good + "\x00",
		"standard alphabet":  parts[0] + "." + parts[1] + "." + strings.Repeat("+/", 20),
	} {
		r.refusesToken(t, name, token, fault.TokenMalformed)
	}
	for name, token := range map[string]string{
		"one byte over 16 KiB": strings.Repeat("a", 16<<10+1),
		"48 kB of dots":        strings.Repeat(".", 48<<10),
	} {
		r.refusesToken(t, name, token, fault.TokenTooLarge)
	}
	for name, token := range map[string]string{
		"100 kB of dots":    strings.Repeat(".", 100<<10),
		"4 MiB of dots":     strings.Repeat(".", 4<<20),
		"1 MiB":             parts[0] + "." + strings.Repeat("a", 1<<20) + "." + parts[2],
		"1,000,000 members": payload("{" + strings.Repeat(`"a":0,`, 1000000) + "}"),
	} {
		r.refusesToken(t, name, token, fault.BodyTooLarge, fault.TokenTooLarge)
	}
	r.refusesToken(t, "none", "", fault.TokenMissing)
	huge := &fulciov2.CreateSigningCertificateRequest{Credentials: &fulciov2.Credentials{
		Credentials: &fulciov2.Credentials_OidcIdentityToken{OidcIdentityToken: strings.Repeat(".", 4<<20)}}}
	if _, err := fulciov2.NewCAClient(r.grpc).CreateSigningCertificate(t.Context(), huge); status.Code(err) != codes.InvalidArgument {
		t.Errorf("4 MiB of dots over gRPC: %v, want BODY_TOO_LARGE as over REST", err)
	}
	if n := r.issuer.TotalRequests(); n != before {
		t.Errorf("%d requests", n-before)
	}
}

func TestTokenTimes(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	now := time.Now()
	unix := func(d time.Duration) int64 { return now.Add(d).Unix() }
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	for name, c := range map[string]struct {
		changes map[string]any
		want    fault.Reason
	}{
		"expired by the leeway and a second": {map[string]any{"exp": unix(-61 * time.Second)}, fault.TokenExpired},
		"no exp":                             {map[string]any{"exp": nil}, fault.TokenMalformed},
		"exp a string":                       {map[string]any{"exp": fmt.Sprint(unix(time.Hour))}, fault.TokenMalformed},
		"exp 1e400":                          {map[string]any{"exp": raw("1e400")}, fault.TokenMalformed},
		"exp negative":                       {map[string]any{"exp": -1}, fault.TokenMalformed},
		"exp null":                           {map[string]any{"exp": raw("null")}, fault.TokenMalformed},
		"nbf in the future":                  {map[string]any{"nbf": unix(patience + 65*time.Second)}, fault.TokenNotYetValid},
		"iat in the future":                  {map[string]any{"iat": unix(patience + 65*time.Second)}, fault.TokenNotYetValid},
		"longer than a day":                  {map[string]any{"iat": unix(0), "exp": unix(24*time.Hour + time.Second)}, fault.TokenLifetime},
	} {
		r.refusesToken(t, name, r.signed(t, c.changes), c.want)
	}
	r.issues(t, "within the leeway", r.signingRequest(t, r.signed(t, map[string]any{"exp": unix(0), "iat": unix(-time.Hour)})))
}

func TestTokenAudience(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for name, aud := range map[string]any{
		"wrong": "other", "empty": "", "prefix": "sigstor", "superstring": "sigstore2", "case": "Sigstore", "space": "sigstore ",
		"list in a string": "sigstore,other", "empty array": []string{}, "array of others": []string{"a", "b"}, "missing": nil,
	} {
		r.refusesToken(t, name, r.signed(t, map[string]any{"aud": aud}), fault.TokenAudience)
	}
	r.refusesToken(t, "number", r.signed(t, map[string]any{"aud": 1}), fault.TokenMalformed)
	r.issues(t, "ours among others", r.signingRequest(t, r.signed(t, map[string]any{"aud": []string{"other", "sigstore"}})))
}

func TestTokenIssuers(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	url, asked := trap(t)
	before := r.issuer.TotalRequests()
	host := strings.TrimPrefix(r.issuer.URL, "http://")
	for _, iss := range []string{
		r.issuer.URL + "/", "HTTP://" + host, "http://user@" + host, "http://" + host + ":80", "https://" + host, strings.Replace(r.issuer.URL, "127.0.0.1", "localhost", 1),
		url, url + "?" + r.issuer.URL, url + "#" + r.issuer.URL, r.issuer.URL + "@" + strings.TrimPrefix(url, "http://"), r.issuer.URL + "\n", r.issuer.URL + "\x00",
		"https://xn--80ak6aa92e.example", "", "issuer",
	} {
		r.refusesToken(t, fmt.Sprintf("iss %q", iss), r.signed(t, map[string]any{"iss": iss}), fault.IssuerUnknown, fault.TokenMalformed)
	}
	if asked.Load() != 0 || r.issuer.TotalRequests() != before {
		t.Errorf("asked elsewhere %d times, the issuer %d times more", asked.Load(), r.issuer.TotalRequests()-before)
	}
}

func TestDuplicateMembersInTokens(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	good := string(r.claims(t, nil))
	for _, extra := range []string{
		`"iss":"https://evil.example"`, `"ISS":"https://evil.example"`, `"Email":"mallory@example.com"`, `"EMAIL":"mallory@example.com"`,
		`"email":"mallory@example.com"`, `"\u0065mail":"mallory@example.com"`, `"Exp":1`, `"Sub":"mallory"`, `"ſub":"mallory"`,
	} {
		for name, payload := range map[string]string{"after": strings.TrimSuffix(good, "}") + "," + extra + "}", "before": "{" + extra + "," + strings.TrimPrefix(good, "{")} {
			r.refusesToken(t, extra+" "+name, forge(t, r.issuer, nil, []byte(payload), nil), fault.TokenMalformed)
		}
	}
	head := `{"alg":"RS256","alg":"none","kid":"` + keyID(t, r.issuer.Key().Public()) + `"}`
	token, err := signRaw([]byte(head), []byte(good), "RS256", r.issuer.Key())
	if err != nil {
		t.Fatal(err)
	}
	r.refusesToken(t, "alg twice", token, fault.TokenMalformed)
}

func TestEmailVerified(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, value := range []any{1, "1", json.RawMessage("null"), nil, false, "false", "TRUE", []any{true}} {
		r.refusesToken(t, fmt.Sprint(value), r.signed(t, map[string]any{"email_verified": value}), fault.EmailUnverified)
	}
	for _, value := range []any{true, "true", "True"} {
		r.issues(t, fmt.Sprint(value), r.signingRequest(t, r.signed(t, map[string]any{"email_verified": value})))
	}
}

func TestHostileClaims(t *testing.T) {
	t.Parallel()
	cluster, ci := startIssuer(t), startIssuer(t)
	r := newRig(t, func(_ *rig, c *config.Config) {
		k, g := cluster.Config(), ci.Config()
		k.Type, g.Type, g.Preset = identity.TypeKubernetes, identity.TypeCI, "github"
		c.Issuers = append(c.Issuers, k, g)
	})
	account := func(namespace, name any) map[string]any {
		return map[string]any{"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": name}}}
	}
	for name, claims := range map[string]map[string]any{
		"missing": {}, "a string": {"kubernetes.io": "x"}, "an array": {"kubernetes.io": []string{"x"}}, "a number": account(1, "b"),
		"empty": account("", "b"), "an object": account(map[string]any{}, "b"), "a list": account("a", []string{"b"}),
	} {
		claims["canary"] = canary
		r.refusesToken(t, "kubernetes: "+name, cluster.Token(t, claims), fault.ClaimMissing, fault.ClaimInvalid)
	}
	github := func() map[string]any {
		return map[string]any{
			"canary": canary, "event_name": "push", "sha": "8f14e45f", "workflow": "build", "repository": "o/r", "ref": "refs/heads/main",
			"job_workflow_ref": "o/r/.github/workflows/b.yml@refs/heads/main", "job_workflow_sha": "8f14e45f", "runner_environment": "github-hosted",
			"repository_id": "1", "repository_owner": "o", "repository_owner_id": "2", "workflow_ref": "o/r/.github/workflows/b.yml@refs/heads/main",
			"workflow_sha": "8f14e45f", "run_id": "3", "run_attempt": "1", "repository_visibility": "private",
		}
	}
	for _, value := range []any{nil, "", 1, map[string]any{"a": 1}, []string{"a"}} {
		claims := github()
		claims["repository"] = value
		o := r.signingRequest(t, ci.Token(t, claims))
		r.refuses(t, fmt.Sprintf("repository %v", value), o, fault.ClaimMissing, fault.ClaimInvalid)
	}
	o := r.signingRequest(t, ci.Token(t, github()))
	o.proof = prove(t, r.key, identitytest.Subject)
	for _, leaf := range r.issues(t, "all claims", o) {
		if len(leaf.URIs) != 1 {
			t.Errorf("certified %v", leaf.URIs)
		}
		for _, x := range leaf.Extensions {
			if len(x.Value) == 0 {
				t.Errorf("extension %v is empty", x.Id)
			}
		}
	}
	for _, a := range r.answers {
		if a.reason != "" && !strings.Contains(a.message, "kubernetes.io") && !strings.Contains(a.message, "repository") {
			t.Errorf("the claim isn't named in %q", a.message)
		}
	}
}
