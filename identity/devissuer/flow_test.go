package devissuer_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/mayfly-ca/mayfly/identity/devissuer"
)

const callback = "http://localhost:41234/auth/callback"

// signIn opens the login page at the address, fills it in as a browser would,
// and returns where the answer redirects.
func (r *running) signIn(address, email string) *url.URL {
	r.t.Helper()
	path := strings.TrimPrefix(address, r.URL())
	page := r.do(r.request(http.MethodGet, path, nil))
	if page.StatusCode != http.StatusOK {
		r.t.Fatalf("login page: %s %s", page.Status, page.text)
	}
	form := hidden(page.text)
	form.Set("email", email)
	a := r.post("/authorize", form, "Origin", r.URL())
	location, err := a.Location()
	if err != nil || a.StatusCode != http.StatusSeeOther {
		r.t.Fatalf("no redirect: %s %s", a.Status, a.text)
	}
	return location
}

var hiddenInput = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// hidden reads a page's hidden fields.
func hidden(page string) url.Values {
	values := url.Values{}
	for _, m := range hiddenInput.FindAllStringSubmatch(page, -1) {
		values.Set(html.UnescapeString(m[1]), html.UnescapeString(m[2]))
	}
	return values
}

// The code flow with PKCE, with x/oauth2 as the client and go-oidc as the verifier.
func TestCodeFlow(t *testing.T) {
	t.Parallel()
	for _, redirect := range []string{callback, "http://127.0.0.1:1/", "http://[::1]:8080/cb", "http://localhost/?keep=me"} {
		t.Run(redirect, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			ctx, config := r.oauth(redirect)
			verifier := oauth2.GenerateVerifier()
			location := r.signIn(config.AuthCodeURL(`st"<&te`, oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", "n-1")), "alice@example.com")
			if !strings.HasPrefix(location.String(), strings.Split(redirect, "?")[0]) || location.Query().Get("state") != `st"<&te` {
				t.Fatalf("sent back to %s", location)
			}
			if strings.Contains(redirect, "keep") && location.Query().Get("keep") != "me" {
				t.Errorf("the query was lost: %s", location)
			}
			token, err := config.Exchange(ctx, location.Query().Get("code"), oauth2.VerifierOption(verifier))
			if err != nil {
				t.Fatal(err)
			}
			raw, ok := token.Extra("id_token").(string)
			if !ok || token.TokenType != "Bearer" {
				t.Fatalf("token %v", token)
			}
			verified, claims := r.verify(raw, "sigstore")
			if verified.Nonce != "n-1" || claims["email"] != "alice@example.com" || claims["email_verified"] != true {
				t.Errorf("claims %v", claims)
			}
			if err := verified.VerifyAccessToken(token.AccessToken); err != nil {
				t.Error(err)
			}
			// What sigstore-python takes for the identity token.
			if _, claims := r.verify(token.AccessToken, "sigstore"); claims["email"] != "alice@example.com" || claims["at_hash"] != nil {
				t.Errorf("the access token's claims %v", claims)
			}
			if _, err := config.Exchange(ctx, location.Query().Get("code"), oauth2.VerifierOption(verifier)); err == nil {
				t.Error("a code was redeemed twice")
			}
		})
	}
}

// request is a good authorization request, with changes.
func (r *running) authorization(verifier string, change url.Values) url.Values {
	sum := sha256.Sum256([]byte(verifier))
	values := url.Values{
		"response_type": {"code"}, "client_id": {"sigstore"}, "redirect_uri": {callback}, "scope": {"openid email"},
		"state": {"s"}, "code_challenge_method": {"S256"}, "code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])},
	}
	for name, v := range change {
		values[name] = v
	}
	return values
}

// Faults of the client or its address are shown; the others go back to it.
func TestAuthorizeRefuses(t *testing.T) {
	t.Parallel()
	r := start(t)
	for name, change := range map[string]url.Values{
		"no client":              {"client_id": {""}},
		"no redirect":            {"redirect_uri": {""}},
		"https elsewhere":        {"redirect_uri": {"https://evil.example/cb"}},
		"http elsewhere":         {"redirect_uri": {"http://evil.example/cb"}},
		"a name like localhost":  {"redirect_uri": {"http://localhost.evil.example/"}},
		"localhost as user info": {"redirect_uri": {"http://localhost:80@evil.example/"}},
		"user info":              {"redirect_uri": {"http://a@localhost/"}},
		"a fragment":             {"redirect_uri": {"http://localhost/#f"}},
		"an empty fragment":      {"redirect_uri": {"http://localhost/#"}},
		"a script":               {"redirect_uri": {"javascript:alert(1)"}},
		"own scheme":             {"redirect_uri": {"app://localhost/"}},
		"a new line":             {"redirect_uri": {"http://localhost/\r\nX: y"}},
		"a repeated parameter":   {"state": {"a", "b"}},
		"a long parameter":       {"state": {strings.Repeat("s", 5<<10)}},
	} {
		for _, a := range []answer{
			r.get("/authorize", r.authorization("v", change)),
			r.post("/authorize", r.authorization("v", change)),
		} {
			if a.StatusCode != http.StatusBadRequest || a.Header.Get("Location") != "" {
				t.Errorf("%s: %s to %q", name, a.Status, a.Header.Get("Location"))
			}
		}
	}
	for name, c := range map[string]struct {
		change url.Values
		code   string
	}{
		"no PKCE":           {url.Values{"code_challenge": {""}, "code_challenge_method": {""}}, "invalid_request"},
		"plain PKCE":        {url.Values{"code_challenge_method": {"plain"}}, "invalid_request"},
		"PKCE by default":   {url.Values{"code_challenge_method": {""}}, "invalid_request"},
		"a short challenge": {url.Values{"code_challenge": {"abc"}}, "invalid_request"},
		"not base64url":     {url.Values{"code_challenge": {strings.Repeat("+", 43)}}, "invalid_request"},
		"implicit flow":     {url.Values{"response_type": {"id_token"}}, "unsupported_response_type"},
		"no openid":         {url.Values{"scope": {"email"}}, "invalid_scope"},
	} {
		location, err := r.get("/authorize", r.authorization("v", c.change)).Location()
		if err != nil || location.Query().Get("error") != c.code || location.Query().Get("state") != "s" || location.Query().Get("code") != "" {
			t.Errorf("%s: %v, %v", name, location, err)
		}
	}
	for _, email := range []string{"", "alice", "@example.com", "alice@", "a@b@c", "a b@c", "a@b,c@d", strings.Repeat("a", 250) + "@example.com"} {
		a := r.post("/authorize", r.authorization("v", url.Values{"email": {email}}))
		if a.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(a.text, `role="alert"`) || hidden(a.text).Get("state") != "s" {
			t.Errorf("%q: %s", email, a.Status)
		}
	}
}

// A code works once, for its client, its address, its verifier, within a minute.
func TestTokenRefuses(t *testing.T) {
	t.Parallel()
	r := start(t)
	verifier := oauth2.GenerateVerifier()
	code := func() string {
		location, err := r.post("/authorize", r.authorization(verifier, url.Values{"email": {"a@b.example"}})).Location()
		if err != nil {
			t.Fatal(err)
		}
		return location.Query().Get("code")
	}
	good := func() url.Values {
		return url.Values{"grant_type": {"authorization_code"}, "client_id": {"sigstore"}, "redirect_uri": {callback},
			"code_verifier": {verifier}, "code": {code()}}
	}
	if a := r.post("/token", good()); a.StatusCode != http.StatusOK || a.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("a good request: %s %s", a.Status, a.text)
	}
	for name, c := range map[string]struct{ parameter, value, want string }{
		"another client":     {"client_id", "other", "invalid_grant"},
		"another address":    {"redirect_uri", "http://localhost:1/", "invalid_grant"},
		"no address":         {"redirect_uri", "", "invalid_grant"},
		"another verifier":   {"code_verifier", oauth2.GenerateVerifier(), "invalid_grant"},
		"no verifier":        {"code_verifier", "", "invalid_grant"},
		"a short verifier":   {"code_verifier", "short", "invalid_grant"},
		"an unknown code":    {"code", "unknown", "invalid_grant"},
		"no code":            {"code", "", "invalid_grant"},
		"no client":          {"client_id", "", "invalid_request"},
		"a password":         {"grant_type", "password", "unsupported_grant_type"},
		"no grant":           {"grant_type", "", "unsupported_grant_type"},
		"a client's own":     {"grant_type", "client_credentials", "unsupported_grant_type"},
		"unknown devices":    {"grant_type", "urn:ietf:params:oauth:grant-type:device_code", "invalid_grant"},
		"the verifier again": {"code_challenge", "plain", ""},
	} {
		form := good()
		form.Set(c.parameter, c.value)
		a := r.post("/token", form)
		if c.want == "" {
			if a.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", name, a.text)
			}
			continue
		}
		a.wantError(t, c.want)
		if c.want == "invalid_grant" && c.parameter != "code" && c.parameter != "grant_type" {
			r.post("/token", url.Values{"grant_type": {"authorization_code"}, "client_id": {"sigstore"}, "redirect_uri": {callback},
				"code_verifier": {verifier}, "code": {form.Get("code")}}).wantError(t, "invalid_grant") // one try
		}
	}
	late := good()
	r.clock.Add(time.Minute)
	r.post("/token", late).wantError(t, "invalid_grant")
	r.post("/token", url.Values{"code": {strings.Repeat("x", 40<<10)}}).wantError(t, "invalid_request")
	if a := r.get("/token", good()); a.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET /token: %s", a.Status)
	}
}

