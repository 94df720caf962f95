package devissuer_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"go.uber.org/goleak"
	"golang.org/x/oauth2"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/devissuer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// signingKey is one key for all tests: making it is slow.
var signingKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// running is an issuer over real HTTP, with a client that follows no redirect.
type running struct {
	*devissuer.Issuer
	t      *testing.T
	clock  *clock
	client *http.Client
}

func start(t *testing.T) *running {
	t.Helper()
	c := newClock()
	server := httptest.NewUnstartedServer(nil)
	issuer, err := devissuer.New(devissuer.Options{URL: "http://" + server.Listener.Addr().String(), Key: signingKey(), Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = issuer.Handler()
	server.Start()
	t.Cleanup(server.Close)
	client := server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &running{Issuer: issuer, t: t, clock: c, client: client}
}

// answer is a response that has been read whole.
type answer struct {
	*http.Response
	text string
}

func (r *running) do(request *http.Request) answer {
	r.t.Helper()
	response, err := r.client.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if got := response.Header.Get("Access-Control-Allow-Origin"); got != "" {
		r.t.Errorf("%s lets the pages of %s read it", request.URL.Path, got)
	}
	return answer{response, string(body)}
}

// get asks for a path; header is pairs of name and value.
func (r *running) get(path string, query url.Values, header ...string) answer {
	r.t.Helper()
	return r.do(r.request(http.MethodGet, path+"?"+query.Encode(), nil, header...))
}

func (r *running) post(path string, form url.Values, header ...string) answer {
	r.t.Helper()
	header = append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)
	return r.do(r.request(http.MethodPost, path, strings.NewReader(form.Encode()), header...))
}

func (r *running) request(method, path string, body io.Reader, header ...string) *http.Request {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), method, r.URL()+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	return request
}

// wantError checks an OAuth error answer.
func (a answer) wantError(t *testing.T, code string) {
	t.Helper()
	var e struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal([]byte(a.text), &e); err != nil || e.Error != code || a.StatusCode != http.StatusBadRequest {
		t.Errorf("got %s %s, want the error %s", a.Status, a.text, code)
	}
}

// verify has go-oidc discover the issuer and verify the token.
func (r *running) verify(token, audience string) (*oidc.IDToken, map[string]any) {
	r.t.Helper()
	ctx := oidc.ClientContext(r.t.Context(), r.client)
	provider, err := oidc.NewProvider(ctx, r.URL())
	if err != nil {
		r.t.Fatal(err)
	}
	verified, err := provider.VerifierContext(ctx, &oidc.Config{ClientID: audience, Now: r.clock.Now}).Verify(ctx, token)
	if err != nil {
		r.t.Fatalf("go-oidc refuses the token: %v", err)
	}
	var claims map[string]any
	if err := verified.Claims(&claims); err != nil {
		r.t.Fatal(err)
	}
	return verified, claims
}

