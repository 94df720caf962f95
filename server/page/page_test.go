package page_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/html"
	"google.golang.org/grpc/peer"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server"
	"github.com/mayfly-ca/mayfly/server/login"
	"github.com/mayfly-ca/mayfly/server/page"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// rig is a page over made-up certificates.
type rig struct {
	t       *testing.T
	options page.Options
	page    *page.Page

	found   []index.Certificate
	next    string
	asked   []index.Query
	failure error         // of the index
	hang    chan struct{} // until it is closed, the index doesn't answer; nil: it does
	der     []byte        // that the log shows; nil: it shows nothing
	sleeps  bool          // the log doesn't answer
	refused []audit.Event
	health  page.Health
	history trustroot.History
}

func (r *rig) Search(ctx context.Context, q index.Query) (index.Page, error) {
	r.asked = append(r.asked, q)
	if r.hang != nil {
		select {
		case <-r.hang:
		case <-ctx.Done():
			return index.Page{}, ctx.Err()
		}
	}
	fits := func(c index.Certificate) bool { // as exact conditions have it
		return !slices.ContainsFunc(q.Filters, func(f index.Filter) bool {
			return !f.Prefix && f.Field != "certificate_fingerprint" && c.Fields[f.Field] != f.Value
		})
	}
	for _, f := range q.Filters {
		if !slices.Contains(index.Fields, f.Field) { // in the index's words
			return index.Page{}, fault.New(fault.RequestMalformed, "there is no field of that name")
		}
	}
	var p index.Page
	for _, c := range r.found {
		if fits(c) {
			p.Certificates = append(p.Certificates, c)
		}
	}
	p.Next = r.next
	return p, r.failure
}

func (r *rig) Counts(context.Context, time.Time) ([]index.Count, error) {
	var all []index.Count
	for _, c := range r.found {
		all = append(all, index.Count{Hour: c.NotBefore.Truncate(time.Hour), Issuer: c.Fields["issuer"], Number: 1})
	}
	return all, r.failure
}

func (r *rig) Show(ctx context.Context, _ [32]byte, n uint64) (follow.Shown, error) {
	if r.sleeps {
		<-ctx.Done()
		return follow.Shown{}, ctx.Err()
	}
	if r.der == nil {
		return follow.Shown{}, errors.New("the log <b>sleeps</b>")
	}
	return follow.Shown{Entry: follow.Entry{Index: n, Timestamp: noon, Certificate: r.der}, Submitted: r.der, Size: 7, Signed: noon}, nil
}

func (r *rig) Trust() (trustroot.History, []byte, error)       { return r.history, []byte("root"), nil }
func (r *rig) Health(context.Context) page.Health              { return r.health }
func (r *rig) Refusals(context.Context) ([]audit.Event, error) { return slices.Clone(r.refused), nil }
func (r *rig) get(path string) (code int, body string) {
	w := r.ask(path, nil)
	return w.Code, w.Body.String()
}
func (r *rig) must(path string) (body string) { return r.says(http.StatusOK, path) }

func newRig(t *testing.T, c page.Config) *rig {
	t.Helper()
	r := &rig{t: t}
	r.options = page.Options{
		Config: c, PublicURL: "http://127.0.0.1:5555/", CA: r, Index: r, Entries: r, Timeout: time.Minute,
		Now: func() time.Time { return noon.Add(time.Hour) }, Logger: slog.New(slog.DiscardHandler),
	}
	r.page = page.New(r.options)
	return r
}

// ask is a request of this machine, changed by change.
func (r *rig) ask(path string, change func(*http.Request)) *httptest.ResponseRecorder {
	q := httptest.NewRequestWithContext(peer.NewContext(r.t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}}), http.MethodGet, "http://127.0.0.1:5555"+path, nil)
	if change != nil {
		change(q)
	}
	w := httptest.NewRecorder()
	r.page.ServeHTTP(w, q)
	return w
}

