package client

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/identity/devissuer"
)

// startIssuer runs the development issuer on a free port. front may answer in
// its place.
func startIssuer(t *testing.T, front func(next http.Handler) http.Handler) string {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	url := "http://" + server.Listener.Addr().String()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := devissuer.New(devissuer.Options{URL: url, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = issuer.Handler()
	if front != nil {
		server.Config.Handler = front(issuer.Handler())
	}
	server.Start()
	t.Cleanup(server.Close)
	return url
}

// person fills in the login form at a URL as a browser would, follows the
// redirect, and returns the last page's status.
func person(t *testing.T, at string, fields url.Values) int {
	t.Helper()
	hc := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	page := fetch(t, hc, http.MethodGet, at, nil)
	hidden := regexp.MustCompile(`<input type="hidden" name="([^"]+)" value="([^"]*)"`)
	for _, m := range hidden.FindAllStringSubmatch(page.body, -1) {
		fields.Set(m[1], strings.NewReplacer("&amp;", "&", "&#43;", "+", "&#34;", `"`).Replace(m[2]))
	}
	u, err := url.Parse(at)
	if err != nil {
		t.Error(err)
		return 0
	}
	return fetch(t, hc, http.MethodPost, u.Scheme+"://"+u.Host+u.Path, fields).status
}

type fetched struct {
	status int
	body   string
}

func fetch(t *testing.T, hc *http.Client, method, at string, form url.Values) fetched {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, at, strings.NewReader(form.Encode()))
	if err != nil {
		t.Error(err)
		return fetched{}
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := hc.Do(req)
	if err != nil {
		t.Error(err)
		return fetched{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return fetched{resp.StatusCode, string(body)}
}

// inBackground runs what a person does while the command waits, and joins it
// at the end of the test.
func inBackground(t *testing.T, f func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	t.Cleanup(func() { <-done })
}

func TestBrowserLogin(t *testing.T) {
	t.Parallel()
	for _, redirect := range []string{"", "http://localhost/back", "http://127.0.0.1:0/"} {
		t.Run(redirect, func(t *testing.T) {
			t.Parallel()
			var said []string
			l := &Login{
				Issuer: startIssuer(t, nil), ClientID: "sigstore", RedirectURL: redirect, HTTP: newHTTP(t),
				Say: func(s string) { said = append(said, s) },
				Open: func(at string) error {
					inBackground(t, func() {
						if status := person(t, at, url.Values{"email": {"alice@example.com"}}); status != http.StatusOK {
							t.Errorf("the last page answered %d", status)
						}
					})
					return nil
				},
			}
			raw, err := l.Browser(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			token, err := ParseToken(raw)
			if err != nil || token.Email != "alice@example.com" || token.Issuer != l.Issuer {
				t.Errorf("got %v, %v", token, err)
			}
			if len(said) != 1 || !strings.Contains(said[0], "code_challenge_method=S256") || strings.Contains(said[0], raw) {
				t.Errorf("said %v", said)
			}
		})
	}
}

// The person opens the address by hand where no browser can be started.
func TestBrowserThatCantBeOpened(t *testing.T) {
	t.Parallel()
	said := make(chan string, 4)
	l := &Login{
		Issuer: startIssuer(t, nil), ClientID: "sigstore", HTTP: newHTTP(t),
		Say:  func(s string) { said <- s },
		Open: func(string) error { return errors.New("xdg-open is not installed") },
	}
	inBackground(t, func() {
		at := strings.TrimPrefix(<-said, "log in at ")
		if !strings.Contains(<-said, "open the address yourself") {
			t.Error("it isn't said that no browser was opened")
		}
		person(t, at, url.Values{"email": {"alice@example.com"}})
	})
	if _, err := l.Browser(t.Context()); err != nil {
		t.Error(err)
	}
}

// visit knocks at the redirect URL of the login URL at with the given answer.
func visit(t *testing.T, at string, answer url.Values) int {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Error(err)
		return 0
	}
	if answer.Get("state") == "right" {
		answer.Set("state", u.Query().Get("state"))
	}
	hc := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return fetch(t, hc, http.MethodGet, u.Query().Get("redirect_uri")+"?"+answer.Encode(), nil).status
}

// announcing has an issuer say that its answers name it (RFC 9207), and name
// answered in them.
func announcing(answered string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			body := rec.Body.Bytes()
			if strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration") {
				var document map[string]any
				if json.Unmarshal(body, &document) == nil {
					document["authorization_response_iss_parameter_supported"] = true
					body, _ = json.Marshal(document)
				}
				rec.Header().Del("Content-Length")
			}
			for name, values := range rec.Header() {
				w.Header()[name] = values
			}
			if at, err := url.Parse(rec.Header().Get("Location")); err == nil && at.Query().Has("code") {
				q := at.Query()
				q.Del("iss")
				if answered == "self" {
					q.Set("iss", "http://"+r.Host)
				} else if answered != "" {
					q.Set("iss", answered)
				}
				at.RawQuery = q.Encode()
				w.Header().Set("Location", at.String())
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(body)
		})
	}
}

// TestAnnouncedIssuerIsRequired: where the issuer says that its answers name it, one
// that doesn't isn't taken (RFC 9207 §2.4).
func TestAnnouncedIssuerIsRequired(t *testing.T) {
	t.Parallel()
	for answered, want := range map[string]string{"self": "", "": "doesn't say that it is by", "https://evil.example": "another issuer"} {
		l := &Login{Issuer: startIssuer(t, announcing(answered)), ClientID: "sigstore", HTTP: newHTTP(t), Say: func(string) {}}
		l.Open = func(at string) error {
			inBackground(t, func() { person(t, at, url.Values{"email": {"alice@example.com"}}) })
			return nil
		}
		_, err := l.Browser(t.Context())
		var e *Error
		if want == "" && err != nil || want != "" && (!errors.As(err, &e) || e.Kind != Unverified || !strings.Contains(err.Error(), want)) {
			t.Errorf("iss %q: %v", answered, err)
		}
	}
}

func TestBrowserLoginFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answers []url.Values
		status  []int
		kind    Kind
		want    string
	}{
		"refused":                {[]url.Values{{"state": {"right"}, "error": {"access_denied"}, "error_description": {"not you"}}}, []int{200}, Refused, "access_denied not you"},
		"nothing":                {[]url.Values{{"state": {"right"}}}, []int{200}, Refused, "neither"},
		"an unknown code":        {[]url.Values{{"state": {"right"}, "code": {"guess"}}}, []int{200}, Refused, "invalid_grant"},
		"another issuer":         {[]url.Values{{"state": {"right"}, "code": {"x"}, "iss": {"https://evil.example"}}}, []int{200}, Unverified, "another issuer"},
		"forged, then the right": {[]url.Values{{"state": {"forged"}, "code": {"x"}}, {"code": {"x"}}, {"state": {"right"}, "error": {"e"}}}, []int{400, 400, 200}, Refused, "refused the login: e"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &Login{Issuer: startIssuer(t, nil), ClientID: "sigstore", HTTP: newHTTP(t), Say: func(string) {}}
			l.Open = func(at string) error {
				inBackground(t, func() {
					for i, a := range c.answers {
						if status := visit(t, at, a); status != c.status[i] {
							t.Errorf("answer %d got %d", i, status)
						}
					}
				})
				return nil
			}
			_, err := l.Browser(t.Context())
			var e *Error
			if !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestNobodyLogsIn(t *testing.T) {
	t.Parallel()
	l := &Login{Issuer: startIssuer(t, nil), ClientID: "sigstore", HTTP: newHTTP(t)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	l.Say = func(string) {}
	l.Open = func(string) error { cancel(); return nil }
	if _, err := l.Browser(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	l.Open = nil
	var e *Error
	if _, err := l.Browser(ctx); !errors.As(err, &e) || e.Kind != Unavailable {
		t.Errorf("deadline: %v", err)
	}
}

func TestDeviceLogin(t *testing.T) {
	t.Parallel()
	for name, approve := range map[string]bool{"approved": true, "denied": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &Login{Issuer: startIssuer(t, nil), ClientID: "sigstore", HTTP: newHTTP(t)}
			l.Say = func(line string) {
				at, found := strings.CutPrefix(line, "or open ")
				if !found {
					return
				}
				u, err := url.Parse(at)
				if err != nil {
					t.Error(err)
					return
				}
				fields := url.Values{"email": {"bob@example.com"}, "user_code": {u.Query().Get("user_code")}}
				if !approve {
					fields.Set("action", "deny")
				}
				person(t, at, fields) // before the first poll
			}
			raw, err := l.Device(t.Context())
			if !approve {
				var e *Error
				if !errors.As(err, &e) || e.Kind != Refused || !strings.Contains(err.Error(), "access_denied") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if token, err := ParseToken(raw); err != nil || token.Email != "bob@example.com" {
				t.Errorf("got %v, %v", token, err)
			}
		})
	}
}

// discoveryWith changes fields of the discovery document.
func discoveryWith(change map[string]any) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/.well-known/openid-configuration" {
				next.ServeHTTP(w, r)
				return
			}
			recorder := httptest.NewRecorder()
			next.ServeHTTP(recorder, r)
			document := map[string]any{}
			_ = json.Unmarshal(recorder.Body.Bytes(), &document)
			for name, value := range change {
				if value == nil {
					delete(document, name)
				} else {
					document[name] = value
				}
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(document)
		})
	}
}