// Codes outstanding are bounded: the oldest makes room.
func TestCodesAreBounded(t *testing.T) {
	t.Parallel()
	r := start(t)
	verifier := oauth2.GenerateVerifier()
	var codes []string
	for range 300 {
		location, err := r.post("/authorize", r.authorization(verifier, url.Values{"email": {"a@b.example"}})).Location()
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, location.Query().Get("code"))
		r.clock.Add(time.Millisecond)
	}
	redeem := func(code string) answer {
		return r.post("/token", url.Values{"grant_type": {"authorization_code"}, "client_id": {"sigstore"},
			"redirect_uri": {callback}, "code_verifier": {verifier}, "code": {code}})
	}
	redeem(codes[0]).wantError(t, "invalid_grant")
	redeem(codes[300-257]).wantError(t, "invalid_grant")
	for _, live := range []string{codes[300-256], codes[299]} {
		if a := redeem(live); a.StatusCode != http.StatusOK {
			t.Errorf("a live code: %s", a.text)
		}
	}
}

// A client without a browser or a listener has the code shown.
func TestOutOfBand(t *testing.T) {
	t.Parallel()
	r := start(t)
	verifier := oauth2.GenerateVerifier()
	oob := "urn:ietf:wg:oauth:2.0:oob"
	page := r.post("/authorize", r.authorization(verifier, url.Values{"redirect_uri": {oob}, "email": {"a@b.example"}}))
	m := regexp.MustCompile(`<output[^>]*>([A-Z0-9]+)</output>`).FindStringSubmatch(page.text)
	if m == nil {
		t.Fatalf("no code: %s %s", page.Status, page.text)
	}
	a := r.post("/token", url.Values{"grant_type": {"authorization_code"}, "client_id": {"sigstore"}, "redirect_uri": {oob},
		"code_verifier": {verifier}, "code": {m[1]}})
	if a.StatusCode != http.StatusOK {
		t.Errorf("%s", a.text)
	}
	if a := r.get("/authorize", r.authorization(verifier, url.Values{"redirect_uri": {oob}, "scope": {"x"}})); a.StatusCode != http.StatusBadRequest {
		t.Errorf("%s", a.Status)
	}
}

