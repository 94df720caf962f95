package devissuer

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
)

const keyBits = 2048

// GenerateKey makes a signing key: RSA, 2048 bits.
func GenerateKey() (*rsa.PrivateKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, fmt.Errorf("devissuer: making a key: %w", err)
	}
	return key, nil
}

// LoadOrCreateKey reads the PKCS#8 PEM key at path, or makes one there with mode
// 0600 when there is no such file. It refuses a file that others may read.
func LoadOrCreateKey(path string) (*rsa.PrivateKey, error) {
	key, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = GenerateKey(); err != nil {
		return nil, err
	}
	return key, saveKey(path, key)
}

func loadKey(path string) (*rsa.PrivateKey, error) {
	text, err := secretfile.Read(path)
	if err != nil {
		return nil, fmt.Errorf("devissuer: the signing key: %w", err)
	}
	parsed, err := pemfile.PrivateKey(text, nil)
	if err != nil {
		return nil, fmt.Errorf("devissuer: the signing key %s can't be read; remove the file to have a new one made: %w", path, err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("devissuer: the signing key %s is not RSA; remove the file to have a new one made", path)
	}
	return key, nil
}

func saveKey(path string, key *rsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("devissuer: encoding the signing key: %w", err)
	}
	if err := durable.Put(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil { // PKCS#8, RFC 7468 §10
		return fmt.Errorf("devissuer: writing the signing key: %w", err)
	}
	return nil
}

// signingKey signs the tokens.
type signingKey struct {
	signer jose.Signer
	public jose.JSONWebKey
}

func newSigningKey(key *rsa.PrivateKey) (signingKey, error) {
	if key == nil {
		return signingKey{}, errors.New("devissuer: no signing key was given")
	}
	if bits := key.N.BitLen(); bits < keyBits {
		return signingKey{}, fmt.Errorf("devissuer: the signing key has %d bits: expected %d or more", bits, keyBits)
	}
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.RS256), Use: "sig"}
	thumbprint, err := public.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return signingKey{}, fmt.Errorf("devissuer: the signing key's thumbprint: %w", err)
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	// RS256 because cosign takes tokens in other algorithms from files only.
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: public.KeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return signingKey{}, fmt.Errorf("devissuer: making a signer: %w", err)
	}
	return signingKey{signer: signer, public: public}, nil
}

// sign makes the compact serialisation of the payload.
func (k *signingKey) sign(payload []byte) (string, error) {
	jws, err := k.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("devissuer: signing a token: %w", err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("devissuer: writing a token: %w", err)
	}
	return token, nil
}

// jwks is the key as it is served (RFC 7517 §5).
func (k *signingKey) jwks() jose.JSONWebKeySet {
	return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{k.public}}
}
