package conformance

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

const omniwitnessName = "omniwitness-v0.0.0-20260720115447-2e1c6971d19e"

// withWitness runs transparency-dev's witness until the test ends, tells it of the
// log of a CA, and has that log ask for its cosignatures. v becomes the witness's key.
func withWitness(v *note.Verifier) change {
	return func(t *testing.T, dir, config string) string {
		secret, public, err := note.GenerateKey(rand.Reader, "witness.example")
		if err != nil {
			t.Fatal(err)
		}
		if *v, err = formats.NewVerifierForCosignatureV1(public); err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(config, "\n    url: ")
		log, _, _ := strings.Cut(rest, "\n")
		home := t.TempDir()
		write(t, filepath.Join(home, "key"), []byte(secret))
		key := logVerifierKey(t, dir, log)
		origin, _, _ := strings.Cut(key, "+")
		write(t, filepath.Join(home, "logs.yaml"), []byte("Logs:\n  - Origin: "+origin+"\n    PublicKey: "+key+"\n    URL: "+log+"\n"))
		address := "127.0.0.1:" + freePort(t)
		p := start(t, filepath.Join(setting(t, "CONFORMANCE_BIN"), omniwitnessName), "--listen", address, "--metrics_listen", "",
			"--private_key_path", filepath.Join(home, "key"), "--additional_logs", filepath.Join(home, "logs.yaml"), "--logtostderr")
		p.until(t, "it listens", func() bool {
			c, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
			return err == nil && c.Close() == nil
		})
		return strings.Replace(config, "\n  embedded:\n", "\n  embedded:\n    witnesses:\n      list:\n        - url: http://"+address+"\n          key: "+public+"\n", 1)
	}
}

// logVerifierKey is the key of the CA's embedded log in the form that notes have.
func logVerifierKey(t *testing.T, dir, log string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "ctlog.key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	if block == nil {
		t.Fatal("the log's key is not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("the log's key is a %T", parsed)
	}
	u, err := url.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	text, err := formats.RFC6962VerifierString(u.Host+u.Path, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// testWitness finds the witness's cosignature on the checkpoint that all readers
// of the log get.
func testWitness(t *testing.T, m *mayfly, witness note.Verifier) {
	checkpoint := get(t, m.CTLog+"/checkpoint")
	n, err := note.Open(checkpoint, note.VerifierList(witness))
	if err != nil {
		t.Fatalf("%v:\n%s", err, checkpoint)
	}
	at, err := formats.CoSigV1Timestamp(n.Sigs[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cosigned by %s at %s, beside %d other signature", n.Sigs[0].Name, at.UTC(), len(n.UnverifiedSigs))
}