// says fails where the answer hasn't the status, or says not all of that.
func (r *rig) says(code int, path string, wanted ...string) string {
	r.t.Helper()
	got, body := r.get(path)
	if got != code {
		r.t.Errorf("%s: status %d, want %d:\n%s", path, got, code, body)
	}
	for _, want := range wanted {
		if !strings.Contains(body, want) {
			r.t.Errorf("%s doesn't say %q:\n%s", path, want, body)
		}
	}
	return body
}

// issued is a certificate in the index.
func issued(serial, san, kind string) index.Certificate {
	return index.Certificate{
		Index: 6, NotBefore: noon, NotAfter: noon.Add(10*time.Minute - time.Second), Logged: noon,
		Fields: map[string]string{"serial": serial, "san": san, "san_type": kind, "identity": san, "issuer": "https://accounts.example", "log": strings.Repeat("ab", 32), "authority": "01", "key_fingerprint": strings.Repeat("cd", 32)},
	}
}

var paths = []string{"/", "/search", "/search?san=x", "/search?q=x", "/revocations", "/refusals", "/trust", "/health", "/certificates/1a", "/certificates/1a.pem", "/certificates/zz", "/nothing"}

// attacks are what somebody may write into a claim.
var attacks = []string{
	`"><script>alert(1)</script>`, `<img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `javascript:alert(1)`, `</title></textarea><svg onload=alert(1)>`,
	`{{.Who}}`, "\u202egnp.exe", "a\x00b\r\nSet-Cookie: x=y", `https://evil.example/">x`, `]]><style>*{display:none}</style>`,
}

// TestNothingRuns has every field of everything be an attack.
func TestNothingRuns(t *testing.T) {
	for n, attack := range attacks {
		for _, kind := range []string{"email", attack} {
			r := newRig(t, page.Config{Access: page.Open})
			c := issued("1a", attack, kind)
			for _, name := range index.Shown {
				if !slices.Contains([]string{"serial", "log", "san_type"}, name) {
					c.Fields[name] = attack
				}
			}
			c.RevokedAt, c.RevokedReason = noon, attack
			r.found, r.next = []index.Certificate{c}, attack
			r.refused = []audit.Event{{Time: noon, SAN: attack, SANType: kind, Subject: attack, Issuer: attack, Message: attack, Rule: attack, RequestID: attack, Reason: fault.PolicyDenied, RemoteAddr: attack}}
			ours := strings.ReplaceAll(attack, "\u202e", "") // in what operators write nobody looks for that
			r.health = page.Health{
				Dependencies: []server.Standing{{Name: ours, Detail: []string{attack}}}, Logs: []follow.Status{{URL: ours}}, Expiries: []page.Expiry{{What: ours, At: noon}},
			}
			r.history = trustroot.History{CTLogs: []ctlog.Description{{ID: [32]byte(bytesOf(0xab)), URL: ours}}}
			for _, path := range append(paths, "/search?san="+url.QueryEscape(attack), "/search?q="+url.QueryEscape(attack), "/search?"+url.QueryEscape(attack)+"=x", "/search?from="+url.QueryEscape(attack), "/certificates/"+url.PathEscape(attack)) {
				w := r.ask(path, nil)
				if strings.Contains(w.Header().Get("Content-Type"), "text/html") {
					harmless(t, fmt.Sprintf("attack %d, %s", n, path), w.Body.String())
				} else if w.Header().Get("Content-Type") == "" || w.Header().Get("Set-Cookie") != "" {
					t.Errorf("attack %d, %s: %v", n, path, w.Header())
				}
			}
		}
	}
}

func bytesOf(b byte) []byte { return slices.Repeat([]byte{b}, 32) }

