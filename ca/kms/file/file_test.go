package file_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestOpenRefusesUnknownSchemes(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]string{
		"tpm:0x81000001":  `"tpm" isn't supported (supported: `,
		"issuing.key.pem": "has no scheme: write file:PATH",
		"":                "has no scheme",
		"file:":           "no path",
	} {
		_, err := keystore.Open(t.Context(), uri, kms.Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q): %v; want %q", uri, err, want)
		}
	}
}

// secret writes a passphrase to a file and names it.
func secret(t *testing.T, passphrase string) setting.Secret {
	t.Helper()
	path := filepath.Join(t.TempDir(), "passphrase")
	if err := os.WriteFile(path, []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return setting.Secret{File: setting.Path(path)}
}

func TestFileFormats(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	pkcs8 := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		return block("PRIVATE KEY", der, err)
	}
	sec1, sec1Err := x509.MarshalECPrivateKey(ec)
	parameters := []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")
	ecPEM := block("EC PRIVATE KEY", sec1, sec1Err)

	for _, tt := range []struct {
		name string
		pem  []byte
		want string // in the error; "" opens
	}{
		{"PKCS #8 EC", pkcs8(ec), ""},
		{"PKCS #8 RSA", pkcs8(rsaKey), ""},
		{"SEC 1", ecPEM, ""},
		{"SEC 1 after parameters", append(parameters, ecPEM...), ""},
		{"PKCS #1", block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey), nil), ""},
		{"parameters alone", parameters, "holds EC parameters and no key"},
		{"Ed25519", pkcs8(ed), "use ECDSA P-256"},
		{"P-224", pkcs8(p224), "curve P-224 isn't supported"},
		{"empty", nil, "is empty"},
		{"DER", sec1, ""},
		{"two keys", append(pkcs8(ec), pkcs8(rsaKey)...), "more than one private key"},
		{"text after the key", append(pkcs8(ec), "x"...), ""},
		{"certificate", block("CERTIFICATE", []byte{0x30, 0}, nil), `holds a "CERTIFICATE"`},
		{"damaged", block("PRIVATE KEY", []byte("zzzz"), nil), "is damaged"},
		{"old encryption", []byte("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAAA\n-----END EC PRIVATE KEY-----\n"), "openssl pkcs8 -topk8"},
		{"too large", bytes.Repeat([]byte("x"), 1<<17), "larger than 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "key.pem")
			if err := os.WriteFile(path, tt.pem, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := keystore.Open(t.Context(), "file:"+path, kms.Options{})
			switch {
			case tt.want == "" && err != nil:
				t.Fatal(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path)):
				t.Fatalf("error %v; want the file's name and %q", err, tt.want)
			}
		})
	}
}

// TestFileReadableByOthers: nobody beyond the owner and our groups may use a key.
func TestFileReadableByOthers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key.pem")
	if _, err := keystore.GenerateFile(path, kms.ECDSAP256, nil); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
	for mode, ok := range map[os.FileMode]bool{0o400: true, 0o600: true, 0o700: true, 0o640: true, 0o604: false, 0o602: false, 0o601: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := keystore.Open(t.Context(), "file:"+path, kms.Options{})
		if ok != (err == nil) || !ok && !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	if _, err := keystore.Open(t.Context(), "file:"+filepath.Dir(path), kms.Options{}); err == nil || !strings.Contains(err.Error(), "isn't a regular file") {
		t.Errorf("a folder: %v", err)
	}
	if _, err := keystore.Open(t.Context(), "file:"+path+"x", kms.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestGenerateFileNeverOverwrites(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.GenerateFile(path, kms.ECDSAP256, nil); !errors.Is(err, os.ErrExist) {
		t.Fatalf("error %v; want os.ErrExist", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Fatalf("the file is now %q, %v", b, err)
	}
	if _, err := keystore.GenerateFile(path+"2", "DSA", nil); err == nil || !strings.Contains(err.Error(), "ECDSA-P256") {
		t.Fatalf("an unknown algorithm: %v", err)
	}
}

func TestEncryptedFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "key.pem")
	key, err := keystore.GenerateFile(path, kms.ECDSAP256, []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := keystore.Open(t.Context(), "file:"+path, kms.Options{Passphrase: secret(t, "correct horse")})
	if err != nil {
		t.Fatal(err)
	}
	if !key.Public().(*ecdsa.PublicKey).Equal(s.Public()) {
		t.Fatal("another key came back")
	}
	for want, o := range map[string]kms.Options{
		"is encrypted: set the passphrase":         {},
		"can't be decrypted: check the passphrase": {Passphrase: secret(t, "wrong")},
		"passphrase: reading the secret":           {Passphrase: setting.Secret{File: setting.Path(dir + "/none")}},
	} {
		if _, err := keystore.Open(t.Context(), "file:"+path, o); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v; want %q", err, want)
		}
	}
	plain := filepath.Join(dir, "plain.pem")
	if _, err := keystore.GenerateFile(plain, kms.ECDSAP256, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.Open(t.Context(), "file:"+plain, kms.Options{Passphrase: secret(t, "x")}); err == nil || !strings.Contains(err.Error(), "isn't encrypted, but a passphrase is set") {
		t.Errorf("a passphrase for a plain key: %v", err)
	}
}

// TestOpenSSLAgrees: each reads what the other encrypted.
func TestOpenSSLAgrees(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ours, theirs, pass := filepath.Join(dir, "ours.pem"), filepath.Join(dir, "theirs.pem"), filepath.Join(dir, "pass")
	if err := os.WriteFile(pass, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.GenerateFile(ours, kms.ECDSAP384, []byte("correct horse")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("openssl", "pkey", "-in", ours, "-passin", "file:"+pass, "-noout", "-check").CombinedOutput(); err != nil {
		t.Fatalf("openssl pkey: %v\n%s", err, out)
	}
	out, err := exec.Command("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
		"-aes-256-cbc", "-pass", "file:"+pass, "-out", theirs).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl genpkey: %v\n%s", err, out)
	}
	if err := os.Chmod(theirs, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.Open(t.Context(), "file:"+theirs, kms.Options{Passphrase: setting.Secret{File: setting.Path(pass)}}); err != nil {
		t.Fatal(err)
	}
}

func TestOpenHonoursContext(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key.pem")
	if _, err := keystore.GenerateFile(path, kms.ECDSAP256, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := keystore.Open(ctx, "file:"+path, kms.Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v; want context.Canceled", err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	digest := make([]byte, 32)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := pubkey.Verify(&ec.PublicKey, crypto.SHA256, digest, []byte("no")); err == nil {
		t.Error("a signature that is none verified")
	}
	if err := pubkey.Verify("key", crypto.SHA256, digest, nil); err == nil {
		t.Error("a key that is none verified")
	}
}
