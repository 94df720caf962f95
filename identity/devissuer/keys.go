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
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	keyBits = 2048
	// keyGrace is how long a retired key stays published: the life of its last
	// token, and what a verifier may lag behind.
	keyGrace = TokenLifetime + 5*time.Minute
	// maxKeys bounds what is published when keys rotate faster than they retire.
	maxKeys = 8
	// pemKeyType is PKCS#8, RFC 7468 §10.
	pemKeyType = "PRIVATE KEY"
)

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
	if err := saveKey(path, key); err != nil {
		return nil, err
	}
	return key, nil
}

func loadKey(path string) (*rsa.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("devissuer: the signing key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("devissuer: the signing key %s may be read by others: chmod 600 it", path)
	}
	text, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, fmt.Errorf("devissuer: the signing key: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemKeyType {
		return nil, fmt.Errorf("devissuer: the signing key %s is not a PEM PRIVATE KEY (PKCS#8); remove the file to have a new one made", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("devissuer: the signing key %s can't be parsed; remove the file to have a new one made: %w", path, err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("devissuer: the signing key %s is not RSA; remove the file to have a new one made", path)
	}
	return key, nil
}

// saveKey writes the key beside its place and renames it there, so that no
// half-written key is ever read.
func saveKey(path string, key *rsa.PrivateKey) (err error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("devissuer: encoding the signing key: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // mode 0600
	if err != nil {
		return fmt.Errorf("devissuer: writing the signing key: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("devissuer: writing the signing key: %w", errors.Join(err, os.Remove(f.Name())))
		}
	}()
	err = pem.Encode(f, &pem.Block{Type: pemKeyType, Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// signingKey is a key with what is derived from it once.
type signingKey struct {
	signer  jose.Signer
	public  jose.JSONWebKey
	retires time.Time // zero for the key in use
}

// keyRing is the key in use and the retired ones that are still published.
type keyRing struct {
	now func() time.Time

	mu   sync.RWMutex
	keys []signingKey // the key in use is the first
}

func newKeyRing(key *rsa.PrivateKey, now func() time.Time) (*keyRing, error) {
	first, err := newSigningKey(key)
	if err != nil {
		return nil, err
	}
	return &keyRing{now: now, keys: []signingKey{first}}, nil
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

// sign makes the compact serialisation of the payload, signed by the key in use.
func (r *keyRing) sign(payload []byte) (string, error) {
	r.mu.RLock()
	signer := r.keys[0].signer
	r.mu.RUnlock()
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("devissuer: signing a token: %w", err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("devissuer: writing a token: %w", err)
	}
	return token, nil
}

func (r *keyRing) rotate() (*rsa.PrivateKey, error) {
	key, err := GenerateKey()
	if err != nil {
		return nil, err
	}
	next, err := newSigningKey(key)
	if err != nil {
		return nil, err
	}
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := []signingKey{next}
	for i, old := range r.keys {
		if i == 0 {
			old.retires = now.Add(keyGrace)
		}
		if now.Before(old.retires) && len(keys) < maxKeys {
			keys = append(keys, old)
		}
	}
	r.keys = keys
	return key, nil
}

// published is the key set as it is served.
func (r *keyRing) published() jose.JSONWebKeySet {
	now := r.now()
	r.mu.RLock()
	defer r.mu.RUnlock()
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, 0, len(r.keys))}
	for i, k := range r.keys {
		if i == 0 || now.Before(k.retires) {
			set.Keys = append(set.Keys, k.public)
		}
	}
	return set
}