// oauth is the issuer as golang.org/x/oauth2 sees it, from its discovery document.
func (r *running) oauth(redirect string) (context.Context, *oauth2.Config) {
	r.t.Helper()
	ctx := oidc.ClientContext(r.t.Context(), r.client)
	provider, err := oidc.NewProvider(ctx, r.URL())
	if err != nil {
		r.t.Fatal(err)
	}
	return ctx, &oauth2.Config{ClientID: "sigstore", Endpoint: provider.Endpoint(), RedirectURL: redirect, Scopes: []string{oidc.ScopeOpenID, "email"}}
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	r := start(t)
	a := r.get("/.well-known/openid-configuration", nil)
	var document map[string]any
	if err := json.Unmarshal([]byte(a.text), &document); err != nil {
		t.Fatal(err)
	}
	for member, want := range map[string]any{
		"issuer":                                r.URL(),
		"authorization_endpoint":                r.URL() + "/authorize",
		"token_endpoint":                        r.URL() + "/token",
		"device_authorization_endpoint":         r.URL() + "/device_authorization",
		"jwks_uri":                              r.URL() + "/keys",
		"code_challenge_methods_supported":      []any{"S256"},
		"response_types_supported":              []any{"code"},
		"subject_types_supported":               []any{"public"},
		"id_token_signing_alg_values_supported": []any{"RS256"},
	} {
		if !reflect.DeepEqual(document[member], want) {
			t.Errorf("%s is %v, want %v", member, document[member], want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := "http://127.0.0.1:5556"
	for name, o := range map[string]devissuer.Options{
		"no key":        {URL: good},
		"a short key":   {URL: good, Key: short},
		"no URL":        {Key: signingKey()},
		"https":         {URL: "https://127.0.0.1:5556", Key: signingKey()},
		"not loopback":  {URL: "http://192.0.2.1:5556", Key: signingKey()},
		"a public name": {URL: "http://issuer.example", Key: signingKey()},
		"any interface": {URL: "http://0.0.0.0:5556", Key: signingKey()},
		"a final slash": {URL: good + "/", Key: signingKey()},
		"a path":        {URL: good + "/dex", Key: signingKey()},
		"a query":       {URL: good + "?a=b", Key: signingKey()},
		"user info":     {URL: "http://a@127.0.0.1:5556", Key: signingKey()},
		"no URL at all": {URL: "::", Key: signingKey()},
	} {
		if _, err := devissuer.New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCheckLoopback(t *testing.T) {
	t.Parallel()
	for addr, ok := range map[string]bool{
		"127.0.0.1:5556": true, "127.9.9.9:0": true, "[::1]:5556": true, "localhost:5556": true, "LOCALHOST:1": true,
		"[::ffff:127.0.0.1]:1": true,
		":5556":                false, "0.0.0.0:5556": false, "[::]:5556": false, "192.168.1.5:5556": false,
		"example.com:5556": false, "localhost.example.com:1": false, "127.0.0.1": false, "": false,
		"[::ffff:10.0.0.1]:1": false, "127.1:80": false,
	} {
		if err := devissuer.CheckLoopback(addr); (err == nil) != ok {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	r := start(t)
	token, err := r.Token(map[string]any{"email": "alice@example.com", "name": nil})
	if err != nil {
		t.Fatal(err)
	}
	verified, claims := r.verify(token, "sigstore")
	now := float64(r.clock.Now().Unix())
	for name, want := range map[string]any{
		"iss": r.URL(), "aud": "sigstore", "email": "alice@example.com", "email_verified": true,
		"iat": now, "nbf": now, "exp": now + 600,
	} {
		if !reflect.DeepEqual(claims[name], want) {
			t.Errorf("%s is %v, want %v", name, claims[name], want)
		}
	}
	if _, has := claims["name"]; has || len(claims) != 8 {
		t.Errorf("claims %v", claims)
	}
	again, err := r.Token(map[string]any{"email": "Alice@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	if same, _ := r.verify(again, "sigstore"); same.Subject != verified.Subject || verified.Subject == "alice@example.com" {
		t.Errorf("subjects %q and %q", same.Subject, verified.Subject)
	}
	r.clock.Add(devissuer.TokenLifetime + time.Second)
	provider, err := oidc.NewProvider(oidc.ClientContext(t.Context(), r.client), r.URL())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "sigstore", Now: r.clock.Now}).Verify(t.Context(), token); err == nil {
		t.Error("an expired token verifies")
	}
	for name, claims := range map[string]map[string]any{"nobody": {}, "not JSON": {"sub": "a", "x": func() {}}} {
		if _, err := r.Token(claims); err == nil {
			t.Errorf("%s: a token was made", name)
		}
	}
}

// The issuer and a verifier live by one clock, whatever the machine's says.
func TestIssuerAndVerifierLiveByOneClock(t *testing.T) {
	t.Parallel()
	r := start(t)
	token, err := r.Token(map[string]any{"email": "alice@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	c := identity.IssuerConfig{URL: r.URL(), Audiences: []string{devissuer.DefaultAudience}, Type: identity.TypeEmail, Allow: "true", AllowInsecureLoopback: true}
	for clock, now := range map[string]func() time.Time{"the issuer's": r.clock.Now, "the machine's": nil} {
		v, err := identity.NewVerifier([]identity.IssuerConfig{c}, identity.Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Authenticate(t.Context(), token); (err == nil) != (now != nil) {
			t.Errorf("by %s clock: %v", clock, err)
		}
	}
}

// The private half of the signing key stays at home.
func TestOnlyThePublicKeyIsServed(t *testing.T) {
	t.Parallel()
	r := start(t)
	a := r.get("/keys", nil)
	if strings.Contains(a.text, `"d"`) || !strings.Contains(a.text, `"use":"sig"`) || strings.Count(a.text, `"kid"`) != 1 {
		t.Errorf("key set %s", a.text)
	}
}

func TestDirectToken(t *testing.T) {
	t.Parallel()
	r := start(t)
	a := r.get("/dev/token", url.Values{
		"email": {"alice@example.com"}, "sub": {"alice"}, "aud": {"mine"},
		"claim.kubernetes.io": {`{"namespace":"ns","serviceaccount":{"name":"sa"}}`},
		"claim.admin":         {"true"}, "claim.run": {"12345678901234567"}, "claim.quoted": {`"42"`},
		"claim.groups": {`["a","b"]`}, "claim.text": {"a b"}, "claim.almost": {"true false"}, "claim.email_verified": {"false"},
		"claim.nbf": {"null"},
	})
	if a.StatusCode != http.StatusOK || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") ||
		strings.TrimSpace(a.text) != a.text || strings.Count(a.text, ".") != 2 {
		t.Fatalf("%s %q %q", a.Status, a.Header.Get("Content-Type"), a.text)
	}
	verified, claims := r.verify(a.text, "mine")
	if verified.Subject != "alice" {
		t.Errorf("sub %q", verified.Subject)
	}
	for name, want := range map[string]any{
		"email": "alice@example.com", "email_verified": false, "admin": true, "run": 12345678901234567.0,
		"quoted": "42", "groups": []any{"a", "b"}, "text": "a b", "almost": "true false",
		"kubernetes.io": map[string]any{"namespace": "ns", "serviceaccount": map[string]any{"name": "sa"}},
	} {
		if !reflect.DeepEqual(claims[name], want) {
			t.Errorf("%s is %#v, want %#v", name, claims[name], want)
		}
	}
	if _, has := claims["nbf"]; has {
		t.Error("null left nbf in")
	}
	if verified, _ := r.verify(r.get("/dev/token", url.Values{"sub": {"a"}, "aud": {"one", "two"}}).text, "two"); len(verified.Audience) != 2 {
		t.Errorf("audience %v", verified.Audience)
	}
}

// A large number keeps its digits: the payload is read as text.
func TestDirectTokenKeepsDigits(t *testing.T) {
	t.Parallel()
	r := start(t)
	verified, _ := r.verify(r.get("/dev/token", url.Values{"sub": {"a"}, "claim.run": {"12345678901234567890"}}).text, "sigstore")
	var claims struct {
		Run json.Number `json:"run"`
	}
	if err := verified.Claims(&claims); err != nil || claims.Run != "12345678901234567890" {
		t.Errorf("run is %v, %v", claims.Run, err)
	}
}

func TestDirectTokenRefuses(t *testing.T) {
	t.Parallel()
	r := start(t)
	for name, query := range map[string]url.Values{
		"nobody":            {},
		"unknown parameter": {"sub": {"a"}, "audience": {"x"}},
		"twice":             {"sub": {"a", "b"}},
		"two ways":          {"sub": {"a"}, "claim.sub": {"b"}},
		"another issuer":    {"sub": {"a"}, "claim.iss": {"https://accounts.google.com"}},
		"no name":           {"sub": {"a"}, "claim.": {"b"}},
	} {
		if a := r.get("/dev/token", query); a.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", name, a.Status)
		}
	}
	if a := r.get("/dev/token", url.Values{"sub": {strings.Repeat("a", 20<<10)}}); a.StatusCode != http.StatusRequestURITooLong {
		t.Errorf("a long URL: %s", a.Status)
	}
	if a := r.do(r.request(http.MethodGet, "/dev/token?sub=%zz", nil)); a.StatusCode != http.StatusBadRequest {
		t.Errorf("a broken escape: %s", a.Status)
	}
}

// Pages of other origins, other names and other machines get nothing.
func TestOthersAreRefused(t *testing.T) {
	t.Parallel()
	r := start(t)
	token := "/dev/token?sub=a"
	host := strings.TrimPrefix(r.URL(), "http://")
	for name, c := range map[string]struct {
		method, path, host string
		header             []string
		want               int
	}{
		"a script":              {http.MethodGet, token, "", nil, 200},
		"the address bar":       {http.MethodGet, token, "", []string{"Sec-Fetch-Site", "none"}, 200},
		"this origin":           {http.MethodGet, token, "", []string{"Sec-Fetch-Site", "same-origin", "Origin", r.URL()}, 200},
		"another site":          {http.MethodGet, token, "", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"another port":          {http.MethodGet, token, "", []string{"Sec-Fetch-Site", "same-site"}, 403},
		"another origin":        {http.MethodGet, token, "", []string{"Origin", "https://evil.example"}, 403},
		"no origin":             {http.MethodGet, token, "", []string{"Origin", "null"}, 403},
		"a rebound name":        {http.MethodGet, token, "evil.example", nil, 421},
		"a rebound name, port":  {http.MethodGet, token, "evil.example:5556", nil, 421},
		"a name like ours":      {http.MethodGet, "/keys", "localhost.evil.example", nil, 421},
		"localhost":             {http.MethodGet, "/keys", "localhost:1234", nil, 200},
		"IPv6":                  {http.MethodGet, "/keys", "[::1]:1234", nil, 200},
		"IPv6 without port":     {http.MethodGet, "/keys", "[::1]", nil, 200},
		"own host":              {http.MethodGet, "/keys", host, nil, 200},
		"a form of another":     {http.MethodPost, "/authorize", "", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"a form, older browser": {http.MethodPost, "/device", "", []string{"Origin", "https://evil.example"}, 403},
		"a method not offered":  {http.MethodDelete, "/keys", "", nil, 405},
		"a path not offered":    {http.MethodGet, "/nothing", "", nil, 404},
		"a preflight":           {http.MethodOptions, "/dev/token", "", []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "GET"}, 405},
	} {
		request := r.request(c.method, c.path, nil, c.header...)
		if c.host != "" {
			request.Host = c.host
		}
		if a := r.do(request); a.StatusCode != c.want {
			t.Errorf("%s: %s, want %d", name, a.Status, c.want)
		}
	}
	remote := httptest.NewRequestWithContext(t.Context(), http.MethodGet, r.URL()+token, nil)
	remote.RemoteAddr = "192.0.2.1:999"
	recorder := httptest.NewRecorder()
	r.Handler().ServeHTTP(recorder, remote)
	if recorder.Code != http.StatusForbidden {
		t.Errorf("another machine got %d", recorder.Code)
	}
}

// fuzzed is a handler without a server.
type fuzzed struct{ handler http.Handler }

func newFuzzed(f *testing.F) fuzzed {
	f.Helper()
	issuer, err := devissuer.New(devissuer.Options{URL: "http://127.0.0.1:1", Key: signingKey(), Now: newClock().Now})
	if err != nil {
		f.Fatal(err)
	}
	return fuzzed{issuer.Handler()}
}

// fuzz sends the query, or the form, to the path.
func (f fuzzed) fuzz(ctx context.Context, method, path, query string) (status int, location string) {
	request := (&http.Request{
		Method: method, URL: &url.URL{Path: "/" + strings.TrimPrefix(path, "/"), RawQuery: query},
		Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		Host:   "127.0.0.1", RemoteAddr: "127.0.0.1:2", Body: io.NopCloser(strings.NewReader(query)),
	}).WithContext(ctx)
	recorder := httptest.NewRecorder()
	f.handler.ServeHTTP(recorder, request)
	return recorder.Code, recorder.Header().Get("Location")
}
