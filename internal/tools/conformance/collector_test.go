package conformance

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCollector: a Telegraf with the configuration of docs/audit.md writes every record
// of a service that issues and refuses, byte for byte, though it starts late and is
// started anew; what it wrote vouches for the trail. Standard output has them all, too.
func TestCollector(t *testing.T) {
	t.Run("telegraf", testTelegraf)
}

func testTelegraf(t *testing.T) {
	dir, port := t.TempDir(), freePort(t)
	written, config := filepath.Join(dir, "got.jsonl"), filepath.Join(dir, "telegraf.conf")
	_, text, _ := strings.Cut(string(readFile(t, "../../../docs/audit.md")), "```toml\n")
	text, _, found := strings.Cut(text, "```")
	here := strings.NewReplacer("127.0.0.1:8186", "127.0.0.1:"+port, "/var/log/telegraf/mayfly-audit.jsonl", written).Replace(text)
	if !found || !strings.Contains(here, port) || !strings.Contains(here, written) {
		t.Fatalf("docs/audit.md has another configuration of Telegraf: %s", text)
	}
	write(t, config, []byte(here))

	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer(), func(_ *testing.T, _, config string) string {
		return strings.Replace(config, "\naudit:\n", "\naudit:\n  sinks:\n    - {name: stdout, url: \"stdout:\"}\n    - {name: telegraf, url: \"http://127.0.0.1:"+port+"/cloudevents\"}\n", 1)
	})
	trail := filepath.Join(m.dir, "audit", "audit.jsonl")
	works := func() {
		t.Helper()
		newOrderer(t, m, issuer.token(t)).must(t)
		if status, _, err := newOrderer(t, m, "no token").order(t.Context()); err != nil || status != http.StatusUnauthorized {
			t.Fatalf("without a token: %d, %v", status, err)
		}
	}
	collects := func() {
		t.Helper()
		collector := start(t, tool(t, "telegraf-v1.37.2"), "--config", config)
		collector.until(t, "it has every record", func() bool {
			got, err := os.ReadFile(written)
			if err != nil {
				return false // before the first
			}
			return holds(t, string(got), trail)
		})
		collector.stop(t)
	}
	works()
	m.process.until(t, "the sink fails", func() bool { return strings.Contains(m.process.output.String(), `"sink":"telegraf"`) })
	collects()
	works()
	m.process.stop(t) // which signs heads
	lives := m.process.output.String()
	m = serve(t, m.dir, filepath.Join(m.dir, "mayfly.yaml"))
	collects()
	m.process.until(t, "its output has every record, too", func() bool { return holds(t, lives+m.process.output.String(), trail) })
	key := filepath.Join(dir, "audit.pub.pem")
	write(t, key, []byte(command(t, nil, setting(t, "MAYFLY_BIN"), "kms", "public", "file:"+filepath.Join(m.dir, "audit.key.pem"))+"\n"))
	command(t, nil, setting(t, "MAYFLY_BIN"), "audit", "verify", "--trail", trail, "--key", key, "--heads", written)
}

// holds tells whether every record of a trail, its refusals too, is a line of what was got.
func holds(t *testing.T, got, trail string) bool {
	t.Helper()
	for _, file := range []string{trail, strings.Replace(trail, ".jsonl", ".refused.jsonl", 1)} {
		for line := range strings.Lines(string(readFile(t, file))) {
			if !strings.Contains("\n"+got, "\n"+line) {
				return false
			}
		}
	}
	return true
}
