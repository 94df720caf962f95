package conformance

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rekor is a transparency log of signatures, which some clients can't do without.
type rekor struct {
	url     string
	version int    // of its API
	key     string // path: its public key
}

// startRekorTiles runs Rekor v2 with its log in a folder. Clients take the host of
// its URL, without the port, for the name in its checkpoints.
func startRekorTiles(t *testing.T) *rekor {
	t.Helper()
	const host = "127.0.0.1"
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir, port := t.TempDir(), freePort(t)
	key := filepath.Join(dir, "key.pem")
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if der, err = x509.MarshalPKIXPublicKey(public); err != nil {
		t.Fatal(err)
	}
	r := &rekor{url: "http://" + host + ":" + port, version: 2, key: filepath.Join(dir, "key.pub")}
	write(t, r.key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	p := start(t, tool(t, "rekor-server-posix-v2.3.0"), "serve",
		"--hostname", host, "--http-address", host, "--http-port", port,
		"--grpc-address", host, "--grpc-port", freePort(t), "--http-metrics-port", freePort(t),
		"--signer-filepath", key, "--storage-dir", filepath.Join(dir, "log"),
		"--batch-max-age", "100ms", "--checkpoint-interval", "1s") // a client waits for a checkpoint
	p.until(t, "it answers", func() bool { return answers(t, r.url+"/healthz") })
	r.first(t)
	return r
}

// first makes the log's first entry. Its index is 0, which protobuf's JSON leaves out,
// and sigstore-java and sigstore-python can't do without.
func (r *rekor) first(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("first"))
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"hashedRekordRequestV002": map[string]any{
		"digest": digest[:],
		"signature": map[string]any{"content": signature, "verifier": map[string]any{
			"publicKey": map[string]any{"rawBytes": public}, "keyDetails": "PKIX_ECDSA_P256_SHA_256",
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/api/v2/log/entries", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := caller(t).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if said, err := io.ReadAll(response.Body); err != nil || response.StatusCode/100 != 2 {
		t.Fatalf("%s: %s %v", response.Status, said, err)
	}
}

// documents are what clients are told of an instance: Mayfly's own, and the services
// that stand beside it.
type documents struct {
	trustedRoot, signingConfig, trustConfig string // paths

	// What signatures get beside: an entry in a Rekor, a time stamp.
	logged, stamped bool

	home string // of a client that keeps what it learns
}

// documents are those that Mayfly serves.
func (m *mayfly) documents(t *testing.T) documents {
	t.Helper()
	dir := t.TempDir()
	d := documents{
		trustedRoot:   m.download(t, dir, "/trusted_root.json"),
		signingConfig: m.download(t, dir, "/signing_config.json"),
		trustConfig:   m.download(t, dir, "/trust_config.json"),
	}
	services := string(get(t, m.HTTP+"/signing_config.json"))
	d.logged, d.stamped = strings.Contains(services, `"rekorTlogUrls"`), strings.Contains(services, `"tsaUrls"`)
	return d
}

// trusts configures services that stand beside Mayfly, while it runs, and answers
// with the documents that then name them. Mayfly gives timestamps itself: tsa may be nil.
func (m *mayfly) trusts(t *testing.T, tsa *timestampAuthority, logs ...*rekor) documents {
	t.Helper()
	path := filepath.Join(m.dir, "mayfly.yaml")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	config, _, _ := strings.Cut(string(content), "\ntrust:\n")
	config += "\ntrust:\n"
	var urls []string
	if tsa != nil {
		config += "  timestamp_authorities:\n    - {url: " + tsa.url + ", chain: " + tsa.chain + "}\n"
		urls = append(urls, tsa.url)
	}
	for i, l := range logs {
		if i == 0 {
			config += "  transparency_logs:\n"
		}
		config += fmt.Sprintf("    - {url: %s, api_version: %d, key_file: %s}\n", l.url, l.version, l.key)
		urls = append(urls, l.url)
	}
	write(t, path, []byte(config))
	m.process.until(t, "the documents name the services", func() bool {
		told := string(get(t, m.HTTP+"/signing_config.json"))
		return !slices.ContainsFunc(urls, func(url string) bool { return !strings.Contains(told, url) })
	})
	return m.documents(t)
}