// What a page shows is escaped, nothing is loaded, and only the one style applies.
func TestPages(t *testing.T) {
	t.Parallel()
	r := start(t)
	evil := `"><script>alert(1)</script>`
	pages := map[string]answer{
		"login":  r.get("/authorize", r.authorization("v", url.Values{"client_id": {evil}, "state": {evil}, "login_hint": {evil}})),
		"device": r.get("/device", url.Values{"user_code": {evil}}),
		"again":  r.post("/device", url.Values{"user_code": {evil}, "email": {evil}, "name": {evil}}),
		"fault":  r.get("/authorize", url.Values{"client_id": {evil}}),
		"index":  r.get("/", nil),
		"v6":     r.get("/authorize", r.authorization("v", url.Values{"redirect_uri": {"http://[::1]:9/"}})),
	}
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`)
	for name, a := range pages {
		policy := a.Header.Get("Content-Security-Policy")
		m := style.FindStringSubmatch(a.text)
		if m == nil {
			t.Fatalf("%s: no style in %s", name, a.text)
		}
		sum := sha256.Sum256([]byte(m[1]))
		want := fmt.Sprintf("style-src 'sha256-%s'", base64.StdEncoding.EncodeToString(sum[:]))
		if !strings.HasPrefix(policy, "default-src 'none'; "+want) || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q, want %q in it", name, policy, want)
		}
		if strings.Contains(a.text, "<script") || strings.Contains(a.text, "ZgotmplZ") || strings.Contains(a.text, " src=") || strings.Contains(m[1], "url(") {
			t.Errorf("%s: %s", name, a.text)
		}
		for header, want := range map[string]string{"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff",
			"Referrer-Policy": "same-origin", "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"} {
			if got := a.Header.Get(header); got != want {
				t.Errorf("%s: %s is %q, want %q", name, header, got, want)
			}
		}
		for _, m := range regexp.MustCompile(`<input id="([^"]+)"`).FindAllStringSubmatch(a.text, -1) {
			if !strings.Contains(a.text, `<label for="`+m[1]+`"`) {
				t.Errorf("%s: the field %s has no label", name, m[1])
			}
		}
	}
	for name, want := range map[string]string{
		"login": "form-action 'self' http://localhost:41234", "v6": "form-action 'self' http:", "device": "form-action 'self'"} {
		if policy := pages[name].Header.Get("Content-Security-Policy"); !strings.HasSuffix(policy, want) {
			t.Errorf("%s: policy %q doesn't end with %q", name, policy, want)
		}
	}
}

