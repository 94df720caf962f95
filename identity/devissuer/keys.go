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
	text, err := secretfile.Read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return createKey(path)
	case err != nil:
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

func createKey(path string) (*rsa.PrivateKey, error) {
	key, err := GenerateKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("devissuer: encoding the signing key: %w", err)
	}
	if err := durable.Put(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil { // PKCS#8, RFC 7468 §10
		return nil, fmt.Errorf("devissuer: writing the signing key: %w", err)
	}
	return key, nil
}

// use has the tokens signed with the key.
func (i *Issuer) use(key *rsa.PrivateKey) error {
	if key == nil {
		return errors.New("devissuer: no signing key was given")
	}
	if bits := key.N.BitLen(); bits < keyBits {
		return fmt.Errorf("devissuer: the signing key has %d bits: expected %d or more", bits, keyBits)
	}
	i.public = jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.RS256), Use: "sig"}
	thumbprint, err := i.public.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return fmt.Errorf("devissuer: the signing key's thumbprint: %w", err)
	}
	i.public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	// RS256 because cosign takes tokens in other algorithms from files only.
	i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: i.public.KeyID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return fmt.Errorf("devissuer: making a signer: %w", err)
	}
	return nil
}
