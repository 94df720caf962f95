package embedded_test

import (
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crypto/sha256"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
)

// get fetches a path and checks the status.
func get(t *testing.T, c *http.Client, url string, want int) (http.Header, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept-Encoding", "gzip")
	response, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != want {
		t.Errorf("GET %s: %d, want %d: %s", url, response.StatusCode, want, body)
	}
	return response.Header, body
}

// TestStaticReads: the paths of the static API, and only those, with their headers.
func TestStaticReads(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	b.load(t, l, 300)
	url, c := serve(t, l)
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, 300)
	if h, body := get(t, c, url+"/checkpoint", 200); h.Get("Cache-Control") != "no-cache" || !strings.HasPrefix(string(body), "log.example/2027\n300\n") {
		t.Errorf("checkpoint %q, cache %q", body, h.Get("Cache-Control"))
	}
	for path, length := range map[string]int{
		"/tile/0/000": 256 * 32, "/tile/0/001.p/44": 44 * 32, "/tile/0/001.p/3": 3 * 32, "/tile/1/000.p/1": 32, "/tile/0/000.p/7": 7 * 32,
	} {
		h, body := get(t, c, url+path, 200)
		if len(body) != length || !strings.Contains(h.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d bytes, want %d; cache %q", path, len(body), length, h.Get("Cache-Control"))
		}
	}
	h, body := get(t, c, url+"/tile/data/000", 200)
	if h.Get("Content-Encoding") != "gzip" || h.Get("Vary") != "Accept-Encoding" {
		t.Errorf("headers of a data tile: %v", h)
	}
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	full, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if raw := readFile(t, b.path("tile", "data", "000")); !bytes.Equal(full, raw) {
		t.Error("the data tile is not the one on disk")
	}
	issuer := sha256.Sum256(b.ca.Intermediate.Raw)
	if _, body := get(t, c, url+"/issuer/"+hex.EncodeToString(issuer[:]), 200); !bytes.Equal(body, b.ca.Intermediate.Raw) {
		t.Error("another issuer")
	}
	for _, path := range []string{
		"/", "/LOCK", "/.state/treeState", "/tile/0/002", "/tile/0/001", "/tile/0/001.p/45", "/tile/0/0", "/tile/0/x000/000", "/tile/6/000",
		"/tile/00/000", "/tile/0/001.p/0", "/tile/0/001.p/044", "/tile/0/001.p/256", "/tile/0/001.p/", "/tile/0/001.p", "/tile/data/000123",
		"/tile/entries/000", "/issuer/" + strings.Repeat("0", 64), "/issuer/" + strings.ToUpper(hex.EncodeToString(issuer[:])),
		"/issuer/..%2fLOCK", "/tile/data/..%2f..%2fLOCK", "/ct/v1/add-chain-x", "/checkpoint123",
	} {
		get(t, c, url+path, 404)
	}
	for _, path := range []string{
		"get-entries", "get-entries?start=5&end=3", "get-entries?start=300&end=301", "get-entries?start=-1&end=3", "get-entries?start=1&start=2&end=3",
		"get-sth-consistency?first=5&second=301", "get-sth-consistency?first=5&second=3", "get-proof-by-hash?hash=AA&tree_size=3",
		"get-entry-and-proof?leaf_index=300&tree_size=300",
	} {
		get(t, c, url+"/ct/v1/"+path, 400)
	}
}

func post(t *testing.T, c *http.Client, url string, body []byte) (int, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	out, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, out
}

