package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLostStates: states of authorities that aren't there are a fault once anything
// shows that the CA has issued, and else a beginning.
func TestLostStates(t *testing.T) {
	t.Parallel()
	const active = `{"version":1,"authorities":[{"name":"a","state":"active"}]}`
	for name, c := range map[string]struct {
		files map[string]string // by name below the configuration's folder
		want  string
	}{
		"nothing":                     {nil, ""},
		"an empty audit trail":        {map[string]string{"audit.jsonl": "", "audit.refused.jsonl": "{}\n"}, ""},
		"an audit trail":              {map[string]string{"audit.jsonl": "{}\n"}, "audit.jsonl shows"},
		"a rotated audit trail":       {map[string]string{"audit.jsonl": "", "audit-2026-01-01T00-00-00.000.jsonl.gz": "x"}, "audit-2026-01-01T00-00-00.000.jsonl.gz shows"},
		"an empty log":                {map[string]string{"log/checkpoint": "ca.example.com/log\n0\nx\n"}, ""},
		"a log":                       {map[string]string{"log/checkpoint": "ca.example.com/log\n7\nx\n"}, "checkpoint shows"},
		"a history":                   {map[string]string{"history/00.pem": "x"}, "00.pem shows"},
		"a history of something else": {map[string]string{"history/lost+found/x": "x"}, ""},
		"states without one":          {map[string]string{"audit.jsonl": "{}\n", "state.json": `{"version":1,"authorities":[]}`}, "names no authority that ever signed, but"},
		"states":                      {map[string]string{"audit.jsonl": "{}\n", "state.json": active}, ""},
	} {
		dir := t.TempDir()
		for file, text := range c.files {
			path := filepath.Join(dir, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		text := strings.Replace(valid, "  authority:\n    chain: chain.pem\n    key: file:issuing.key.pem\n", `  state_file: state.json
  authorities:
    - name: a
      chain: chain.pem
      key: file:issuing.key.pem
    - name: b
      chain: chain.pem
      key: file:b.pem
      mode: ephemeral
      ephemeral: {history: history}
`, 1)
		path := filepath.Join(dir, "mayfly.yaml")
		if err := os.WriteFile(path, []byte(strings.Replace(text, "/var/log/", "", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), "ca.state_file: ") || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}
