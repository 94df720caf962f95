package conformance

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Commits whose data the binary under test goes on with, and what it leaves to them.
var earlierVersions = map[string]struct {
	commit  string
	refused string // what the earlier one says of the data afterwards; "" where it goes on
}{
	"upgrade, and refused": {"2423cbdf1fe356ce0970627e667db8057b47bcba", "not a mark"}, // before the write-ahead file
	"upgrade, and back":    {"0ba3b59b4fccdcd48dee8fd1bab4e63eb6d94708", ""},           // since the audit trail is chained
}

// TestUpgradeAndBack: the data of an earlier version is gone on with, whole; and the earlier
// one goes on with it in turn or refuses it in words, and then it is as whole as before.
func TestUpgradeAndBack(t *testing.T) {
	current := setting(t, "MAYFLY_BIN")
	for name, c := range earlierVersions {
		t.Run(name, func(t *testing.T) {
			old, dir := earlierMayfly(t, c.commit), filepath.Join(t.TempDir(), "mayfly-data")
			entries := 0
			issues := func(binary string) {
				t.Helper()
				t.Setenv("MAYFLY_BIN", binary)
				m := startDevIn(t, dir)
				token := filepath.Join(t.TempDir(), "token")
				write(t, token, []byte(m.token(t)))
				command(t, nil, binary, "request", "--ca", m.HTTP, "--token-file", token, "--trusted-root", m.trustedRoot)
				m.stopDev(t)
				entries++
				var log struct {
					Entries int `json:"entries"`
				}
				said := command(t, nil, current, "log", "verify", "--dir", filepath.Join(dir, "ctlog"), "--mark", filepath.Join(dir, "ctlog.mark"), "--json")
				if err := json.Unmarshal([]byte(said), &log); err != nil || log.Entries != entries {
					t.Fatalf("after %s: %d entries were promised, and the log is %s (%v)", binary, entries, said, err)
				}
			}
			issues(old)
			issues(current)
			if c.refused == "" {
				issues(old)
			} else if said, err := attempt(t, nil, old, "dev", "--dir", dir, "--http-address", "127.0.0.1:0", "--grpc-address", "127.0.0.1:0",
				"--issuer-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"); err == nil || !strings.Contains(said, c.refused) {
				t.Fatalf("the earlier version on the data of the current one: %v; want %q\n%s", err, c.refused, said)
			}
			issues(current)
			trail := filepath.Join(dir, "audit", "audit.jsonl")
			command(t, nil, current, "audit", "verify", "--trail", trail)
			if said := command(t, nil, current, "audit", "search", "--trail", trail); strings.Count(said, " issued ") != entries {
				t.Errorf("%d certificates were issued, and the trail has\n%s", entries, said)
			}
		})
	}
}

// earlierMayfly builds the program of a commit, once. It needs the repository's history.
func earlierMayfly(t *testing.T, commit string) string {
	t.Helper()
	built := filepath.Join(setting(t, "CONFORMANCE_BIN"), "mayfly-"+commit[:12])
	if _, err := os.Stat(built); err == nil {
		return built
	}
	run := func(dir, script string, args ...string) error {
		c := exec.CommandContext(t.Context(), "bash", append([]string{"-euo", "pipefail", "-c", script, "-"}, args...)...)
		c.Dir, c.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
		said, err := c.CombinedOutput()
		t.Logf("%s", said)
		return err
	}
	tree, source := filepath.Join("..", "..", ".."), t.TempDir()
	if run(tree, `git cat-file -e "$1^{commit}" || { git fetch --quiet --unshallow && git cat-file -e "$1^{commit}"; }`, commit) != nil {
		t.Fatalf("the commit %s isn't here, nor where this clone is of", commit)
	}
	if err := run(tree, `git archive "$1" | tar --extract --directory "$2"`, commit, source); err != nil {
		t.Fatal(err)
	}
	if err := run(source, `go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$1.new" ./cmd/mayfly && mv "$1.new" "$1"`, built); err != nil {
		t.Fatal(err)
	}
	return built
}
