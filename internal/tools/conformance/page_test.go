package conformance

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// The widths at which the page is looked at: a phone, a tablet, a desk.
var widths = []int64{390, 820, 1280}

// window is a Chromium without a window, with what it complained of.
type window struct {
	context.Context
	t          *testing.T
	mu         sync.Mutex // guards complaints
	complaints []string
}

func openWindow(t *testing.T) *window {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("/usr/bin/chromium"), chromedp.NoSandbox)
	allocator, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	w := &window{Context: ctx, t: t}
	err := chromedp.Listen(ctx, func(event any) { // what CSP stops is a complaint, too
		w.mu.Lock()
		defer w.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			w.complaints = append(w.complaints, fmt.Sprintf("%+v", e.ExceptionDetails))
		case *log.EventEntryAdded:
			w.complaints = append(w.complaints, e.Entry.Text+" "+e.Entry.URL)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// ask runs an action, within a time, and gives what it found.
func ask[T any](w *window, action chromedp.Action[T]) T {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w, time.Minute)
	defer cancel()
	found, err := chromedp.Run(ctx, action)
	if err != nil {
		at, _ := chromedp.Run(w, chromedp.Location())
		page, _ := chromedp.Run(w, chromedp.OuterHTML(chromedp.CSS("html")))
		w.t.Fatalf("at %s: %v\n%s", at, err, page)
	}
	return found
}

// do runs actions.
func (w *window) do(actions ...chromedp.Action[chromedp.Void]) {
	w.t.Helper()
	for _, a := range actions {
		ask(w, a)
	}
}

// text is what a person reads.
func (w *window) text() string {
	w.t.Helper()
	return ask(w, chromedp.Text(chromedp.CSS("body")))
}

// open goes to an address and gives what a person reads there.
func (w *window) open(address string) string {
	w.t.Helper()
	w.do(chromedp.Navigate(address))
	return w.text()
}

// see fails where a person wouldn't read all of that.
func (w *window) see(address string, wanted ...string) {
	w.t.Helper()
	text := w.open(address)
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			w.t.Errorf("%s doesn't say %q:\n%s", address, want, text)
		}
	}
}

// look has axe-core look at the page at each width, light and dark, keeps screenshots where
// PAGE_SHOTS names a folder, and fails where anything sticks out.
func (w *window) look(name string) {
	w.t.Helper()
	axe, err := os.ReadFile(filepath.Join(setting(w.t, "CONFORMANCE_NODE"), "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.do(chromedp.Evaluate[chromedp.Void](string(axe)))
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range widths {
			w.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
				_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
				return err
			}), chromedp.EmulateViewport(width, 900))
			type violation struct {
				ID, Impact, Help string
				Nodes            []struct{ HTML string }
			}
			for _, v := range ask(w, chromedp.Evaluate[[]violation]("axe.run().then((r) => r.violations)", chromedp.EvalAwaitPromise)) {
				w.t.Errorf("%s, %s, %d wide: axe-core finds %s (%s): %s: %+v", name, scheme, width, v.ID, v.Impact, v.Help, v.Nodes)
			}
			if wider := ask(w, chromedp.Evaluate[int]("document.documentElement.scrollWidth - document.documentElement.clientWidth")); wider > 0 {
				w.t.Errorf("%s, %s: %d pixels stick out at a width of %d", name, scheme, wider, width)
			}
			if folder := os.Getenv("PAGE_SHOTS"); folder != "" {
				write(w.t, filepath.Join(folder, fmt.Sprintf("%s-%s-%d.png", name, scheme, width)), ask(w, chromedp.FullScreenshot(100)))
			}
		}
	}
}

// withPage turns the page on.
func withPage(section string) change {
	return func(_ *testing.T, _, config string) string { return config + "\npage:\n" + section }
}

// long is a name of 200 characters, and arabic a workflow's from right to left.
var (
	long   = strings.Repeat("a-very-long-name.", 12)[:200]
	arabic = "نشر الإصدار، 2026"
)

// identities are those that certificates are issued for: claims for the development issuer.
func identities(n int) (all []url.Values) {
	for i := range n {
		github := url.Values{"aud": {"github"}, "sub": {"repo:octo-org/octo-repo:environment:prod"}}
		all = append(all, url.Values{"aud": {"sigstore"}, "email": {aliceEmail}}, github,
			url.Values{"aud": {"sigstore"}, "email": {fmt.Sprintf("person%d@team.example.com", i)}})
	}
	return all[:n]
}

