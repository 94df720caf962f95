package revoke

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mayfly-ca/mayfly/internal/catest"
)

// served is an authority's list as clients get it.
func (r *rig) served(t testing.TB, s Signing) *x509.RevocationList {
	t.Helper()
	w := r.get(ListPath+ID(s.Certificate)+".crl", nil)
	if w.Code != http.StatusOK {
		t.Fatalf("the list: %d %s", w.Code, w.Body)
	}
	l, err := x509.ParseRevocationList(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.CheckSignatureFrom(s.Certificate); err != nil {
		t.Fatal(err)
	}
	return l
}

func (r *rig) get(path string, header map[string]string) *httptest.ResponseRecorder {
	w, q := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)
	for name, value := range header {
		q.Header.Set(name, value)
	}
	for prefix, h := range r.Mounts() {
		if strings.HasPrefix(q.URL.Path, prefix) {
			h.ServeHTTP(w, q)
		}
	}
	return w
}

func (r *rig) revoke(t testing.TB, certs ...*x509.Certificate) [][]byte {
	t.Helper()
	var q Request
	for _, c := range certs {
		q.Certificates = append(q.Certificates, c.Raw)
	}
	a, err := r.ask(t, By{Asker: Asker{Right: rightAdmin, Rule: "test"}}, q)
	if err != nil {
		t.Fatal(err)
	}
	return a.Statements
}

func (r *rig) ask(t testing.TB, by By, q Request) (*Answer, error) {
	t.Helper()
	return r.Revoke(t.Context(), by, q, func(string) error { return nil })
}

// TestOpenSSL: openssl takes a certificate that wasn't revoked and refuses one that
// was, in two steps as a list is younger than what it is about; for each kind of key,
// on the day, ten years later, and by a final list.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"P-256", "P-384", "RSA"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			by, root := issuing(t, key(t, kind))
			r := newRig(t, nil, by)
			good, bad := leaf(t, by, catest.Key(t), nil, begin), leaf(t, by, catest.Key(t), nil, begin)
			r.Lists.Use(by, func() {})
			r.revoke(t, bad)
			check := func(when string) {
				t.Helper()
				r.Lists.sign(t.Context())
				l := r.served(t, by)
				for cert, revoked := range map[*x509.Certificate]bool{good: false, bad: true} {
					out, err := openssl(t, l, cert, by.Certificate, root)
					if (err != nil) != revoked || revoked && !strings.Contains(out, "certificate revoked") {
						t.Errorf("%s: revoked %v: %v\n%s", when, revoked, err, out)
					}
				}
			}
			check("on the day")
			if text := crlText(t, r.served(t, by)); !strings.Contains(text, "Key Compromise") && !strings.Contains(text, "Invalidity Date") || strings.Contains(text, "critical") {
				t.Errorf("openssl reads:\n%s", text)
			}
			for range 10 {
				r.now = r.now.AddDate(1, 0, 0)
				r.Lists.sign(t.Context())
			}
			check("ten years later")
			next, _ := issuing(t, key(t, kind))
			r.Lists.Use(next, func() {})
			check("by the final list")
			if !r.served(t, by).NextUpdate.Equal(noEnd) {
				t.Error("the last list has an end")
			}
		})
	}
}

// openssl verifies a chain at the time of signing, and then with the list.
func openssl(t *testing.T, l *x509.RevocationList, cert, issuer, root *x509.Certificate) (string, error) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	files := []string{
		"-CAfile", write("root", "CERTIFICATE", root.Raw), "-untrusted", write("issuer", "CERTIFICATE", issuer.Raw), "-purpose", "any",
	}
	leaf, list := write("leaf", "CERTIFICATE", cert.Raw), write("list", "X509 CRL", l.Raw)
	first := append([]string{"verify", "-attime", fmt.Sprint(cert.NotBefore.Unix() + 60)}, append(files, leaf)...)
	if out, err := exec.Command("openssl", first...).CombinedOutput(); err != nil {
		t.Fatalf("the chain: %v\n%s", err, out)
	}
	second := append([]string{"verify", "-no_check_time", "-crl_check", "-CRLfile", list}, append(files, leaf)...)
	out, err := exec.Command("openssl", second...).CombinedOutput()
	return string(out), err
}