// harmless fails where a page would run, load or frame what isn't this host's file, or has a style.
func harmless(t *testing.T, what, body string) {
	t.Helper()
	root, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for n := range root.Descendants() {
		if n.Type == html.TextNode && strings.ContainsAny(n.Data, "\u202e\x00") {
			t.Errorf("%s: a character that deceives is shown: %q", what, n.Data)
		}
		if n.Type != html.ElementNode {
			continue
		}
		if slices.Contains([]string{"style", "iframe", "object", "embed", "base"}, n.Data) {
			t.Errorf("%s: there is a <%s>", what, n.Data)
		}
		for _, a := range n.Attr {
			local := strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "//") || strings.HasPrefix(a.Val, "#")
			switch {
			case strings.HasPrefix(a.Key, "on") || a.Key == "style":
				t.Errorf("%s: <%s %s=%q>", what, n.Data, a.Key, a.Val)
			case slices.Contains([]string{"href", "src", "action", "srcset", "formaction"}, a.Key) && !local:
				t.Errorf("%s: <%s %s=%q> leads away", what, n.Data, a.Key, a.Val)
			case n.Data == "script" && a.Key == "src" && !strings.HasPrefix(a.Val, "/assets/"):
				t.Errorf("%s: a script of %s", what, a.Val)
			}
		}
		if n.Data == "script" && n.FirstChild != nil {
			t.Errorf("%s: a script within the page: %s", what, n.FirstChild.Data)
		}
	}
}

func TestHeaders(t *testing.T) {
	r := newRig(t, page.Config{Access: page.Open})
	for _, path := range append(paths, "/assets/page.css", "/assets/page.js", "/assets/none.css", "/assets/layout.html") {
		h := r.ask(path, nil).Header()
		policy := h.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'self';") || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s: Content-Security-Policy: %s", path, policy)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: %v", path, h)
		}
		if !strings.HasPrefix(path, "/assets/") && h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be kept: %s", path, h.Get("Cache-Control"))
		}
	}
	for path, media := range map[string]string{"/assets/page.css": "text/css", "/assets/page.js": "text/javascript", "/assets/mayfly.svg": "image/svg+xml"} {
		if w := r.ask(path, nil); w.Code != http.StatusOK || !strings.HasPrefix(w.Header().Get("Content-Type"), media) {
			t.Errorf("%s: %d %s", path, w.Code, w.Header().Get("Content-Type"))
		}
	}
	for _, path := range []string{"/assets/layout.html", "/assets/none.css", "/assets/../page.go"} {
		if w := r.ask(path, nil); w.Code == http.StatusOK {
			t.Errorf("%s is served", path)
		}
	}
}

// TestStrangers shows nothing to whoever may not read, at any path.
func TestStrangers(t *testing.T) {
	l, err := login.New(login.Options{
		Config: login.Config{KeyFile: setting.Path(t.TempDir() + "/page.key")}, Rules: func() string { return "" }, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]struct {
		access page.Access
		as     func(*http.Request)
	}{
		"from elsewhere": {page.Loopback, func(q *http.Request) {
			*q = *q.WithContext(peer.NewContext(q.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}))
		}},
		"from nowhere known":       {page.Loopback, func(q *http.Request) { *q = *q.WithContext(t.Context()) }},
		"by another's name":        {page.Loopback, func(q *http.Request) { q.Host = "evil.example:5555" }},
		"through a proxy":          {page.Loopback, func(q *http.Request) { q.Header.Set("X-Forwarded-For", "192.0.2.1") }},
		"through another":          {page.Loopback, func(q *http.Request) { q.Header.Set("Via", "1.1 proxy") }},
		"not signed in":            {page.Login, nil},
		"with a made-up session":   {page.Login, func(q *http.Request) { q.Header.Set("Cookie", "mayfly-session=e30.e30.e30.e30.e30") }},
		"with an access of a typo": {"opne", func(q *http.Request) { q.Host = "evil.example" }},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, page.Config{Access: change.access})
			r.options.Login = l
			r.page = page.New(r.options)
			r.found = []index.Certificate{issued("1a", "alice@example.com", "email")}
			r.refused = []audit.Event{{SAN: "alice@example.com", Message: "x"}}
			r.der = certificate(t, "alice@example.com")
			for _, path := range paths {
				w := r.ask(path, change.as)
				if w.Code != http.StatusForbidden || strings.Contains(w.Body.String(), "alice") {
					t.Errorf("%s: %d:\n%s", path, w.Code, w.Body)
				}
				if want := map[bool]string{true: "Sign in", false: "machine itself"}[change.access == page.Login]; !strings.Contains(w.Body.String(), want) {
					t.Errorf("%s doesn't say %q:\n%s", path, want, w.Body)
				}
			}
			if len(r.asked) > 0 {
				t.Error("the index was asked for a stranger")
			}
		})
	}
	r := newRig(t, page.Config{Access: page.Loopback})
	for _, host := range []string{"127.0.0.1:5555", "localhost", "[::1]:5555"} {
		if w := r.ask("/", func(q *http.Request) { q.Host = host }); w.Code != http.StatusOK {
			t.Errorf("whoever sits at the machine is refused by the name %s", host)
		}
	}
}

