package client

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// KeyType names a type of ephemeral key as it is written on a command line.
type KeyType string

// DefaultKeyType is what every verifier accepts.
const DefaultKeyType KeyType = "p256"

// keyType is how keys of one type are made and used.
type keyType struct {
	name      KeyType
	algorithm fulciov2.PublicKeyAlgorithm // the CA ignores it
	hash      crypto.Hash                 // of the challenge; zero: the challenge itself is signed
	generate  func() (crypto.Signer, error)
}

var keyTypes = []keyType{
	{"p256", fulciov2.PublicKeyAlgorithm_ECDSA, crypto.SHA256, onCurve(elliptic.P256())},
	{"p384", fulciov2.PublicKeyAlgorithm_ECDSA, crypto.SHA384, onCurve(elliptic.P384())},
	{"p521", fulciov2.PublicKeyAlgorithm_ECDSA, crypto.SHA512, onCurve(elliptic.P521())},
	// The only RSA name of the API's enum is RSA_PSS, although proofs are PKCS#1 v1.5.
	{"rsa2048", fulciov2.PublicKeyAlgorithm_RSA_PSS, crypto.SHA256, ofBits(2048)},
	{"rsa3072", fulciov2.PublicKeyAlgorithm_RSA_PSS, crypto.SHA256, ofBits(3072)},
	{"rsa4096", fulciov2.PublicKeyAlgorithm_RSA_PSS, crypto.SHA256, ofBits(4096)},
	{"ed25519", fulciov2.PublicKeyAlgorithm_ED25519, 0, func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}},
}

func onCurve(c elliptic.Curve) func() (crypto.Signer, error) {
	return func() (crypto.Signer, error) { return ecdsa.GenerateKey(c, rand.Reader) }
}

func ofBits(n int) func() (crypto.Signer, error) {
	return func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, n) }
}

// KeyTypes lists the types that GenerateKey knows, the default first.
func KeyTypes() []string {
	names := make([]string, len(keyTypes))
	for i, t := range keyTypes {
		names[i] = string(t.name)
	}
	return names
}

// CheckKeyType returns the error that GenerateKey would for an unknown type.
func CheckKeyType(t string) error {
	if slices.Contains(KeyTypes(), t) {
		return nil
	}
	return problem(Misused, "use one of "+strings.Join(KeyTypes(), ", "), "%q is not a type of key", t)
}

// Key is a fresh private key that only this process holds until it is written.
type Key struct {
	signer crypto.Signer
	typ    keyType
}

// GenerateKey makes a key. An unknown type is Misused.
func GenerateKey(t KeyType) (*Key, error) {
	if err := CheckKeyType(string(t)); err != nil {
		return nil, err
	}
	typ := keyTypes[slices.Index(KeyTypes(), string(t))]
	signer, err := typ.generate()
	if err != nil {
		return nil, problem(Failed, "", "making a %s key", t).because(err)
	}
	return &Key{signer: signer, typ: typ}, nil
}

// Type is the type that the key was made with.
func (k *Key) Type() KeyType { return k.typ.name }

// Public is the public half.
func (k *Key) Public() crypto.PublicKey { return k.signer.Public() }

// Prove signs the raw bytes of the challenge: ECDSA in ASN.1 DER with the
// curve's own hash, RSA PKCS#1 v1.5 with SHA-256, Ed25519 pure.
func (k *Key) Prove(challenge string) ([]byte, error) {
	sig, err := crypto.SignMessage(k.signer, rand.Reader, []byte(challenge), k.typ.hash)
	if err != nil {
		return nil, problem(Failed, "", "signing the challenge").because(err)
	}
	return sig, nil
}

// CSR is a PKCS#10 request (RFC 2986) in PEM, self-signed by the key and
// otherwise empty: the CA takes nothing but the key from it.
func (k *Key) CSR() ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k.signer)
	if err != nil {
		return nil, problem(Failed, "", "making the certificate request").because(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// SPKI is the public key as a PEM SubjectPublicKeyInfo.
func (k *Key) SPKI() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return nil, problem(Failed, "", "encoding the public key").because(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// PKCS8 is the private key as PEM PKCS#8 (RFC 5208), unencrypted.
func (k *Key) PKCS8() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, problem(Failed, "", "encoding the private key").because(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// String names the key without any of it.
func (k *Key) String() string {
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return string(k.typ.name) + " key"
	}
	return fmt.Sprintf("%s key SHA256:%x", k.typ.name, sha256.Sum256(der))
}

// GoString is String, so that no format verb prints the private key.
func (k *Key) GoString() string { return k.String() }