func TestHostileDiscovery(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change map[string]any
		device bool
		want   string
	}{
		"another issuer":       {map[string]any{"issuer": "https://evil.example"}, false, "calls itself"},
		"file URL":             {map[string]any{"authorization_endpoint": "file:///etc/passwd"}, false, "authorization endpoint"},
		"script URL":           {map[string]any{"authorization_endpoint": "javascript:alert(1)"}, false, "authorization endpoint"},
		"plaintext to log in":  {map[string]any{"authorization_endpoint": "http://evil.example/"}, false, "authorization endpoint"},
		"plaintext for tokens": {map[string]any{"token_endpoint": "http://evil.example/"}, false, "token endpoint"},
		"no device flow":       {map[string]any{"device_authorization_endpoint": nil}, true, "no device flow"},
		"plaintext device":     {map[string]any{"device_authorization_endpoint": "http://evil.example/"}, true, "device authorization endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &Login{
				Issuer: startIssuer(t, discoveryWith(c.change)), ClientID: "sigstore", HTTP: newHTTP(t), Say: func(string) {},
				Open: func(string) error { t.Error("the browser was opened"); return nil },
			}
			flow := l.Browser
			if c.device {
				flow = l.Device
			}
			if _, err := flow(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A token that was made for another login is refused: the issuer's token
// endpoint is replaced by one that answers with a token of its direct endpoint.
func TestTokenOfAnotherLogin(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ query, want string }{
		"no nonce":         {"email=mallory@example.com", "nonce"},
		"another nonce":    {"email=mallory@example.com&claim.nonce=x", "nonce"},
		"another audience": {"email=mallory@example.com&aud=other", "not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &Login{ClientID: "sigstore", HTTP: newHTTP(t), Say: func(string) {}}
			l.Issuer = startIssuer(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method != http.MethodPost || !strings.Contains(r.URL.Path, "token") {
						next.ServeHTTP(w, r)
						return
					}
					direct := httptest.NewRequestWithContext(r.Context(), http.MethodGet, l.Issuer+"/dev/token?"+c.query, nil)
					direct.RemoteAddr = r.RemoteAddr
					recorder := httptest.NewRecorder()
					next.ServeHTTP(recorder, direct)
					w.Header().Set("Content-Type", "application/json")
					_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": strings.TrimSpace(recorder.Body.String())})
				})
			})
			l.Open = func(at string) error {
				inBackground(t, func() { visit(t, at, url.Values{"state": {"right"}, "code": {"any"}}) })
				return nil
			}
			_, err := l.Browser(t.Context())
			var e *Error
			if !errors.As(err, &e) || e.Kind != Unverified || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRedirectURLMustBeLoopback(t *testing.T) {
	t.Parallel()
	for _, redirect := range []string{"https://127.0.0.1/", "http://example.com/", "http://0.0.0.0/", "http://127.0.0.1/?q", "http://127.0.0.1/#f", "http://u@127.0.0.1/", ":"} {
		l := &Login{Issuer: startIssuer(t, nil), ClientID: "sigstore", HTTP: newHTTP(t), Say: func(string) {}, RedirectURL: redirect}
		var e *Error
		if _, err := l.Browser(t.Context()); !errors.As(err, &e) || e.Kind != Misused {
			t.Errorf("%s: got %v", redirect, err)
		}
	}
}

func TestIssuerThatIsNotThere(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	l := &Login{Issuer: server.URL, ClientID: "sigstore", HTTP: newHTTP(t), Say: func(string) {}}
	var e *Error
	if _, err := l.Browser(t.Context()); !errors.As(err, &e) || e.Kind != Unavailable || e.Fix == "" {
		t.Errorf("got %v", err)
	}
}