func TestNothingYet(t *testing.T) {
	r := newRig(t, page.Config{Access: page.Open})
	r.says(http.StatusOK, "/", "No certificate yet", "mayfly request --ca http://127.0.0.1:5555 ")
	r.says(http.StatusOK, "/search?san=nobody", "Nothing was found")
	r.says(http.StatusOK, "/revocations", "Nothing is revoked")
	r.says(http.StatusOK, "/refusals", "Nobody was refused")
	r.says(http.StatusOK, "/health", "can be issued")
	r.says(http.StatusNotFound, "/certificates/1a", "No certificate of that number")
	r.options.Index = nil
	r.page = page.New(r.options)
	for _, path := range []string{"/", "/search?san=x", "/revocations", "/certificates/1a"} {
		r.says(http.StatusNotFound, path, "keeps no index")
	}
	r.says(http.StatusOK, "/trust", "1.root.json")
}

func TestBounds(t *testing.T) {
	r := newRig(t, page.Config{Access: page.Open})
	r.says(http.StatusBadRequest, "/search?san="+strings.Repeat("x", 8<<10), "longer than")
	r.says(http.StatusBadRequest, "/certificates/"+strings.Repeat("a", 4<<10), "longer than")
	r.says(http.StatusBadRequest, "/certificates/"+strings.Repeat("a", 65), "hexadecimal")
	r.says(http.StatusBadRequest, "/search?nosuch=1", "no field of that name")
	r.says(http.StatusBadRequest, "/search?from=yesterday", "2026-11-29")

	r.options.Timeout = 50 * time.Millisecond
	r.page, r.hang = page.New(r.options), make(chan struct{})
	r.says(http.StatusGatewayTimeout, "/search?san=x", "Not now")
	r.failure = fault.New(fault.StoreUnavailable, "the index can't be read now; try again")
	close(r.hang)
	r.says(http.StatusServiceUnavailable, "/search?san=x", "the index can&#39;t be read now")
	r.failure = errors.New("a secret of ours")
	if body := r.says(http.StatusInternalServerError, "/search?san=x"); strings.Contains(body, "secret") {
		t.Errorf("what is ours is told: %s", body)
	}
	r.says(http.StatusOK, "/trust")
}

// TestCrowd has more ask at once than pages are made at once.
func TestCrowd(t *testing.T) {
	r := newRig(t, page.Config{Access: page.Open})
	r.options.Timeout = 300 * time.Millisecond
	r.page = page.New(r.options)
	r.options.Index = nil
	blocked := &blocking{rig: r, entered: make(chan struct{}, 64), leave: make(chan struct{})}
	r.options.Index = blocked
	r.page = page.New(r.options)
	codes := make(chan int)
	for range 8 {
		go func() { codes <- r.ask("/search?san=x", nil).Code }()
	}
	for range 8 {
		<-blocked.entered
	}
	if code := r.ask("/trust", nil).Code; code != http.StatusServiceUnavailable {
		t.Errorf("the ninth is answered %d", code)
	}
	close(blocked.leave)
	for range 8 {
		<-codes
	}
	if code := r.ask("/trust", nil).Code; code != http.StatusOK {
		t.Errorf("when all have gone, one is answered %d", code)
	}
}

type blocking struct {
	*rig
	entered, leave chan struct{}
}

