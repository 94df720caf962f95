package conformance

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// timestampAuthority is sigstore's RFC 3161 authority, and the documents in
// which it stands beside Mayfly.
type timestampAuthority struct {
	url           string // where time stamps are given
	trustedRoot   string // path: Mayfly's, and this authority
	signingConfig string // path: Mayfly's, and this authority
}

// Its log names the port that it chose.
var tsaAddress = regexp.MustCompile(`timestamp server at (http://[0-9.]+:[0-9]+)`)

func startTimestampAuthority(t *testing.T, m *mayfly) *timestampAuthority {
	t.Helper()
	p := start(t, filepath.Join(setting(t, "CONFORMANCE_BIN"), "timestamp-server-v2.1.3"), "serve",
		"--host", "127.0.0.1", "--port", "0", "--timestamp-signer", "memory", "--disable-ntp-monitoring")
	var base string
	p.until(t, "it says its address", func() bool {
		found := tsaAddress.FindStringSubmatch(p.output.String())
		if found == nil {
			return false
		}
		base = found[1]
		return true
	})
	tsa := &timestampAuthority{url: base + "/api/v1/timestamp"}

	var chain []any
	rest := get(t, tsa.url+"/certchain")
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		chain = append(chain, map[string]any{"rawBytes": base64.StdEncoding.EncodeToString(block.Bytes)})
	}
	validFor := map[string]any{"start": time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)}
	tsa.trustedRoot = amend(t, m.trustedRoot, func(document map[string]any) {
		document["timestampAuthorities"] = []any{map[string]any{
			"subject":   map[string]any{"organization": "conformance", "commonName": "tsa"},
			"uri":       base,
			"certChain": map[string]any{"certificates": chain},
			"validFor":  validFor,
		}}
	})
	tsa.signingConfig = amend(t, m.signingConfig, func(document map[string]any) {
		document["tsaUrls"] = []any{map[string]any{
			"url": tsa.url, "majorApiVersion": 1, "validFor": validFor, "operator": "conformance",
		}}
		document["tsaConfig"] = map[string]any{"selector": "ANY"}
	})
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
