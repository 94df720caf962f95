package ceremony

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	zlintlint "github.com/zmap/zlint/v3/lint"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
)

var (
	noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	here = Circumstances{Now: noon, Host: "vault-1", Tool: "mayfly test", Witnesses: []string{"Ada", "Grace"}}
)

// keys are one private key of each kind; RSA takes its time to make.
var keys struct {
	sync.Mutex
	of map[kms.Algorithm][]crypto.Signer
}

// keyOf is the n-th key of a kind.
func keyOf(t testing.TB, a kms.Algorithm, n int) cacert.Key {
	t.Helper()
	keys.Lock()
	defer keys.Unlock()
	if keys.of == nil {
		keys.of = map[kms.Algorithm][]crypto.Signer{}
	}
	for len(keys.of[a]) <= n {
		key, err := a.Generate()
		if err != nil {
			t.Fatal(err)
		}
		keys.of[a] = append(keys.of[a], key)
	}
	return cacert.Key{Signer: keys.of[a][n], Ref: "file:" + string(a)}
}

// made holds a ceremony from beginning to end.
func made(t testing.TB, parent []*x509.Certificate, p cacert.Profile, key, issuer cacert.Key) *Certificate {
	t.Helper()
	c, err := New(parent, p, here)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.For(key.Public(), key.Ref); err != nil {
		t.Fatal(err)
	}
	m, err := c.Sign(issuer)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// root is a root with a key of P-384.
func root(t testing.TB, p cacert.Profile) (*Certificate, cacert.Key) {
	t.Helper()
	key := keyOf(t, kms.ECDSAP384, 0)
	if p.Organization == "" {
		p.Organization = "Example"
	}
	return made(t, nil, p, key, key), key
}

// opensslAgrees has OpenSSL verify the chain, strictly, at noon.
func opensslAgrees(t testing.TB, chain []*x509.Certificate) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, certs ...*x509.Certificate) string {
		var b strings.Builder
		for _, c := range certs {
			b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	last := len(chain) - 1
	args := []string{"verify", "-x509_strict", "-attime", "1772366400", "-no-CApath", "-no-CAstore", "-CAfile", write("root", chain[last])}
	if last > 1 {
		args = append(args, "-untrusted", write("between", chain[1:last]...))
	}
	out, err := exec.CommandContext(t.Context(), "openssl", append(args, write("first", chain[0]))...).CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), ": OK") {
		t.Errorf("openssl verify: %v\n%s", err, out)
	}
}

// zlintAgrees holds a certificate against zlint's lints of the RFCs.
func zlintAgrees(t testing.TB, c *x509.Certificate) {
	t.Helper()
	theirs, err := zx509.ParseCertificate(c.Raw)
	if err != nil {
		t.Fatal(err)
	}
	registry, err := zlintlint.GlobalRegistry().Filter(zlintlint.FilterOptions{
		IncludeSources: zlintlint.SourceList{zlintlint.RFC3279, zlintlint.RFC5280, zlintlint.RFC5480, zlintlint.RFC8813, zlintlint.Community},
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(registry.Names()); n < 100 {
		t.Fatalf("only %d lints: the filter lost them", n)
	}
	for name, result := range zlint.LintCertificateEx(theirs, registry).Results {
		if result.Status >= zlintlint.Notice {
			t.Errorf("zlint %s: %v %s", name, result.Status, result.Details)
		}
	}
}

// wants holds an error against the parts that it should have, in any order.
func wants(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; want %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q; want %q in it", err, part)
		}
	}
}