func (b *blocking) Search(ctx context.Context, _ index.Query) (index.Page, error) {
	b.entered <- struct{}{}
	<-b.leave
	return index.Page{}, ctx.Err()
}

func TestSearch(t *testing.T) {
	r := newRig(t, page.Config{Access: page.Open})
	r.found, r.next = []index.Certificate{issued("1a", "alice@example.com", "email")}, "further"
	for path, want := range map[string]index.Query{
		"/search?san=alice@example.com":                                {Filters: []index.Filter{{Field: "san", Value: "alice@example.com"}}},
		"/search?q=alice@example.com":                                  {Filters: []index.Filter{{Field: "san", Value: "alice@example.com"}}},
		"/search?q=@Example.com":                                       {Filters: []index.Filter{{Field: "domain", Value: "example.com"}}},
		"/search?issuer^=https://a&san=b":                              {Filters: []index.Filter{{Field: "issuer", Value: "https://a", Prefix: true}, {Field: "san", Value: "b"}}},
		"/search?q=sha256:AB":                                          {Filters: []index.Filter{{Field: "digest", Value: "ab"}}},
		"/search?from=2026-11-01&to=2026-12-01T08:00:00Z&revoked=true": {From: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC), Revoked: true},
		"/revocations?cursor=there":                                    {Revoked: true, Cursor: "there"},
	} {
		r.asked = nil
		r.must(path)
		want.Limit = 50
		if len(r.asked) != 1 || fmt.Sprint(r.asked[0]) != fmt.Sprint(want) {
			t.Errorf("%s asks for %+v, want %+v", path, r.asked, want)
		}
	}
	r.says(http.StatusOK, "/search?san=alice@example.com&issuer=x", `href="/search?cursor=further&amp;issuer=x&amp;san=alice%40example.com"`, `href="/search?issuer=x"`, `href="/search?san=alice%40example.com"`)
	r.says(http.StatusOK, "/", `href="/?cursor=further"`, "alice@example.com", `<text class="tick"`)
	if r.asked = nil; !strings.Contains(r.must("/search"), "What can be asked") || len(r.asked) > 0 {
		t.Error("a search for nothing asks the index")
	}
}

func TestCertificate(t *testing.T) {
	r := newRig(t, page.Config{Access: page.Open})
	c := issued("1a", "alice@example.com", "email")
	r.found, r.der = []index.Certificate{c}, certificate(t, "alice@example.com")
	r.history.CTLogs = []ctlog.Description{{ID: [32]byte(bytesOf(0xab)), URL: "https://log.example"}}
	for _, id := range []string{"1a", "001A", "1A", "sha256:" + strings.Repeat("ab", 32), strings.Repeat("CD", 32)} {
		r.says(http.StatusOK, "/certificates/"+id, "alice@example.com", "for 10 minutes", "Not revoked", "https://log.example", "proved just now", "tree of 7 entries",
			"Source Repository URI", "1.3.6.1.4.1.57264.1.12", "ECDSA P-256", "--certificate-identity &#39;alice@example.com&#39;", "--insecure-ignore-tlog", "/certificates/1a.pem")
	}
	w := r.ask("/certificates/1a.pem", nil)
	if block, _ := pem.Decode(w.Body.Bytes()); block == nil || string(block.Bytes) != string(r.der) || w.Header().Get("Content-Type") != "application/x-pem-file" {
		t.Errorf("the file is %s, %v", w.Body, w.Header())
	}
	r.found[0].RevokedAt, r.found[0].RevokedReason = noon, "key_compromise"
	r.says(http.StatusOK, "/certificates/1a", "Revoked</strong>", "key_compromise")
	r.der = nil
	r.says(http.StatusOK, "/certificates/1a", "alice@example.com", "can’t be shown now: the log &lt;b&gt;sleeps")
	r.says(http.StatusNotFound, "/certificates/1a.pem", "no file")
	r.found[0].Fields["san"] = "it's; rm -rf / #"
	r.says(http.StatusOK, "/certificates/1a", `--certificate-identity &#39;it&#39;\&#39;&#39;s; rm -rf / #&#39; `)
	r.found[0].Fields["san"] = "a\nrm -rf /"
	if strings.Contains(r.must("/certificates/1a"), "cosign verify") {
		t.Error("a command has a new line of somebody's")
	}
}

