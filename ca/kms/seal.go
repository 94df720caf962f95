package kms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"regexp"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// Sealer encrypts small secrets under a key that stays in its KMS.
//
// Seal encrypts a secret of 1 to 64 bytes, and Unseal gives it back. about says
// what the secret is, in at most 256 bytes of printable ASCII: a KMS that
// authenticates additional data unseals only for what was sealed for, and shows
// it in its own audit trail. Errors are as those of [Signer.Sign]; one about
// bytes that this key didn't seal, or that were changed since, wraps [ErrSealed].
// String is the canonical reference of the key, pinned as Open pins it. A Sealer
// is safe for concurrent use.
type Sealer interface {
	fmt.Stringer
	Seal(ctx context.Context, secret []byte, about string) ([]byte, error)
	Unseal(ctx context.Context, sealed []byte, about string) ([]byte, error)
}

// ErrSealed is wrapped by errors about a secret that the key doesn't unseal:
// another key sealed it, or it was changed since.
var ErrSealed = errors.New("the KMS key doesn't decrypt it: another key encrypted it, or it was changed since")

// The bounds of what is sealed. The least of the vendors' bounds is RSA-OAEP's
// (RFC 8017 §7.1.1): 190 bytes under RSA 2048 and SHA-256.
const maxSecret = 64

var aboutForm = regexp.MustCompile(`^[ -~]{1,256}$`)

// SealingKey is a key that a [Client] has found.
type SealingKey struct {
	Name   string // the pinned reference
	Detail string // its kind, for who watches
	// Seal and Unseal are one call each. An answer that refuses the sealed bytes is
	// a [NotSealed] error.
	Seal, Unseal func(ctx context.Context, in []byte, about string) ([]byte, error)
}

// OpenSealer opens the key that ref names for encryption, as Open does for
// signatures: the same references, access, bounds in time and errors. It finds
// the key without using it.
func (all Registry) OpenSealer(ctx context.Context, ref string, o Options) (Sealer, error) {
	o = o.filled()
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, ErrOpenTimeout)
	defer cancel()
	r, o, err := all.sealing(ref, o)
	if err != nil {
		return nil, err
	}
	s, err := openSealer(ctx, r, o)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// CheckSealing is nil where keys can be sealed by ref as it is accessed by a. It
// reads nothing.
func (all Registry) CheckSealing(ref string, a Access) error {
	_, _, err := all.parseSealing(ref, a)
	return err
}

// sealing is resolve for a reference to a key that seals.
func (all Registry) sealing(ref string, o Options) (RemoteReference, Options, error) {
	return resolve(ref, o, all.parseSealing)
}

func (all Registry) parseSealing(ref string, a Access) (*Backend, RemoteReference, error) {
	b, r, err := all.parse(ref, a)
	remote, ok := r.(RemoteReference)
	if err == nil && !ok {
		err = fmt.Errorf("key %s: %s", r, b.CannotSeal)
	}
	return b, remote, err
}

func openSealer(ctx context.Context, r RemoteReference, o Options) (*remoteSealer, error) {
	var key SealingKey
	s, err := find(ctx, r, o, useSealing, func(ctx context.Context, c Client) (_ string, err error) {
		key, err = c.SealingKey(ctx)
		return key.Name + ", " + key.Detail, err
	})
	return &remoteSealer{s, key}, err
}

// TrySealer seals a fixed secret and unseals it, so that a key which can't is
// found before it is needed. It needs both permissions.
func TrySealer(ctx context.Context, s Sealer) error {
	const secret, about = "mayfly: of no meaning", "mayfly-trial"
	sealed, err := s.Seal(ctx, []byte(secret), about)
	if err != nil {
		return err
	}
	got, err := s.Unseal(ctx, sealed, about)
	if err != nil {
		return err
	}
	if string(got) != secret {
		return fmt.Errorf("key %s: what was encrypted comes back as something else: %w", s, ErrSealed)
	}
	return nil
}

// remoteSealer is a key behind a network that seals.
type remoteSealer struct {
	*Service

	key SealingKey
}

// String is the pinned reference.
func (s *remoteSealer) String() string { return s.key.Name }

// Seal encrypts secret.
func (s *remoteSealer) Seal(ctx context.Context, secret []byte, about string) ([]byte, error) {
	if len(secret) == 0 || len(secret) > maxSecret {
		return nil, fmt.Errorf("encrypting with %s: a secret of %d bytes: 1 to %d can be sealed", s, len(secret), maxSecret)
	}
	return s.do(ctx, operationSeal, "encrypting", s.key.Seal, secret, about)
}

// Unseal decrypts what Seal made.
func (s *remoteSealer) Unseal(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	return s.do(ctx, operationUnseal, "decrypting", s.key.Unseal, sealed, about)
}