// The device flow, with x/oauth2 as the client and go-oidc as the verifier.
func TestDeviceFlow(t *testing.T) {
	t.Parallel()
	r := start(t)
	ctx, config := r.oauth("")
	verifier := oauth2.GenerateVerifier()
	device, err := config.DeviceAuth(ctx, oauth2.S256ChallengeOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	if device.Interval != 1 || device.VerificationURI != r.URL()+"/device" || !strings.HasSuffix(device.VerificationURIComplete, device.UserCode) {
		t.Errorf("device authorization %+v", device)
	}
	page := r.do(r.request(http.MethodGet, strings.TrimPrefix(device.VerificationURIComplete, r.URL()), nil))
	if !strings.Contains(page.text, device.UserCode) {
		t.Errorf("the page doesn't show the code: %s", page.text)
	}
	typed := strings.ToLower(strings.ReplaceAll(device.UserCode, "-", " "))
	if a := r.post("/device", url.Values{"user_code": {typed}, "email": {"alice@example.com"}, "name": {"Alice"}, "action": {"allow"}}); a.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", a.Status, a.text)
	}
	token, err := config.DeviceAccessToken(ctx, device, oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := token.Extra("id_token").(string)
	if _, claims := r.verify(raw, "sigstore"); claims["email"] != "alice@example.com" || claims["name"] != "Alice" {
		t.Errorf("claims %v", claims)
	}
}

// startDevice begins a device authorization by hand.
func (r *running) startDevice(extra url.Values) (deviceCode, userCode string) {
	r.t.Helper()
	form := url.Values{"client_id": {"sigstore"}, "scope": {"openid email"}}
	for name, v := range extra {
		form[name] = v
	}
	a := r.post("/device_authorization", form)
	var d struct {
		DeviceCode string `json:"device_code"`
		UserCode   string `json:"user_code"`
	}
	if err := json.Unmarshal([]byte(a.text), &d); err != nil || a.StatusCode != http.StatusOK || d.DeviceCode == "" {
		r.t.Fatalf("%s %s", a.Status, a.text)
	}
	return d.DeviceCode, d.UserCode
}

func (r *running) poll(deviceCode string, extra ...string) answer {
	r.t.Helper()
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "client_id": {"sigstore"}, "device_code": {deviceCode}}
	for i := 0; i < len(extra); i += 2 {
		form.Set(extra[i], extra[i+1])
	}
	return r.post("/token", form)
}

