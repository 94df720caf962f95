package conformance

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// rekor is a transparency log of signatures, which some clients can't do without.
type rekor struct {
	url     string
	version int    // of its API
	key     []byte // SubjectPublicKeyInfo, DER
	details string // of the key, as a trusted root names it
	logID   []byte
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
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir, port := t.TempDir(), freePort(t)
	key := filepath.Join(dir, "key.pem")
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	p := start(t, tool(t, "rekor-server-posix-v2.3.0"), "serve",
		"--hostname", host, "--http-address", host, "--http-port", port,
		"--grpc-address", host, "--grpc-port", freePort(t), "--http-metrics-port", freePort(t),
		"--signer-filepath", key, "--storage-dir", filepath.Join(dir, "log"),
		"--batch-max-age", "100ms", "--checkpoint-interval", "1s") // a client waits for a checkpoint
	r := &rekor{url: "http://" + host + ":" + port, version: 2, details: "PKIX_ED25519"}
	p.until(t, "it answers", func() bool { return answers(t, r.url+"/healthz") })
	if r.key, err = x509.MarshalPKIXPublicKey(public); err != nil {
		t.Fatal(err)
	}
	const ed25519Note = 1 // c2sp.org/signed-note, signature types
	id := sha256.Sum256(append([]byte(host+"\n"), append([]byte{ed25519Note}, public...)...))
	r.logID = id[:]
	return r
}

// documents are what clients are told of an instance: Mayfly's own, and the services
// that stand beside it.
type documents struct {
	dir                                     string
	trustedRoot, signingConfig, trustConfig string // paths in dir
}

// beside puts services into Mayfly's documents.
func beside(t *testing.T, tsa *timestampAuthority, log *rekor) documents {
	t.Helper()
	at, err := url.Parse(log.url)
	if err != nil {
		t.Fatal(err)
	}
	validFor := map[string]any{"start": time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)}
	d := documents{dir: t.TempDir()}
	d.trustedRoot = amend(t, tsa.trustedRoot, func(document map[string]any) {
		document["tlogs"] = []any{map[string]any{
			"baseUrl": log.url, "hashAlgorithm": "SHA2_256", "operator": at.Hostname(),
			"publicKey": map[string]any{
				"rawBytes": base64.StdEncoding.EncodeToString(log.key), "keyDetails": log.details, "validFor": validFor,
			},
			"logId": map[string]any{"keyId": base64.StdEncoding.EncodeToString(log.logID)},
		}}
	})
	d.signingConfig = amend(t, tsa.signingConfig, func(document map[string]any) {
		document["rekorTlogUrls"] = []any{map[string]any{
			"url": log.url, "majorApiVersion": log.version, "validFor": validFor, "operator": at.Hostname(),
		}}
		document["rekorTlogConfig"] = map[string]any{"selector": "ANY"}
	})
	d.trustConfig = filepath.Join(d.dir, "trust_config.json")
	content, err := json.Marshal(map[string]any{
		"mediaType":     "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
		"trustedRoot":   readJSON(t, d.trustedRoot),
		"signingConfig": readJSON(t, d.signingConfig),
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, d.trustConfig, content)
	return d
}

func readJSON(t *testing.T, path string) json.RawMessage {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