// TestSleepingLog: a certificate is shown without its logs, however many don't answer.
func TestSleepingLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, page.Config{Access: page.Open})
		c := issued("1a", "alice@example.com", "email")
		r.found, r.sleeps = slices.Repeat([]index.Certificate{c}, 50), true
		began := time.Now()
		r.says(http.StatusOK, "/certificates/1a", "alice@example.com", "can’t be shown now")
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("the page took %v", took)
		}
	})
}

// TestDomainsOnly shows no address, wherever it stands, nor lets it be found out.
func TestDomainsOnly(t *testing.T) {
	r := newRig(t, page.Config{Access: page.Open, ShowEmails: "domain"})
	c := issued("1a", "alice@example.com", "email")
	c.Fields["token_subject"], c.Fields["github_workflow"] = "sub of alice@example.com", "by Bob.Builder+x@mail.example.org, bob@локальный.рф"
	odd := issued("1b", "alice/bob@host", "email")
	odd.Fields["token_subject"] = "alice/bob@host"
	r.found, r.der = []index.Certificate{c, odd}, certificate(t, "alice@example.com")
	r.refused = []audit.Event{{SAN: "alice@example.com", SANType: "email", Subject: "alice@example.com", Message: "alice@example.com isn't welcome"}}
	r.health.Dependencies = []server.Standing{{Name: "alerts", Detail: []string{"alice@example.com can't be reached"}}}
	for _, path := range append(paths, "/certificates/1b") {
		if _, body := r.get(path); strings.Contains(strings.ToLower(body), "bob") || strings.Contains(strings.ReplaceAll(body, "alice@example.com\"", ""), "alice@") && !strings.HasPrefix(path, "/search") {
			t.Errorf("%s shows an address:\n%s", path, body)
		}
	}
	r.says(http.StatusOK, "/", "…@example.com")
	r.says(http.StatusNotFound, "/certificates/1a.pem")
	plain := issued("1c", "alice!people.example.com", "username")
	plain.Fields["token_subject"] = "alice@example.com"
	r.found = append(r.found, plain)
	if body := r.says(http.StatusOK, "/certificates/1c", "alice!people"); strings.Contains(body, "1c.pem") {
		t.Error("a file with an address in another field is offered")
	}
	for _, field := range []string{"san", "identity", "token_subject", "workflow"} {
		r.says(http.StatusBadRequest, "/search?"+field+"^=al", "by domain only")
	}
	r.says(http.StatusOK, "/search?workflow^=https://github.com/acme/")
	c.Fields["build_config_uri"] = "https://github.com/a/b/.github/workflows/r.yml@refs/tags/v1"
	r.der = nil
	r.says(http.StatusOK, "/certificates/1a", "workflows/r.yml@refs/tags/v1")
}

func TestRefusals(t *testing.T) {
	r := newRig(t, page.Config{Access: page.Loopback})
	for i := range 60 {
		r.refused = append(r.refused, audit.Event{Time: noon.Add(-time.Duration(i) * time.Second), Reason: fault.TokenExpired, Message: fmt.Sprintf("the token expired; number %d", i), RemoteAddr: "192.0.2.7:1"})
	}
	r.refused = append(r.refused, audit.Event{Time: noon.Add(-time.Hour), Reason: fault.PolicyDenied, Message: "no", SAN: "mallory@example.com", Rule: "night"})
	body := r.says(http.StatusOK, "/refusals", "TOKEN_EXPIRED</code> <span class=\"badge\">60", "number 0", "POLICY_DENIED</code> <span class=\"badge\">1", "192.0.2.7")
	if strings.Contains(body, "number 50") {
		t.Error("more than fifty are listed")
	}
	r.options.Config.Access = page.Open
	r.page = page.New(r.options)
	if strings.Contains(r.must("/refusals"), "192.0.2.7") {
		t.Error("everybody reads clients' addresses")
	}
}