func chainBody(t *testing.T, chain ...[]byte) []byte {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"chain": chain})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestSubmission: off by default; on, it takes code-signing certificates under our
// roots, once each, and nothing else.
func TestSubmission(t *testing.T) {
	t.Parallel()
	off := newBench(t)
	url, c := serve(t, off.open(t))
	if status, _ := post(t, c, url+"/ct/v1/add-chain", chainBody(t, off.ca.Certificate(t)...)); status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
		t.Errorf("submission is off, got %d", status)
	}

	b := newBench(t)
	b.config.Submission = true
	url, c = serve(t, b.open(t))
	chain := b.ca.Chain(t)
	pre := append([][]byte{chain.Precertificate}, chain.Issuers...)
	server := b.ca.Issue(t, false, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	stranger := ctlogtest.NewCA(t).Certificate(t)
	cert := b.ca.Certificate(t)
	for name, tt := range map[string]struct {
		path string
		body []byte
		want int
	}{
		"precertificate":      {"add-pre-chain", chainBody(t, pre...), 200},
		"without root":        {"add-pre-chain", chainBody(t, pre[:2]...), 200},
		"certificate":         {"add-chain", chainBody(t, cert...), 200},
		"wrong endpoint":      {"add-chain", chainBody(t, pre...), 400},
		"no poison":           {"add-pre-chain", chainBody(t, cert...), 400},
		"not code signing":    {"add-chain", chainBody(t, server, chain.Issuers[0], chain.Issuers[1]), 400},
		"strangers":           {"add-chain", chainBody(t, stranger...), 400},
		"no intermediate":     {"add-chain", chainBody(t, cert[0], cert[2]), 400},
		"out of order":        {"add-chain", chainBody(t, cert[0], cert[2], cert[1]), 400},
		"a root":              {"add-chain", chainBody(t, cert[2]), 400},
		"empty":               {"add-chain", chainBody(t), 400},
		"not JSON":            {"add-chain", []byte("x"), 400},
		"not a certificate":   {"add-chain", chainBody(t, []byte("x")), 400},
		"513 KiB":             {"add-chain", bytes.Repeat([]byte(" "), 513<<10), 413},
		"eleven certificates": {"add-chain", chainBody(t, append([][]byte{cert[0]}, bytes.Split(bytes.Repeat([]byte("x"), 10), nil)...)...), 400},
	} {
		if got, text := post(t, c, url+"/ct/v1/"+tt.path, tt.body); got != tt.want {
			t.Errorf("%s: %d, want %d: %s", name, got, tt.want, text)
		}
	}
	type answer struct {
		Timestamp  uint64
		Extensions []byte
	}
	var first, second answer
	for _, a := range []*answer{&first, &second} {
		_, raw := post(t, c, url+"/ct/v1/add-chain", chainBody(t, cert...))
		if err := json.Unmarshal(raw, a); err != nil {
			t.Fatal(err)
		}
	}
	if first.Timestamp != second.Timestamp || !bytes.Equal(first.Extensions, second.Extensions) {
		t.Error("a duplicate became another entry")
	}
}

