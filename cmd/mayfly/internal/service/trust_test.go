package service

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestReloadTakesServicesBeside: a Rekor that the configuration names from now on is
// in all documents; one whose key can't be read leaves them as they are.
func TestReloadTakesServicesBeside(t *testing.T) {
	t.Parallel()
	r := newReloading(t, nil)
	if !strings.Contains(r.document(t, "/trusted_root.json"), `"tlogs":[],`) {
		t.Error("no empty list of Rekor logs")
	}
	der, err := x509.MarshalPKIXPublicKey(catest.Key(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "rekor.pem")
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	name := func(file string) func(*config.Config) {
		return func(c *config.Config) {
			c.Trust.TransparencyLogs = []trustroot.TransparencyLogConfig{{URL: "https://rekor.example", APIVersion: 1, KeyFile: setting.Path(file)}}
			c.Trust.Operators = map[string]string{"rekor.example": "example.com"}
		}
	}
	r.offer(name(key))
	r.hup()
	r.expect(t, "with a Rekor", 1, 0)
	for path, want := range map[string]string{
		"/trusted_root.json":   `"tlogs":[{"baseUrl":"https://rekor.example",`,
		"/signing_config.json": `"operator":"example.com"}],"rekorTlogConfig"`,
		"/trust_config.json":   `"tlogs":[{"baseUrl":"https://rekor.example",`,
	} {
		if got := r.document(t, path); !strings.Contains(got, want) {
			t.Errorf("%s: %s", path, got)
		}
	}
	if strings.Contains(r.lines.String(), "can't be verified any more") {
		t.Errorf("a warning where nothing is lost: %s", r.lines.String())
	}
	before := r.document(t, "/trust_config.json")
	r.offer(name(r.file)) // no key
	r.hup()
	r.expect(t, "with a file that is no key", 1, 1)
	if !strings.Contains(r.lines.String(), "trust.transparency_logs[0].key_file: ") || r.document(t, "/trust_config.json") != before {
		t.Errorf("%s", r.lines.String())
	}
	r.offer(nil) // what recorded signatures isn't listed any more
	r.hup()
	r.expect(t, "without the Rekor", 2, 1)
	if said := r.lines.String(); !strings.Contains(said, "signatures that were good can't be verified any more") || !strings.Contains(said, "the Rekor log https://rekor.example (log id ") {
		t.Errorf("no warning: %s", said)
	}
}

func (r *reloading) document(t *testing.T, path string) string {
	t.Helper()
	_, b, err := get(t.Context(), r.url+path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
