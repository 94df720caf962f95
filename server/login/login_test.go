package login_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/identity/devissuer"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server/login"
)

// rig is a site with a login at the development issuer, and a browser without a window.
type rig struct {
	*login.Login
	t       *testing.T
	options login.Options
	site    string
	browser *http.Client
	rules   string
	later   time.Duration
	granted access.Right
	failure error // of the last step
	log     strings.Builder
}

// Grant lets alice read.
func (r *rig) Grant(_ context.Context, want access.Right, token string, _ netip.Addr) (access.Grant, error) {
	r.granted = want
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	var claims struct {
		Email string `json:"email"`
	}
	if err == nil {
		err = parsed.UnsafeClaimsWithoutVerification(&claims)
	}
	if err != nil {
		return access.Grant{}, err
	}
	if claims.Email != "alice@example.com" {
		return access.Grant{SAN: claims.Email}, fault.New(fault.AccessDenied, "no rule")
	}
	return access.Grant{SAN: claims.Email, Rule: "alice"}, nil
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := devissuer.New(devissuer.Options{URL: "http://" + listener.Addr().String(), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	provider := &httptest.Server{Listener: listener, Config: &http.Server{Handler: issuer.Handler()}} // #nosec G112 -- a test
	provider.Start()
	t.Cleanup(provider.Close)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		var err error
		switch q.URL.Path {
		case login.Path:
			err = r.Begin(w, q)
		case login.Callback:
			err = r.Finish(w, q)
		case login.Logout:
			r.End(w, q)
		default:
			who, ok := r.Who(q)
			if !ok {
				who = "nobody"
			}
			_, _ = w.Write([]byte(q.URL.RequestURI() + " " + who))
		}
		if r.failure = err; err != nil {
			http.Error(w, fault.From(err).Public, http.StatusForbidden)
		}
	}))
	t.Cleanup(site.Close)
	r.site = site.URL
	r.options = login.Options{
		Config:    login.Config{Issuer: provider.URL, ClientID: "mayfly-page", KeyFile: setting.Path(filepath.Join(t.TempDir(), "page.key"))},
		PublicURL: site.URL + "/", Rights: r, Rules: func() string { return r.rules }, Client: provider.Client(), Now: func() time.Time { return time.Now().Add(r.later) }, Logger: slog.New(slog.NewTextHandler(&r.log, nil)),
	}
	r.start()
	return r
}

// start begins a process, with a browser that knows nothing.
func (r *rig) start() {
	r.t.Helper()
	var err error
	if r.Login, err = login.New(r.options); err != nil {
		r.t.Fatal(err)
	}
	jar, _ := cookiejar.New(nil)
	r.browser = &http.Client{Jar: jar}
}

func (r *rig) get(address string) (body string, at *url.URL) {
	r.t.Helper()
	response, err := r.browser.Get(address)
	if err != nil {
		r.t.Fatal(err)
	}
	return read(r.t, response), response.Request.URL
}

func read(t *testing.T, response *http.Response) string {
	t.Helper()
	defer response.Body.Close()
	var b strings.Builder
	if err := response.Write(&b); err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(b.String(), "\r\n\r\n")
	return body
}

var hidden = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// signIn follows a login to its end, and answers with what is read there.
func (r *rig) signIn(from, email string) (body string, at *url.URL) {
	r.t.Helper()
	form, page := r.get(from)
	values := url.Values{"email": {email}, "action": {"allow"}}
	for _, f := range hidden.FindAllStringSubmatch(form, -1) {
		values.Set(f[1], strings.NewReplacer("&#43;", "+", "&amp;", "&", "&#39;", "'").Replace(f[2]))
	}
	q := page.Query()
	if q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" || q.Get("state") == "" {
		r.t.Fatalf("the provider is asked without PKCE, nonce or state: %s", page)
	}
	response, err := r.browser.PostForm(page.Scheme+"://"+page.Host+"/authorize", values)
	if err != nil {
		r.t.Fatal(err)
	}
	return read(r.t, response), response.Request.URL
}

