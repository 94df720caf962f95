package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	encodingasn1 "encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

const email = "alice@example.com"

// challenges is what a token with an email and a subject gives.
var challenges = []string{email, "alice-subject"}

// testKey is a key pair of an accepted kind.
type testKey struct {
	algorithm string
	signer    crypto.Signer
}

//go:embed testdata/keys
var keyFiles embed.FS

// acceptedKeys is one pair of each accepted kind. They are fixed, so that what
// the fuzzer finds can be found again; they are used nowhere but in these tests.
var acceptedKeys = sync.OnceValue(func() []testKey {
	var keys []testKey
	for _, algorithm := range []string{"ECDSA-P256", "ECDSA-P384", "ECDSA-P521", "RSA-2048", "RSA-3072", "RSA-4096", "Ed25519"} {
		text, err := keyFiles.ReadFile("testdata/keys/" + algorithm + ".pem")
		if err != nil {
			panic(err)
		}
		block, _ := pem.Decode(text)
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			panic(err)
		}
		keys = append(keys, testKey{algorithm, key.(crypto.Signer)})
	}
	return keys
})

// acceptedKey finds a pair by its algorithm.
func acceptedKey(t testing.TB, algorithm string) crypto.Signer {
	t.Helper()
	for _, k := range acceptedKeys() {
		if k.algorithm == algorithm {
			return k.signer
		}
	}
	t.Fatalf("no key %s", algorithm)
	return nil
}

// newPolicy is the policy as it is in service.
func newPolicy(t testing.TB) *Policy {
	t.Helper()
	p, err := NewPolicy()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// spkiOf is the key's SubjectPublicKeyInfo by the standard library.
func spkiOf(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func toPEM(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

// hashOf is the hash that the wire contract prescribes for the key, written down
// here anew.
func hashOf(t testing.TB, public crypto.PublicKey) crypto.Hash {
	t.Helper()
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return map[int]crypto.Hash{256: crypto.SHA256, 384: crypto.SHA384, 521: crypto.SHA512}[k.Params().BitSize]
	case *rsa.PublicKey:
		return crypto.SHA256
	case ed25519.PublicKey:
		return 0
	}
	t.Fatalf("no hash for %T", public)
	return 0
}

// sign signs the text with the hash given.
func sign(t testing.TB, signer crypto.Signer, text string, hash crypto.Hash) []byte {
	t.Helper()
	message := []byte(text)
	if hash != 0 {
		h := hash.New()
		h.Write(message)
		message = h.Sum(nil)
	}
	sig, err := signer.Sign(rand.Reader, message, hash)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// prove makes the proof that a client would make.
func prove(t testing.TB, signer crypto.Signer, text string) []byte {
	t.Helper()
	return sign(t, signer, text, hashOf(t, signer.Public()))
}

// rsaSPKI writes an RSA key with any numbers.
func rsaSPKI(t testing.TB, n, e *big.Int) []byte {
	t.Helper()
	key, err := encodingasn1.Marshal(struct{ N, E *big.Int }{n, e})
	if err != nil {
		t.Fatal(err)
	}
	return writeSPKI(t, oidRSA, encodingasn1.NullRawValue, key)
}

// writeSPKI writes a SubjectPublicKeyInfo of any kind.
func writeSPKI(t testing.TB, oid encodingasn1.ObjectIdentifier, parameters encodingasn1.RawValue, bits []byte) []byte {
	t.Helper()
	der, err := encodingasn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       encodingasn1.BitString
	}{pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: parameters}, encodingasn1.BitString{Bytes: bits, BitLength: 8 * len(bits)}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// ecSPKI writes an elliptic curve key with any point.
func ecSPKI(t testing.TB, curve encodingasn1.ObjectIdentifier, point []byte) []byte {
	t.Helper()
	name, err := encodingasn1.Marshal(curve)
	if err != nil {
		t.Fatal(err)
	}
	return writeSPKI(t, oidEC, encodingasn1.RawValue{FullBytes: name}, point)
}

// wantFault checks that err is a fault of the reason, 4xx, and that neither
// its public text nor its whole text holds any of the secrets.
func wantFault(t testing.TB, err error, want fault.Reason, secrets ...string) {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) {
		t.Fatalf("got %v, want a fault %s", err, want)
	}
	if f.Reason != want {
		t.Fatalf("got %v, want %s", f, want)
	}
	if k := f.Kind(); k != fault.Malformed && k != fault.TooLarge {
		t.Errorf("kind %d isn't the client's fault", k)
	}
	if f.Public == "" || len(f.Public) > 300 {
		t.Errorf("public text of %d bytes: %q", len(f.Public), f.Public)
	}
	for _, s := range secrets {
		if bytes.Contains([]byte(f.Error()), []byte(s)) {
			t.Errorf("the error holds what it must not: %q", f.Error())
		}
	}
}

// openssl runs the machine's openssl in dir: an implementation that isn't Go's.
func openssl(t testing.TB, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, stderr.Bytes())
	}
	return out
}

// writePrivate puts a private key where openssl finds it, and returns its name.
func writePrivate(t testing.TB, dir string, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), toPEM("PRIVATE KEY", der), 0o600); err != nil {
		t.Fatal(err)
	}
	return "key.pem"
}

// writeFile puts a file in dir.
func writeFile(t testing.TB, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