func TestTrustAndHealth(t *testing.T) {
	r := newRig(t, page.Config{Access: page.Open})
	_, chain := authority(t)
	r.history = trustroot.History{
		Authorities: []trustroot.Authority{{Chain: chain, URL: "https://ca.example", Start: noon.AddDate(-1, 0, 0), End: noon.AddDate(1, 0, 0)}},
		CTLogs:      []ctlog.Description{{URL: "https://old.example", End: noon.AddDate(0, -1, 0)}, {URL: "https://next.example", Start: noon.AddDate(0, 1, 0)}},
	}
	sum := sha256.Sum256([]byte("root"))
	r.says(http.StatusOK, "/trust", hex.EncodeToString(sum[:]), ">past<", ">now<", ">next<", "cosign initialize --mirror &#39;http://127.0.0.1:5555/tuf&#39;", `x="50`)
	r.health = page.Health{
		Dependencies: []server.Standing{{Name: "log", Works: true}, {Name: "tuf", Informational: true}},
		Expiries:     []page.Expiry{{What: "authority first", At: noon.Add(3 * time.Hour)}, {What: "root", At: noon.AddDate(9, 0, 0)}},
		Logs:         []follow.Status{{URL: "https://log.example", Followed: 1234567, Size: 1234568}},
	}
	r.says(http.StatusOK, "/health", "can be issued", "fails; certificates are issued all the same", "2 hours left", `badge bad`, "1,234,567 of 1,234,568")
	r.says(http.StatusOK, "/", "tuf fails", "2 hours left", "1,234,567")
	r.health.Dependencies[0].Works = false
	r.says(http.StatusOK, "/health", "No certificate can be issued")
}

func authority(t *testing.T) (_ *x509.Certificate, chain []*x509.Certificate) {
	t.Helper()
	template := catest.Authority("Example", "root", noon.AddDate(-1, 0, 0), noon.AddDate(9, 0, 0))
	key := catest.Key(t)
	root := catest.Sign(t, template, template, key.Public(), key)
	return root, []*x509.Certificate{root}
}

// certificate is the DER of one with a name, and an extension or two.
func certificate(t *testing.T, san string) []byte {
	t.Helper()
	extensions, err := extension.Set{Issuer: "https://accounts.example", TokenSubject: "subject", SourceRepositoryURI: "https://github.com/acme/tool"}.Extensions()
	if err != nil {
		t.Fatal(err)
	}
	template := catest.Authority("Example", "leaf", noon, noon.Add(10*time.Minute))
	template.EmailAddresses, template.ExtraExtensions = []string{san}, extensions
	key := catest.Key(t)
	return catest.Sign(t, template, template, key.Public(), key).Raw
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		config page.Config
		fault  string
	}{
		{page.Config{}, ""},
		{page.Config{Access: page.Loopback, ShowEmails: "domain"}, ""},
		{page.Config{Access: "everybody"}, "login, loopback or open"},
		{page.Config{Access: page.Open, ShowEmails: "none"}, "full or domain"},
		{page.Config{Access: page.Open, Login: login.Config{ClientID: "x"}}, "only goes with access: login"},
		{page.Config{Access: page.Login}, "page.login.issuer"},
		{page.Config{Access: page.Login, Login: login.Config{Issuer: "http://idp.example", ClientID: "x", KeyFile: "k"}}, "page.login.issuer"},
		{page.Config{Access: page.Login, Login: login.Config{Issuer: "https://idp.example", ClientID: "x", KeyFile: "k", Session: time.Second}}, "page.login.session"},
		{page.Config{Access: page.Login, Login: login.Config{Issuer: "https://idp.example", ClientID: "x", KeyFile: "k"}}, ""},
	} {
		var f setting.Faults
		c.config.Check("page", &f)
		if got := fmt.Sprint(f.Err()); (c.fault == "") != (f.Err() == nil) || !strings.Contains(got, c.fault) {
			t.Errorf("%+v: %s, want %q", c.config, got, c.fault)
		}
	}
}