// TestPage has a person's browser go through the page of a real CA.
func TestPage(t *testing.T) {
	dev := startDev(t)
	w := openWindow(t)

	t.Run("nobody yet", func(t *testing.T) {
		w.t = t
		w.see(dev.HTTP, "Who got certificates", "No certificate yet", "all works")
		w.look("feed-0")
		w.see(dev.HTTP+"/search?q=nobody@example.com", "Nothing was found")
		w.see(dev.HTTP+"/revocations", "Nothing is revoked")
		w.see(dev.HTTP+"/refusals", "Nobody was refused")
		w.look("refusals-0")
	})

	m, token := startPage(t, dev)
	issue := func(t *testing.T, token string) string {
		t.Helper()
		der, err := m.certificate(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		return serialOf(t, der)
	}
	github := vendors[0]
	ciToken, _ := github.token(t, dev)
	alice := token(url.Values{"aud": {"sigstore"}, "email": {aliceEmail}})

	t.Run("three", func(t *testing.T) {
		w.t = t
		serial := issue(t, ciToken)
		issue(t, token(url.Values{"aud": {"people"}, "sub": {long}}))
		mine := issue(t, alice)
		m.indexed(t, 3)
		w.see(m.HTTP, aliceEmail, "github.com/octo-org/octo-repo", "refs/heads/main")
		w.look("feed-3")
		w.see(m.HTTP+"/certificates/"+mine, aliceEmail, "vouched for this person", "Not revoked", "proved just now", "cosign verify-blob", "Download", "issued it")
		w.look("certificate-person")
		w.see(m.HTTP+"/certificates/"+serial, "Source Repository URI", "1.3.6.1.4.1.57264.1.12", "Release é")
		w.look("certificate-workflow")
		w.see(m.HTTP+"/search?san="+aliceEmail, aliceEmail, "san="+aliceEmail)
		w.see(m.HTTP+"/search?run_invocation_uri="+url.QueryEscape(github.values[21]), "octo-org/octo-repo")
		w.look("search-found")
		w.do(chromedp.Navigate(m.HTTP+"/search"), chromedp.SetValue(chromedp.CSS("#q"), aliceEmail), chromedp.Submit(chromedp.CSS("#q")), chromedp.WaitVisible(chromedp.CSS(".rows")))
		w.see(m.HTTP+"/search", "What can be asked")
		w.look("search")
	})

	t.Run("revoked", func(t *testing.T) {
		w.t = t
		der, err := dev.certificate(t.Context(), dev.token(t))
		if err != nil {
			t.Fatal(err)
		}
		serial := serialOf(t, der)
		command(t, nil, setting(t, "MAYFLY_BIN"), "revoke", "--ca", dev.HTTP, "--serial", serial, "--reason", "keyCompromise")
		dev.process.until(t, "the page says that it is revoked", func() bool {
			return strings.Contains(w.open(dev.HTTP+"/revocations"), aliceEmail)
		})
		w.look("revocations")
		w.see(dev.HTTP+"/certificates/"+serial, "It counts for nothing", "keyCompromise")
		w.look("certificate-revoked")
	})

	t.Run("refused", func(t *testing.T) {
		w.t = t
		mallory := token(url.Values{"aud": {"sigstore"}, "email": {"mallory@example.com"}})
		if _, err := m.certificate(t.Context(), mallory); err == nil {
			t.Fatal("mallory has a certificate")
		}
		if _, err := m.certificate(t.Context(), token(url.Values{"aud": {"someone-else"}, "email": {aliceEmail}})); err == nil {
			t.Fatal("another's token has a certificate")
		}
		w.see(m.HTTP+"/refusals", "POLICY_DENIED", "mallory@example.com", "TOKEN_AUDIENCE")
		w.look("refusals")
	})

	t.Run("trust and health", func(t *testing.T) {
		w.t = t
		w.see(m.HTTP+"/trust", "no signed repository")
		w.see(dev.HTTP+"/trust", "Certificate authorities", "Transparency logs", "cosign initialize", "1.root.json")
		sum := sha256.Sum256(get(t, dev.HTTP+"/tuf/1.root.json"))
		w.see(dev.HTTP+"/trust", hex.EncodeToString(sum[:]))
		w.look("trust")
		w.see(m.HTTP+"/health", "Certificates can be issued", "authority", "left")
		w.look("health")
	})

	t.Run("many", func(t *testing.T) {
		w.t = t
		for _, claims := range identities(60) {
			if claims.Get("aud") == github.name {
				issue(t, ciToken)
				continue
			}
			issue(t, token(claims))
		}
		issue(t, token(url.Values{"aud": {"people"}, "sub": {long}}))
		inArabic, _ := github.token(t, dev, url.Values{"claim.workflow": {arabic}})
		serial := issue(t, inArabic)
		m.indexed(t, 65)
		w.see(m.HTTP, long, "Older certificates")
		w.look("feed-many")
		w.do(chromedp.Click(chromedp.CSS("a[rel=next]")), chromedp.WaitVisible(chromedp.CSS(".rows")))
		if next := ask(w, chromedp.Location()); !strings.Contains(next, "cursor=") {
			t.Errorf("older certificates are at %s", next)
		}
		w.see(m.HTTP+"/certificates/"+serial, arabic)
		w.look("certificate-arabic")
	})

	t.Run("brought up to date", func(t *testing.T) {
		w.t = t
		w.do(chromedp.Navigate(m.HTTP))
		issue(t, token(url.Values{"aud": {"sigstore"}, "email": {"late@example.com"}}))
		w.do(chromedp.WaitVisible(`//bdi[text()="late@example.com"]`))
	})

	t.Run("by keyboard", func(t *testing.T) {
		w.t = t
		w.do(chromedp.Navigate(m.HTTP), chromedp.KeyEvent("\t"))
		if focus := ask(w, chromedp.Evaluate[string]("document.activeElement.textContent")); !strings.Contains(focus, "Skip") {
			t.Errorf("the first key goes to %q", focus)
		}
	})

	t.Run("login", func(t *testing.T) { testPageLogin(t) })
	if len(w.complaints) > 0 {
		t.Errorf("the browser complained: %q", w.complaints)
	}
}

// startPage starts a CA with a page, for everybody on this machine, and gives a maker of tokens for it.
func startPage(t *testing.T, dev *mayfly) (m *mayfly, token func(url.Values) string) {
	t.Helper()
	m = startServe(t, issuerEntry(account{issuer: dev.Issuer, client: "sigstore"}, `
    type: email
    allow: '!principal.san.startsWith("mallory")'`)+issuerEntry(account{issuer: dev.Issuer, client: vendors[0].name}, `
    type: ci-provider
    preset: github
    allow: "true"`)+issuerEntry(account{issuer: dev.Issuer, client: "people"}, `
    type: username
    subject_domain: people.example.com
    allow: "true"`), withPage("  access: loopback\n"))
	return m, func(claims url.Values) string {
		return strings.TrimSpace(string(get(t, dev.Issuer+"/dev/token?"+claims.Encode())))
	}
}

// TestPageOfMany looks at the page of a CA that has issued a hundred thousand certificates.
func TestPageOfMany(t *testing.T) {
	const many, callers = 100_000, 16
	dev := startDev(t)
	m, token := startPage(t, dev)
	var tokens []string
	for _, claims := range identities(60) {
		if claims.Get("aud") == vendors[0].name {
			ci, _ := vendors[0].token(t, dev)
			tokens = append(tokens, ci)
			continue
		}
		tokens = append(tokens, token(claims))
	}
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for i := caller; i < many && !t.Failed(); i += callers {
				if _, err := m.certificate(t.Context(), tokens[i%len(tokens)]); err != nil {
					t.Errorf("certificate %d: %v", i, err)
				}
			}
		})
	}
	if all.Wait(); t.Failed() {
		return
	}
	last, err := m.certificate(t.Context(), token(url.Values{"aud": {"people"}, "sub": {long}}))
	if err != nil {
		t.Fatal(err)
	}
	m.indexed(t, many+1)

	w := openWindow(t)
	w.see(m.HTTP, long, aliceEmail, "octo-org/octo-repo", "Older certificates")
	w.look("feed-100000")
	for range 3 {
		before := ask(w, chromedp.Location())
		w.do(chromedp.Click(chromedp.CSS("a[rel=next]")), chromedp.WaitVisible(chromedp.CSS(".rows")))
		if after := ask(w, chromedp.Location()); after == before || !strings.Contains(after, "cursor=") {
			t.Errorf("older certificates are at %s", after)
		}
	}
	w.look("feed-100000-older")
	w.see(m.HTTP+"/search?san=person7@team.example.com", "person7@team.example.com", "Older certificates")
	w.look("search-100000")
	w.see(m.HTTP+"/search?q=nobody@example.com", "Nothing was found")
	w.see(m.HTTP+"/certificates/"+serialOf(t, last), long, "proved just now")
	w.see(m.HTTP+"/health", "Certificates can be issued")
	w.look("health-100000")
	if len(w.complaints) > 0 {
		t.Errorf("the browser complained: %q", w.complaints)
	}
}