func crlText(t *testing.T, l *x509.RevocationList) string {
	t.Helper()
	cmd := exec.Command("openssl", "crl", "-inform", "DER", "-noout", "-text")
	cmd.Stdin = strings.NewReader(string(l.Raw))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// TestEntries: what a list says of a certificate, and of itself.
func TestEntries(t *testing.T) {
	t.Parallel()
	by, _ := issuing(t, key(t, "P-256"))
	other, _ := issuing(t, key(t, "P-256"))
	r := newRig(t, nil, by, other)
	r.Lists.Use(by, func() {})
	r.revoke(t, leaf(t, other, catest.Key(t), nil, begin))
	cert := leaf(t, by, catest.Key(t), nil, begin.Add(-time.Minute))
	r.revoke(t, cert)
	r.Lists.sign(t.Context())
	l := r.served(t, by)
	if len(l.RevokedCertificateEntries) != 1 || l.Number.Int64() != 2 || !l.ThisUpdate.Equal(begin) || !l.NextUpdate.Equal(begin.Add(validity)) {
		t.Fatalf("%+v", l)
	}
	e := l.RevokedCertificateEntries[0]
	invalid, _ := generalized(cert.NotBefore.Add(-time.Second))
	since, _ := generalized(by.Certificate.NotBefore)
	if e.SerialNumber.Cmp(cert.SerialNumber) != 0 || !e.RevocationTime.Equal(cert.NotBefore) || len(e.Extensions) != 1 || string(e.Extensions[0].Value) != string(invalid) {
		t.Errorf("%+v", e) // unspecified is left out (RFC 5280 §5.3.1)
	}
	found := false
	for _, x := range l.Extensions {
		found = found || x.Id.Equal(oidExpiredCertsOnCRL) && string(x.Value) == string(since) && !x.Critical
	}
	if !found {
		t.Error("it doesn't say that it keeps expired certificates")
	}
}

// TestWhenListsAreSigned: at once when a statement is missing, daily while the
// authority signs, a last time when another follows, and again where a statement about
// one that is over comes and its key can still be had.
func TestWhenListsAreSigned(t *testing.T) {
	t.Parallel()
	first, _ := issuing(t, key(t, "P-256"))
	second, _ := issuing(t, key(t, "P-256"))
	signed := func(r *rig) int { return int(testutil.ToFloat64(r.Lists.signed.WithLabelValues("ok"))) }
	var told map[string][]byte
	released, gone, opened := 0, false, 0
	r := newRig(t, func(o *Options) {
		o.Changed = func(_ context.Context, _ uint64, lists map[string][]byte) { told = lists }
		o.Open = func(_ context.Context, id string) (Signing, func(), error) {
			if gone || id != ID(first.Certificate) {
				return Signing{}, nil, errors.New("the key is gone")
			}
			opened++
			return first, func() {}, nil
		}
	}, first, second)
	certificate := func(by Signing) *x509.Certificate { return leaf(t, by, catest.Key(t), nil, r.now) }
	step := func(what string, lists int, do func()) {
		t.Helper()
		before := signed(r)
		do()
		for range 2 { // of which the second has nothing to do
			r.Lists.sign(t.Context())
		}
		if got := signed(r) - before; got != lists {
			t.Errorf("%s: %d lists were signed, want %d", what, got, lists)
		}
	}
	step("an authority begins", 1, func() { r.Lists.Use(first, func() { released++ }) })
	step("an hour passes", 0, func() { r.now = r.now.Add(time.Hour) })
	step("a day passes", 1, func() { r.now = r.now.Add(24 * time.Hour) })
	step("one is revoked", 1, func() { r.revoke(t, certificate(first)) })
	step("another follows", 2, func() { r.Lists.Use(second, func() {}) })
	if released != 1 || !r.served(t, first).NextUpdate.Equal(noEnd) {
		t.Errorf("the first one's key was released %d times, its list ends %v", released, r.served(t, first).NextUpdate)
	}
	step("a day passes for the second alone", 1, func() { r.now = r.now.Add(24 * time.Hour) })
	step("one of the first is revoked", 1, func() { r.revoke(t, certificate(first)) })
	if l := r.served(t, first); opened != 1 || len(l.RevokedCertificateEntries) != 2 || l.Number.Int64() != 2 {
		t.Errorf("opened %d times; %+v", opened, l)
	}
	if !bytes.Equal(told[ID(first.Certificate)], r.served(t, first).Raw) || len(told) != 2 {
		t.Error("whoever is told of lists wasn't told of these")
	}
	gone = true
	step("one of the first is revoked, whose key is gone", 0, func() { r.revoke(t, certificate(first)) })
	gone = false
	step("the key is back", 1, func() { r.now = r.now.Add(retry) })
	if err := r.Lists.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	r.now = r.now.Add(validity)
	if err := r.Lists.Ready(t.Context()); err == nil {
		t.Error("ready with a list that is over")
	}
	r.Lists.close()
}

// TestListsOutliveAProcess: a restart serves what was signed, and lists that are newer
// than the statements are refused.
func TestListsOutliveAProcess(t *testing.T) {
	t.Parallel()
	by, _ := issuing(t, key(t, "P-256"))
	r := newRig(t, nil, by)
	r.Lists.Use(by, func() {})
	r.revoke(t, leaf(t, by, catest.Key(t), nil, begin))
	r.Lists.sign(t.Context())
	before := r.served(t, by)
	r.reopen(t)
	if after := r.served(t, by); string(after.Raw) != string(before.Raw) {
		t.Error("another list after a restart")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	remove(t, filepath.Join(string(r.o.Config.Directory), statementsName))
	remove(t, string(r.o.Config.MarkFile))
	if _, err := Open(t.Context(), r.o); err == nil {
		t.Error("opened without what its lists were made of")
	}
}

// TestHandler: what is served of lists, and to whom nothing changed.
func TestHandler(t *testing.T) {
	t.Parallel()
	by, _ := issuing(t, key(t, "P-256"))
	r := newRig(t, nil, by)
	r.Lists.Use(by, func() {})
	r.Lists.sign(t.Context())
	path := ListPath + ID(by.Certificate) + ".crl"
	w := r.get(path, nil)
	if h := w.Header(); h.Get("Content-Type") != "application/pkix-crl" || h.Get("Cache-Control") != "public, max-age=300" || h.Get("ETag") == "" {
		t.Errorf("%v", h)
	}
	if again := r.get(path, map[string]string{"If-None-Match": w.Header().Get("ETag")}); again.Code != http.StatusNotModified {
		t.Errorf("%d", again.Code)
	}
	for _, bad := range []string{ListPath, ListPath + ".crl", ListPath + "00.crl", ListPath + "../statements.jsonl", ListPath + "../../mark.crl", ListPath + strings.ToUpper(ID(by.Certificate)) + ".crl"} {
		if w := r.get(bad, nil); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
}

// TestListIsOfItsTag: a list that is replaced meanwhile goes out whole, under its own tag.
func TestListIsOfItsTag(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	replace := func(size int) {
		if err := errors.Join(os.WriteFile(r.Lists.dir.Path("next"), make([]byte, size), 0o600), os.Rename(r.Lists.dir.Path("next"), r.Lists.dir.Path("00.crl"))); err != nil {
			t.Error(err)
		}
	}
	replace(0)
	done := make(chan struct{})
	var replacing sync.WaitGroup
	replacing.Go(func() {
		for size := 1; ; size++ {
			select {
			case <-done:
				return
			default:
				replace(size % 1000)
			}
		}
	})
	for range 2000 {
		w := r.get(ListPath+"00.crl", nil)
		var at, size int
		if _, err := fmt.Sscanf(w.Header().Get("ETag"), `"%x-%x"`, &at, &size); err != nil || size != w.Body.Len() {
			t.Errorf("%d bytes under the tag %s", w.Body.Len(), w.Header().Get("ETag"))
			break
		}
	}
	close(done)
	replacing.Wait()
}