func TestReader(t *testing.T) {
	r := newRig(t)
	if body, _ := r.signIn(r.site+login.Path+"?return="+url.QueryEscape("/search?san=x"), "alice@example.com"); !strings.Contains(body, "/search?san=x alice@example.com") || r.granted != access.Read {
		t.Fatalf("alice, who signed in with the right to %q, reads %q: %v", r.granted, body, r.failure)
	}
	for _, c := range r.browser.Jar.Cookies(must(url.Parse(r.site))) {
		if strings.Contains(c.Value, "alice") {
			t.Errorf("the cookie tells: %s", c)
		}
	}
	if r.Login, _ = login.New(r.options); !strings.Contains(first(r.get(r.site)), "alice") {
		t.Error("another process of the same key doesn't know the session")
	}
	r.rules = "others"
	if body, _ := r.get(r.site); !strings.Contains(body, "nobody") {
		t.Errorf("with other rules the session goes on: %s", body)
	}
	r.rules = ""
	r.later = time.Hour + time.Second
	if body, _ := r.get(r.site); !strings.Contains(body, "nobody") {
		t.Errorf("after an hour the session goes on: %s", body)
	}
	r.later = 0
	if body, _ := r.get(r.site + login.Logout); !strings.Contains(body, "nobody") {
		t.Errorf("whoever signed out reads %s", body)
	}
}

func must[T any](v T, _ error) T { return v }
func first[A, B any](a A, _ B) A { return a }

func TestStranger(t *testing.T) {
	r := newRig(t)
	if body, _ := r.signIn(r.site+login.Path, "mallory@example.com"); !strings.Contains(body, "no rule") {
		t.Errorf("mallory reads %q", body)
	}
	if body, _ := r.get(r.site); !strings.Contains(body, "nobody") {
		t.Errorf("mallory is in: %s", body)
	}
}

// TestForged has answers that no login of this browser led to.
func TestForged(t *testing.T) {
	r := newRig(t)
	r.browser.CheckRedirect = func(q *http.Request, _ []*http.Request) error { // stops before the answer
		if q.URL.Path == login.Callback {
			return http.ErrUseLastResponse
		}
		return nil
	}
	answer := func() string {
		t.Helper()
		form, page := r.get(r.site + login.Path)
		values := url.Values{"email": {"alice@example.com"}, "action": {"allow"}}
		for _, f := range hidden.FindAllStringSubmatch(form, -1) {
			values.Set(f[1], f[2])
		}
		response, err := r.browser.PostForm(page.Scheme+"://"+page.Host+"/authorize", values)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		return response.Header.Get("Location")
	}
	old := answer()
	current := answer() // whose cookie took the place of the old one's
	for name, address := range map[string]string{
		"of another attempt":  old,
		"with another state":  regexp.MustCompile(`state=[^&]*`).ReplaceAllString(current, "state=x"),
		"without a state":     regexp.MustCompile(`state=[^&]*`).ReplaceAllString(current, ""),
		"without a code":      r.site + login.Callback,
		"with nothing at all": r.site + login.Callback + "?state=",
	} {
		cookies := r.browser.Jar.Cookies(must(url.Parse(r.site)))
		if body, _ := r.get(address); r.failure == nil {
			t.Errorf("an answer %s is taken: %s", name, body)
		}
		r.browser.Jar.SetCookies(must(url.Parse(r.site)), cookies) // for the next one
	}
	// The code of one attempt within another: PKCE and the nonce are another's.
	mixed := regexp.MustCompile(`code=[^&]*`).ReplaceAllString(current, regexp.MustCompile(`code=[^&]*`).FindString(old))
	if body, _ := r.get(mixed); r.failure == nil || !strings.Contains(body, "isn't one to this attempt") {
		t.Errorf("another's code is taken: %s", body)
	}
	if got := r.log.String(); !strings.Contains(got, "a login to the page failed") || !strings.Contains(got, "invalid_grant") {
		t.Errorf("whoever runs the CA reads of that: %s", got)
	}
	if body, _ := r.get(r.site); !strings.Contains(body, "nobody") {
		t.Errorf("somebody is in: %s", body)
	}
}

