package conformance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// timestampAuthority is sigstore's RFC 3161 authority beside Mayfly, whose documents
// name it.
type timestampAuthority struct {
	url   string // where time stamps are given
	chain string // path: its certificates
	documents
}

// Its log names the port that it chose.
var tsaAddress = regexp.MustCompile(`timestamp server at (http://[0-9.]+:[0-9]+)`)

// startTimestampAuthority puts it into Mayfly's documents, beside these logs.
func startTimestampAuthority(t *testing.T, m *mayfly, logs ...*rekor) *timestampAuthority {
	t.Helper()
	p := start(t, filepath.Join(setting(t, "CONFORMANCE_BIN"), "timestamp-server-v2.1.3"), "serve",
		"--host", "127.0.0.1", "--port", "0", "--timestamp-signer", "memory", "--disable-ntp-monitoring")
	tsa := new(timestampAuthority)
	p.until(t, "it says its address", func() bool {
		found := tsaAddress.FindStringSubmatch(p.output.String())
		if found == nil {
			return false
		}
		tsa.url = found[1] + "/api/v1/timestamp"
		return true
	})
	tsa.chain = filepath.Join(t.TempDir(), "tsa.pem")
	write(t, tsa.chain, get(t, tsa.url+"/certchain"))
	tsa.documents = m.trusts(t, tsa, logs...)
	return tsa
}

// amend writes a changed copy of a JSON document and answers with its path.
func amend(t *testing.T, path string, change func(map[string]any)) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var document map[string]any
	if err := json.Unmarshal(content, &document); err != nil {
		t.Fatal(err)
	}
	change(document)
	if content, err = json.Marshal(document); err != nil {
		t.Fatal(err)
	}
	amended := filepath.Join(t.TempDir(), filepath.Base(path))
	write(t, amended, append(content, '\n'))
	return amended
}