func (s *remoteSealer) do(ctx context.Context, operation, verb string, do func(context.Context, []byte, string) ([]byte, error), in []byte, about string) ([]byte, error) {
	var out []byte
	err := ctx.Err()
	if !aboutForm.MatchString(about) {
		err = errors.New("what it is about isn't 1 to 256 characters of printable ASCII")
	}
	if err == nil {
		err = s.Call(ctx, operation, func(ctx context.Context) error {
			got, err := do(ctx, in, about)
			if err == nil && len(got) == 0 {
				err = NotSealed(errors.New("the answer is empty"))
			}
			out = got
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", verb, s, err)
	}
	return out, nil
}

// sealedFormat names the format of a sealed key's file, and its version.
const sealedFormat = "mayfly-sealed-key/1"

// sealedKey is the file of a private key that only a KMS can decrypt: the key
// under a data key of its own (AES-256-GCM, used once), and the data key under
// the KMS's. The four fields before are authenticated with the key, so that none
// of them can be exchanged.
type sealedKey struct {
	Format    string    `json:"format"`      // sealedFormat
	KMSKey    string    `json:"kms_key"`     // canonical reference of what sealed it
	Algorithm Algorithm `json:"algorithm"`   // of the private key
	SPKI      string    `json:"spki_sha256"` // of its public key's SubjectPublicKeyInfo, in hex
	DataKey   []byte    `json:"data_key"`    // as the KMS gave it
	Nonce     []byte    `json:"nonce"`       // NIST SP 800-38D §8.2.2: 96 random bits
	Key       []byte    `json:"private_key"` // PKCS #8, encrypted, with its tag
}

// dataKeySize is that of AES-256.
const dataKeySize = 32

var spkiForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// parseSealedKey reads a sealed key's file. Nothing but what Mayfly writes is
// taken, byte for byte: there is one encoding of each.
func (all Registry) parseSealedKey(b []byte) (*sealedKey, Reference, error) {
	var k sealedKey
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&k); err != nil {
		return nil, nil, errors.New("isn't a sealed key: name a file that `mayfly kms keygen --sealed-key` wrote")
	}
	if k.Format != sealedFormat {
		return nil, nil, fmt.Errorf("has the format %q, and this Mayfly reads %q: use the version of Mayfly that wrote it, or a newer one", Abridged(k.Format), sealedFormat)
	}
	if !bytes.Equal(b, k.encode()) {
		return nil, nil, errors.New("was changed since Mayfly wrote it: restore it from a copy")
	}
	if !spkiForm.MatchString(k.SPKI) || k.Algorithm.Hash() == 0 || len(k.Nonce) != 12 || len(k.DataKey) == 0 || len(k.Key) < 16 {
		return nil, nil, errors.New("is damaged: restore it from a copy")
	}
	_, r, err := all.parse(k.KMSKey, Access{})
	if err != nil || r.String() != k.KMSKey {
		return nil, nil, errors.New("names no KMS key that is one: restore it from a copy")
	}
	return &k, r, nil
}

func (k *sealedKey) encode() []byte {
	b, _ := json.MarshalIndent(k, "", "  ") //nolint:gosec,errchkjson // G117: the key in it is encrypted; strings and bytes always encode
	return append(b, '\n')
}

// about is what the KMS is told, and shows in its own audit trail.
func (k *sealedKey) about() string { return k.Format + " spki-sha256=" + k.SPKI }

// header is what is authenticated with the private key. Its fields hold no line break.
func (k *sealedKey) header() []byte {
	return []byte(k.Format + "\n" + k.KMSKey + "\n" + string(k.Algorithm) + "\n" + k.SPKI + "\n")
}

// sealKey encrypts key for a file that s alone can open.
func sealKey(ctx context.Context, s Sealer, key crypto.Signer, a Algorithm) (*sealedKey, error) {
	spki, err := fingerprint(key.Public())
	if err != nil {
		return nil, err
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	defer clear(plain)
	dataKey := make([]byte, dataKeySize)
	defer clear(dataKey)
	k := &sealedKey{Format: sealedFormat, KMSKey: s.String(), Algorithm: a, SPKI: spki, Nonce: make([]byte, 12)}
	_, _ = rand.Read(dataKey) // crypto/rand never fails
	_, _ = rand.Read(k.Nonce)
	aead, err := newGCM(dataKey)
	if err != nil {
		return nil, err
	}
	k.Key = aead.Seal(nil, k.Nonce, plain, k.header())
	k.DataKey, err = s.Seal(ctx, dataKey, k.about())
	return k, err
}

// unseal decrypts the key. What it held in between is overwritten; Go's own key
// types can't be.
func (k *sealedKey) unseal(ctx context.Context, s Sealer) (crypto.Signer, error) {
	dataKey, err := s.Unseal(ctx, k.DataKey, k.about())
	if err != nil {
		return nil, err
	}
	defer clear(dataKey)
	if len(dataKey) != dataKeySize {
		return nil, fmt.Errorf("%w: what came back isn't a data key", ErrSealed)
	}
	aead, err := newGCM(dataKey)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, k.Nonce, k.Key, k.header())
	if err != nil {
		return nil, fmt.Errorf("%w: restore the file from a copy", ErrSealed)
	}
	defer clear(plain)
	parsed, err := x509.ParsePKCS8PrivateKey(plain)
	if err != nil {
		return nil, errors.New("holds no private key: make it again") // the error might repeat what it holds
	}
	if key, ok := parsed.(crypto.Signer); ok {
		a, err := AlgorithmOf(key.Public())
		spki, spkiErr := fingerprint(key.Public())
		if err == nil && spkiErr == nil && a == k.Algorithm && spki == k.SPKI {
			return key, nil
		}
	}
	return nil, errors.New("holds another key than it says: make it again")
}

// fingerprint is the SHA-256 of a key's SubjectPublicKeyInfo, in hex.
func fingerprint(public crypto.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encoding the public key: %w", err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(spki)), nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// openSealed opens the key in o.SealedKey, which the key ref decrypts. With
// replicas, the first that can be reached does: nothing is asked of them later. A file
// of another key than the certificate's is neither waited for nor decrypted (o.Later).
func (all Registry) openSealed(ctx context.Context, ref string, o Options) (Signer, error) {
	path := string(o.SealedKey)
	var k *sealedKey
	var by Reference
	err := o.Step("sealed key", func() (string, error) {
		b, err := ReadKeyFile(path)
		if err != nil {
			return "", err
		}
		if k, by, err = all.parseSealedKey(b); err != nil {
			return "", fmt.Errorf("sealed key %s: %w", path, err)
		}
		if spki, err := fingerprint(o.Public); o.Later && (err != nil || spki != k.SPKI) {
			return "", fmt.Errorf("sealed key %s: holds the key of the SPKI SHA-256 %s, which isn't the certificate's: name the file made for it", path, k.SPKI)
		}
		return fmt.Sprintf("%s, sealed by %s", k.Algorithm, k.KMSKey), nil
	})
	if err != nil {
		return nil, err
	}
	places := o.places(ref)
	var errs []error
	for i, at := range places {
		part, cancel := share(ctx, len(places)-i)
		s, err := all.openSealedBy(part, at.ref, k, by, at.o)
		cancel()
		if err == nil {
			return s, nil
		}
		if !temporary(err) { // whatever was tried before
			return nil, err
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// openSealedBy opens the sealed key k, whose file says that by sealed it, with
// the key that ref names.
func (all Registry) openSealedBy(ctx context.Context, ref string, k *sealedKey, by Reference, o Options) (Signer, error) {
	path := string(o.SealedKey)
	r, o, err := all.sealing(ref, o)
	if err != nil {
		return nil, err
	}
	other := fmt.Errorf("sealed key %s: was sealed by the key %s, not by %s: name that key, or another file", path, by, r)
	r, ok := r.Unsealer(by)
	if !ok {
		return nil, other
	}
	s, err := openSealer(ctx, r, o)
	if err != nil {
		return nil, fmt.Errorf("sealed key %s: %w", path, err)
	}
	defer s.Close() // once it has decrypted the key, the KMS isn't needed
	if _, named, err := all.parseSealing(s.String(), Access{}); err != nil {
		return nil, err
	} else if _, ok := named.Unsealer(by); !ok {
		return nil, other // an alias that points elsewhere
	}
	var key crypto.Signer
	err = o.Step(operationUnseal, func() (string, error) {
		key, err = k.unseal(ctx, s)
		return "SPKI SHA-256 " + k.SPKI, err
	})
	if err != nil {
		return nil, fmt.Errorf("sealed key %s: %w", path, err)
	}
	signer := InMemory(key)
	return signer, o.try(ctx, signer)
}

// generateSealed makes a key here and writes it to o.SealedKey, encrypted by the
// key that ref names. What was written is unsealed once before it counts.
func (all Registry) generateSealed(ctx context.Context, ref string, a Algorithm, o Options) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, ErrOpenTimeout)
	defer cancel()
	path := string(o.SealedKey)
	r, o, err := all.sealing(ref, o)
	if err != nil {
		return "", err
	}
	s, err := openSealer(ctx, r, o)
	if err != nil {
		return "", err
	}
	defer s.Close()
	key, err := a.Generate()
	if err != nil {
		return "", err
	}
	k, err := sealKey(ctx, s, key, a)
	if err != nil {
		return "", err
	}
	if _, err := k.unseal(ctx, s); err != nil {
		return "", fmt.Errorf("a key that was just sealed can't be unsealed, so nothing was written: %w", err)
	}
	if err := durable.WriteNew(path, k.encode(), 0o600); errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("sealed key %s: %w", path, ErrKeyExists)
	} else if err != nil {
		return "", fmt.Errorf("sealed key: %w", err)
	}
	return s.String(), nil
}