// TestCookies: one is no other, and none that was changed is taken.
func TestCookies(t *testing.T) {
	r := newRig(t)
	r.signIn(r.site+login.Path, "alice@example.com")
	at := must(url.Parse(r.site))
	session := r.browser.Jar.Cookies(at)[0]
	ask := func(value string) string {
		q, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, r.site, nil)
		q.Header.Set("Cookie", session.Name+"="+value)
		response, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		return read(t, response)
	}
	if !strings.Contains(ask(session.Value), "alice") {
		t.Fatalf("the session's cookie is %s", session)
	}
	r.get(r.site + login.Path)
	values := []string{session.Value[:len(session.Value)-2] + "AA", "", "x.y.z"}
	for _, c := range r.browser.Jar.Cookies(at) { // that of the login under way, too
		if c.Name != session.Name {
			values = append(values, c.Value)
		}
	}
	if len(values) != 4 {
		t.Errorf("there are the cookies %v", r.browser.Jar.Cookies(at))
	}
	for _, value := range values {
		if body := ask(value); !strings.Contains(body, "nobody") {
			t.Errorf("the session %q is taken: %s", value, body)
		}
	}
	r.options.PublicURL = "https://ca.example.com"
	w := httptest.NewRecorder()
	q := httptest.NewRequest(http.MethodPost, login.Logout, nil)
	must(login.New(r.options)).End(w, q)
	if set := w.Header().Get("Set-Cookie"); set != "" || w.Code != http.StatusSeeOther {
		t.Errorf("a page of another site ends a session: %d, %s", w.Code, set)
	}
	q.Header.Set("Cookie", "__Host-mayfly-session=x")
	w = httptest.NewRecorder()
	must(login.New(r.options)).End(w, q)
	if set := w.Header().Get("Set-Cookie"); !strings.HasPrefix(set, "__Host-mayfly-session=;") || !strings.Contains(set, "; Secure") || !strings.Contains(set, "; HttpOnly") || !strings.Contains(set, "SameSite=Lax") {
		t.Errorf("over https the cookie is %s", set)
	}
}

// TestReturn leads nowhere but back.
func TestReturn(t *testing.T) {
	r := newRig(t)
	for _, to := range []string{"https://evil.example/", "//evil.example", `/\evil.example`, "/\t/evil.example", "javascript:alert(1)", "", "evil", strings.Repeat("/x", 2000), "/%0d%0aSet-Cookie:x=y\r\n"} {
		_, at := r.signIn(r.site+login.Path+"?return="+url.QueryEscape(to), "alice@example.com")
		if at.Scheme+"://"+at.Host != r.site || at.Path != "/" {
			t.Errorf("return=%q leads to %s", to, at)
		}
	}
	q := httptest.NewRequest(http.MethodGet, "/search?san=x&y", nil)
	if got := login.To(q); got != "/login?return=%2Fsearch%3Fsan%3Dx%26y" {
		t.Errorf("one signs in at %s", got)
	}
}

func TestProviderDown(t *testing.T) {
	r := newRig(t)
	r.options.Config.Issuer = "http://127.0.0.1:1"
	r.start()
	if body, _ := r.get(r.site + login.Path); !strings.Contains(body, "Nobody can sign in now") {
		t.Errorf("with the provider down, %s", body)
	}
}

// TestEndlessProvider answers for as long as somebody reads.
func TestEndlessProvider(t *testing.T) {
	r := newRig(t)
	sent := 0
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		for err := error(nil); err == nil && q.Context().Err() == nil && sent < 1<<28; {
			var n int
			n, err = w.Write(make([]byte, 1<<16))
			sent += n
		}
	}))
	defer endless.Close()
	r.options.Config.Issuer = endless.URL
	r.start()
	if body, _ := r.get(r.site + login.Path); !strings.Contains(body, "Nobody can sign in now") {
		t.Errorf("with an endless answer, %s", body)
	}
	if endless.Close(); sent == 1<<28 {
		t.Error("all of an endless answer is read")
	}
}

func TestKey(t *testing.T) {
	r := newRig(t)
	file := string(r.options.Config.KeyFile)
	if info, err := os.Stat(file); err != nil || info.Size() != 32 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.WriteFile(file, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := login.New(r.options); err == nil || !strings.Contains(err.Error(), "5 bytes") {
		t.Errorf("a short key: %v", err)
	}
}