// Every answer to a poll (RFC 8628 §3.5).
func TestDevicePolling(t *testing.T) {
	t.Parallel()
	r := start(t)
	code, userCode := r.startDevice(nil)
	r.poll(code).wantError(t, "authorization_pending")
	r.poll(code).wantError(t, "slow_down")
	r.clock.Add(2 * time.Second) // too early now: the interval is 6 seconds
	r.poll(code).wantError(t, "slow_down")
	r.clock.Add(12 * time.Second)
	r.poll(code).wantError(t, "authorization_pending")
	r.poll(code, "client_id", "other").wantError(t, "invalid_grant")
	if a := r.post("/device", url.Values{"user_code": {userCode}, "email": {"nobody"}}); a.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a bad email: %s", a.Status)
	}
	if a := r.post("/device", url.Values{"user_code": {userCode}, "email": {"a@b.example"}}); a.StatusCode != http.StatusOK {
		t.Errorf("%s", a.Status)
	}
	if a := r.post("/device", url.Values{"user_code": {userCode}, "email": {"mallory@b.example"}}); a.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a code was used twice: %s", a.Status)
	}
	r.poll(code, "client_id", "other").wantError(t, "invalid_grant")
	if a := r.poll(code); a.StatusCode != http.StatusOK {
		t.Errorf("%s", a.text)
	}
	r.poll(code).wantError(t, "invalid_grant")

	refused, userCode := r.startDevice(nil)
	if a := r.post("/device", url.Values{"user_code": {userCode}, "action": {"deny"}}); a.StatusCode != http.StatusOK {
		t.Errorf("%s", a.Status)
	}
	r.poll(refused).wantError(t, "access_denied")

	late, userCode := r.startDevice(nil)
	r.clock.Add(10 * time.Minute)
	r.poll(late).wantError(t, "expired_token")
	if a := r.post("/device", url.Values{"user_code": {userCode}, "email": {"a@b.example"}}); a.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("an expired code was let in: %s", a.Status)
	}
	r.poll("unknown").wantError(t, "invalid_grant")
	for _, typed := range []string{"", "----", "BCDF-BCDF"} {
		if a := r.post("/device", url.Values{"user_code": {typed}, "email": {"a@b.example"}}); a.StatusCode != http.StatusUnprocessableEntity {
			t.Errorf("%q: %s", typed, a.Status)
		}
	}
}

func TestDeviceRefuses(t *testing.T) {
	t.Parallel()
	r := start(t)
	verifier := oauth2.GenerateVerifier()
	challenge := r.authorization(verifier, nil).Get("code_challenge")
	for name, c := range map[string]struct {
		form url.Values
		want string
	}{
		"no client":  {url.Values{"scope": {"openid"}}, "invalid_request"},
		"no openid":  {url.Values{"client_id": {"a"}}, "invalid_scope"},
		"plain PKCE": {url.Values{"client_id": {"a"}, "scope": {"openid"}, "code_challenge": {challenge}, "code_challenge_method": {"plain"}}, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) { r.post("/device_authorization", c.form).wantError(t, c.want) })
	}
	code, userCode := r.startDevice(url.Values{"code_challenge": {challenge}, "code_challenge_method": {"S256"}})
	if a := r.post("/device", url.Values{"user_code": {userCode}, "email": {"a@b.example"}}); a.StatusCode != http.StatusOK {
		t.Errorf("%s", a.Status)
	}
	r.poll(code).wantError(t, "invalid_grant")
	r.poll(code, "code_verifier", oauth2.GenerateVerifier()).wantError(t, "invalid_grant")
	if a := r.poll(code, "code_verifier", verifier); a.StatusCode != http.StatusOK {
		t.Errorf("%s", a.text)
	}
	var first string
	for i := range 257 {
		code, _ := r.startDevice(nil)
		if i == 0 {
			first = code
		}
		r.clock.Add(time.Millisecond)
	}
	r.poll(first).wantError(t, "invalid_grant")
}

// FuzzForms: whatever is sent, no handler fails as ours, and no redirect leaves
// loopback.
func FuzzForms(f *testing.F) {
	issuer := newFuzzed(f)
	f.Add("/authorize", "response_type=code&client_id=a&redirect_uri=http://localhost/&scope=openid&email=a@b")
	f.Add("/token", "grant_type=authorization_code&code=x")
	f.Add("/device", "user_code=BCDF&email=a@b")
	f.Add("/device_authorization", "client_id=a&scope=openid")
	f.Add("/dev/token", "sub=a&claim.x=[1,{}]")
	f.Fuzz(func(t *testing.T, path, query string) {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			status, location := issuer.fuzz(context.WithoutCancel(t.Context()), method, path, query)
			if status >= 500 {
				t.Errorf("%s %q %q: %d", method, path, query, status)
			}
			if location == "" || status != http.StatusSeeOther {
				continue
			}
			if u, err := url.Parse(location); err != nil || u.Scheme != "http" || u.User != nil ||
				devissuer.CheckLoopback(net.JoinHostPort(u.Hostname(), "1")) != nil {
				t.Errorf("%s %q %q redirects to %q", method, path, query, location)
			}
		}
	})
}
