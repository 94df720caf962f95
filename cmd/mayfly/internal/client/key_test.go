package client

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client/clienttest"
)

func TestEveryKeyTypeProvesPossession(t *testing.T) {
	t.Parallel()
	for _, name := range KeyTypes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := GenerateKey(name)
			if err != nil {
				t.Fatal(err)
			}
			proof, err := key.Prove("alice@example.com")
			if err != nil {
				t.Fatal(err)
			}
			if err := clienttest.CheckProof(key.Public(), []byte("alice@example.com"), proof); err != nil {
				t.Error(err)
			}
			if clienttest.CheckProof(key.Public(), []byte("mallory@example.com"), proof) == nil {
				t.Error("the proof verifies over another challenge")
			}
			checkCSR(t, key)
			checkPKCS8(t, key)
		})
	}
}

func checkCSR(t *testing.T, key *Key) {
	t.Helper()
	text, err := key.CSR()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		t.Error(err)
	}
	if len(csr.Extensions) != 0 || csr.Subject.String() != "" {
		t.Error("the CSR asks for more than a key")
	}
}

func checkPKCS8(t *testing.T, key *Key) {
	t.Helper()
	text, err := key.PKCS8()
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		t.Fatal("the key is not one PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !parsed.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
		t.Error("the written key is another key")
	}
	inner := strings.Split(string(text), "\n")[1]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if s := fmt.Sprintf(verb, key); strings.Contains(s, inner) || !strings.Contains(s, "SHA256:") {
			t.Errorf("%s prints %q", verb, s)
		}
	}
}

func TestUnknownKeyType(t *testing.T) {
	t.Parallel()
	_, err := GenerateKey("p224")
	var e *Error
	if !errors.As(err, &e) || e.Kind != Misused || !strings.Contains(e.Fix, "p256") {
		t.Errorf("got %v", err)
	}
	if err := CheckKeyType("p256"); err != nil {
		t.Error(err)
	}
}
