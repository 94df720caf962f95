package trustroot

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/strict"
)

// written is a file with the text.
func written(t *testing.T, text []byte) setting.Path {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return setting.Path(path)
}

func writtenKey(t *testing.T, public any) setting.Path {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return written(t, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// TestConfigIsRead: what the section names becomes entries of the history, with
// defaults for what it leaves out.
func TestConfigIsRead(t *testing.T) {
	t.Parallel()
	chain := newStamping(t, asIs)
	edPublic, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	change := epoch.AddDate(0, 3, 0)
	c := Config{
		TimestampAuthorities: []TimestampAuthorityConfig{
			{URL: "https://tsa.example:8443/api/v1/timestamp", Chain: written(t, catest.PEM(chain...))},
			{Chain: written(t, catest.PEM(newStamping(t, asIs)...)), Operator: "them", Start: epoch, End: change},
		},
		TransparencyLogs: []TransparencyLogConfig{
			{URL: "https://rekor.example/", APIVersion: 1, KeyFile: writtenKey(t, catest.Key(t).Public()), End: change},
			{URL: "http://10.0.0.7:3003", APIVersion: 2, KeyFile: writtenKey(t, edPublic), Origin: "rekor.internal", Start: change},
		},
		Operators: map[string]string{"rekor.example": "example.com"},
	}
	var f setting.Faults
	c.Check("trust", &f)
	h := c.Read("trust", &f)
	if err := f.Err(); err != nil {
		t.Fatal(err)
	}
	tsa := h.TimestampAuthorities
	if !tsa[0].Chain[2].Equal(chain[2]) || tsa[0].Operator != "tsa.example" || !tsa[0].Start.Equal(chain[0].NotBefore) || !tsa[0].End.IsZero() {
		t.Errorf("%+v", tsa[0])
	}
	if tsa[1].URL != "" || tsa[1].Operator != "them" || !tsa[1].Start.Equal(epoch) || !tsa[1].End.Equal(change) {
		t.Errorf("%+v", tsa[1])
	}
	v1, v2 := h.TransparencyLogs[0], h.TransparencyLogs[1]
	if v1.URL != "https://rekor.example" || v1.APIVersion != 1 || v1.Operator != "example.com" || !v1.Start.IsZero() || !v1.End.Equal(change) {
		t.Errorf("%+v", v1)
	}
	if id := sum(slices.Concat([]byte("rekor.internal\n\x01"), edPublic)); v2.APIVersion != 2 || v2.Operator != "10.0.0.7" || !bytes.Equal(v2.ID[:], id) {
		t.Errorf("%+v", v2)
	}
	h.Authorities = sample(t).Authorities
	var root decoded
	decode(t, render(t, h).TrustedRoot, &root)
	if got := root.Tlogs[0].PublicKey.ValidFor; got.Start != "2026-01-02T03:04:05Z" || got.End != "2026-04-02T03:04:05Z" || root.Tlogs[1].PublicKey.KeyDetails != "PKIX_ED25519" {
		t.Errorf("%+v", root.Tlogs)
	}
}

// TestExamples: what docs/trust.md has one write is read, and rendered.
func TestExamples(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "trust.md"))
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```\n").FindAllSubmatch(text, -1)
	if len(examples) != 2 {
		t.Errorf("%d examples", len(examples))
	}
	dir := t.TempDir()
	for _, name := range []string{"tsa-chain.pem", "tsa-2026.pem", "tsa-2027.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), catest.PEM(newStamping(t, asIs)...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(string(writtenKey(t, edKey(t))), filepath.Join(dir, "rekor.pub")); err != nil {
		t.Fatal(err)
	}
	for _, example := range examples {
		var c struct {
			Trust Config `yaml:"trust"`
		}
		document, ok := strict.Decode(example[1], dir, &c)
		if !ok || len(document.Faults) > 0 {
			t.Fatalf("%v\n%s", document.Faults, example[1])
		}
		var f setting.Faults
		c.Trust.Check("trust", &f)
		h := c.Trust.Read("trust", &f)
		if err := f.Err(); err != nil {
			t.Fatal(err)
		}
		h.Authorities = sample(t).Authorities
		render(t, h)
		if len(h.TimestampAuthorities) == 0 || c.Trust.Operator("", "https://accounts.google.com") == "" {
			t.Errorf("%+v", h)
		}
	}
}

// TestFilesRefused: what can't be told to clients is a fault at its place, and
// what is right beside it is read all the same.
func TestFilesRefused(t *testing.T) {
	t.Parallel()
	good := written(t, catest.PEM(newStamping(t, asIs)...))
	c := Config{
		TimestampAuthorities: []TimestampAuthorityConfig{
			{Chain: "missing.pem"}, {Chain: written(t, []byte("x"))}, {Chain: written(t, catest.PEM(newChain(t, "A", "A")...))}, {Chain: good},
		},
		TransparencyLogs: []TransparencyLogConfig{
			{URL: "https://r", APIVersion: 1, KeyFile: "missing.pem"}, {URL: "https://r", APIVersion: 1, KeyFile: good}, {URL: "https://r", APIVersion: 1, KeyFile: writtenKey(t, p224(t))},
		},
	}
	var f setting.Faults
	h := c.Read("trust", &f)
	if len(h.TimestampAuthorities) != 1 || len(h.TransparencyLogs) != 0 {
		t.Errorf("%+v", h)
	}
	wantFaults(t, &f, []string{
		"trust.timestamp_authorities[0].chain: reading it: open missing.pem",
		"trust.timestamp_authorities[1].chain: ",
		"trust.timestamp_authorities[2].chain: ",
		"trust.transparency_logs[0].key_file: reading it: open missing.pem",
		"trust.transparency_logs[1].key_file: ",
		"trust.transparency_logs[2].key_file: ",
	})
}

func wantFaults(t *testing.T, f *setting.Faults, want []string) {
	t.Helper()
	if f.Len() != len(want) {
		t.Fatalf("%v; want %q", f.Err(), want)
	}
	for i, got := range strings.Split(f.Err().Error(), "\n") {
		if !strings.HasPrefix(got, want[i]) {
			t.Errorf("%s; want %s", got, want[i])
		}
	}
}

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	end := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := Config{
		TimestampAuthorities: []TimestampAuthorityConfig{{URL: "tsa.example"}, {Chain: "c", Start: end, End: end}},
		TransparencyLogs: []TransparencyLogConfig{
			{}, {URL: "https://r.example", APIVersion: 3, KeyFile: "k", Origin: "r.example:443"}, {URL: "https://r.example", APIVersion: 2, KeyFile: "k", Origin: "r.example/log"},
			{URL: "https://r.example", APIVersion: 2, KeyFile: "k", Origin: "R.example"},
		},
		Operators: map[string]string{"https://x": "y"},
	}
	var f setting.Faults
	c.Check("trust", &f)
	wantFaults(t, &f, []string{
		`trust.timestamp_authorities[0].url: "tsa.example" is not an http or https URL`,
		"trust.timestamp_authorities[0].chain: required",
		"trust.timestamp_authorities[1].end: must be after start",
		"trust.transparency_logs[0].url: required",
		"trust.transparency_logs[0].api_version: is 0: 1, or 2",
		"trust.transparency_logs[0].key_file: required",
		"trust.transparency_logs[1].api_version: is 3",
		`trust.transparency_logs[1].origin: "r.example:443" isn't a host`,
		`trust.transparency_logs[2].origin: "r.example/log" isn't a host`,
		`trust.transparency_logs[3].origin: "R.example" isn't a host`,
		`trust.operators: "https://x": "y" isn't a host`,
	})
	many := Config{TimestampAuthorities: make([]TimestampAuthorityConfig, maxEntries+1), Operators: map[string]string{"x.example": ""}}
	for i := range many.TimestampAuthorities {
		many.TimestampAuthorities[i].Chain = "c"
	}
	f = setting.Faults{}
	many.Check("trust", &f)
	wantFaults(t, &f, []string{"trust.timestamp_authorities: has 65 entries; at most 64", `trust.operators: "x.example": "" isn't a host`})
}