// TestSubmissionByAPrecertificateSigningCertificate: a precertificate of a precertificate signing certificate
// (RFC 6962 §3.1) is taken with the issuer of the final certificate after it, and
// such a certificate signs nothing else. The log that results verifies.
func TestSubmissionByAPrecertificateSigningCertificate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.config.Submission = true
	l := b.open(t)
	url, c := serve(t, l)
	chain, final := b.ca.ChainOfSigner(t)
	pre := append([][]byte{chain.Precertificate}, chain.Issuers...)
	stranger, _ := ctlogtest.NewCA(t).ChainOfSigner(t)
	issue := func(edit func(leaf, signer *x509.Certificate)) []byte {
		return chainBody(t, b.ca.ChainOfSignerAfter(t, edit)...)
	}
	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for name, tt := range map[string]struct {
		path string
		body []byte
		want int
	}{
		"whole":                      {"add-pre-chain", chainBody(t, pre...), 200},
		"without root":               {"add-pre-chain", chainBody(t, pre[:3]...), 200},
		"made anew":                  {"add-pre-chain", issue(func(_, _ *x509.Certificate) {}), 200},
		"without its issuer":         {"add-pre-chain", chainBody(t, pre[:2]...), 400},
		"without the signer":         {"add-pre-chain", chainBody(t, pre[0], pre[2], pre[3]), 400},
		"of another issuer":          {"add-pre-chain", chainBody(t, pre[0], pre[1], pre[3]), 400},
		"another signer":             {"add-pre-chain", chainBody(t, pre[0], stranger.Issuers[0], pre[2], pre[3]), 400},
		"strangers":                  {"add-pre-chain", chainBody(t, append([][]byte{stranger.Precertificate}, stranger.Issuers...)...), 400},
		"no poison":                  {"add-chain", issue(func(leaf, _ *x509.Certificate) { leaf.ExtraExtensions = nil }), 400},
		"not code signing":           {"add-pre-chain", issue(func(leaf, _ *x509.Certificate) { leaf.ExtKeyUsage = server }), 400},
		"a signer with other usages": {"add-pre-chain", issue(func(_, signer *x509.Certificate) { signer.ExtKeyUsage = server }), 400},
		"a signer that is no CA": {"add-pre-chain", issue(func(_, signer *x509.Certificate) {
			signer.IsCA, signer.MaxPathLen, signer.MaxPathLenZero = false, -1, false
		}), 400},
		"a signer that had ended":     {"add-pre-chain", issue(func(leaf, signer *x509.Certificate) { signer.NotAfter = leaf.NotBefore }), 400},
		"a CA below the signer":       {"add-pre-chain", issue(func(leaf, _ *x509.Certificate) { leaf.IsCA, leaf.BasicConstraintsValid = true, true }), 400},
		"the signer as the entry":     {"add-chain", chainBody(t, pre[1:]...), 400},
		"the final certificate":       {"add-chain", chainBody(t, final(ctlog.SCT{}), pre[2], pre[3]), 200},
		"the final one, signer above": {"add-chain", chainBody(t, final(ctlog.SCT{}), pre[1], pre[2], pre[3]), 400},
	} {
		if got, text := post(t, c, url+"/ct/v1/"+tt.path, tt.body); got != tt.want {
			t.Errorf("%s: %d, want %d: %s", name, got, tt.want, text)
		}
	}
	if _, err := l.Submit(t.Context(), chain); err != nil {
		t.Fatal(err)
	}
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, 4)
	report, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{})
	if err != nil || report.Precerts != 3 || report.Certs != 1 {
		t.Errorf("Verify: %+v, %v; want 3 precertificates and 1 certificate", report, err)
	}
	wrong := chain // a log that believed its CA in this would have a damaged entry
	wrong.TBS = b.ca.Chain(t).TBS
	if _, err := l.Submit(t.Context(), wrong); err != nil {
		t.Fatal(err)
	}
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, 5)
	if _, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{}); err == nil {
		t.Error("Verify passed over an entry whose TBSCertificate is another precertificate's")
	}
}

// TestSubmissionRate: one address has a rate, and all outsiders together have one that
// the CA's own submissions don't count for. See TestFloodFromOutsideLeavesTheCAItsPlace.
func TestSubmissionRate(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.config.Submission = true
	now := time.Now()
	b.o.Now = func() time.Time { return now }
	l := b.open(t)
	from := func(address string) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/ct/v1/add-chain", strings.NewReader("x"))
		r.RemoteAddr = address
		w := httptest.NewRecorder()
		l.Handler().ServeHTTP(w, r)
		return w.Code
	}
	refused := func(posts int, address string) (refused int) {
		for range posts {
			if from(address) == http.StatusTooManyRequests {
				refused++
			}
		}
		return refused
	}
	if got := refused(60, "198.51.100.1:1"); got != 10 {
		t.Errorf("%d of 60 refused, want the 10 over an address's burst of 50", got)
	}
	if got := refused(40, "198.51.100.2:1"); got != 0 {
		t.Errorf("%d of another address were refused", got)
	}
	if got := refused(40, "[2001:db8::1]:1") + refused(20, "[2001:db8::2]:1"); got != 10 {
		t.Errorf("%d of one /64 were refused, want 10", got)
	}
	all := 0
	for i := range 80 { // 140 of the 200 were taken
		all += refused(1, fmt.Sprintf("203.0.113.%d:1", i))
	}
	if all != 20 {
		t.Errorf("%d refused, want the 20 over the burst of 200 of everybody", all)
	}
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Errorf("the CA's own submission: %v", err)
	}
}

func embeddedReady(t *testing.T, l *embedded.Log) error {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	err := l.Ready(t.Context())
	for err != nil && time.Now().Before(deadline) {
		err = l.Ready(t.Context())
	}
	return err
}