// testPageLogin has Alice, a reader, and Mallory, a stranger, sign in at a foreign provider.
func testPageLogin(t *testing.T) {
	provider := startNodeProvider(t)
	m := startServe(t, issuerEntry(provider, `
    type: email
    allow: "true"`), withPage(`  access: login
  login: {issuer: "`+provider.issuer+`", client_id: `+provider.client+`, key_file: page.key}
access:
  readers:
    - {name: alice, when: 'principal.san == "`+aliceEmail+`"'}
`))
	token, err := provider.token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.certificate(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	m.indexed(t, 1)
	signIn := func(w *window, who string) string {
		w.do(chromedp.Click(chromedp.CSS("a.strong")),
			chromedp.WaitVisible(chromedp.CSS("input[name=login]")), chromedp.SendKeys(chromedp.CSS("input[name=login]"), who),
			chromedp.SendKeys(chromedp.CSS("input[name=password]"), "any"), chromedp.Click(chromedp.CSS("button[type=submit]")),
			chromedp.WaitVisible(`//button[text()="Continue"]`), chromedp.Click(`//button[text()="Continue"]`), chromedp.WaitVisible(chromedp.CSS("#main")))
		return w.text()
	}
	t.Run("a reader", func(t *testing.T) {
		w := openWindow(t)
		for _, path := range []string{"/", "/search?san=" + aliceEmail, "/refusals", "/revocations", "/trust", "/health"} {
			if text := w.open(m.HTTP + path); !strings.Contains(text, "Please sign in") || strings.Contains(text, "alice") {
				t.Errorf("%s shows somebody unknown: %s", path, text)
			}
		}
		w.open(m.HTTP + "/search?san=" + aliceEmail)
		w.look("sign-in")
		if text := signIn(w, "alice"); !strings.Contains(text, "Sign out") || !strings.Contains(text, "san="+aliceEmail) {
			t.Errorf("Alice, who signed in, reads %s", text)
		}
		w.look("signed-in")
		w.do(chromedp.Click(chromedp.CSS("form.who button")), chromedp.WaitVisible(chromedp.CSS("a.strong")))
		if text := w.text(); !strings.Contains(text, "Please sign in") {
			t.Errorf("Alice, who signed out, reads %s", text)
		}
	})
	t.Run("a stranger", func(t *testing.T) {
		w := openWindow(t)
		w.open(m.HTTP)
		if text := signIn(w, "mallory"); !strings.Contains(text, "Not for you") || !strings.Contains(text, "access.readers") || strings.Contains(text, aliceEmail) {
			t.Errorf("Mallory reads %s", text)
		}
		w.look("stranger")
		if text := w.open(m.HTTP); !strings.Contains(text, "Please sign in") {
			t.Errorf("Mallory is in: %s", text)
		}
	})
}

// indexed waits until the index has so many certificates.
func (m *mayfly) indexed(t *testing.T, n int) {
	t.Helper()
	m.process.until(t, fmt.Sprintf("%d certificates are in the index", n), func() bool {
		said := string(get(t, m.HTTP+"/readyz?verbose"))
		var followed, size int
		for line := range strings.Lines(said) {
			if _, rest, ok := strings.Cut(line, m.CTLog+": "); ok {
				if _, err := fmt.Sscanf(rest, "%d of %d entries", &followed, &size); err == nil && followed >= n {
					return true
				}
			}
		}
		return false
	})
}

// serialOf is the certificate's serial number as the page has it.
func serialOf(t *testing.T, der []byte) string {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c.SerialNumber.Text(16)
}
