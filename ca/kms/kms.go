// Package kms is what all keys that authorities sign with have in common: the
// contract of a [Signer], how a [Registry] of backends opens and makes keys by
// their references, and, for keys behind a network, the calls with their limits
// in time, retries and metrics, the failover between replicas, and private keys
// that a KMS encrypts.
//
// A backend is a folder here and one line in the table of package keystore,
// through which the rest of Mayfly opens keys; it passes the suites in the tests of this one.
package kms

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"time"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Signer is one private key, pinned to one version of it.
//
// Sign returns a signature over digest, which is the output of opts.HashFunc():
// ASN.1 DER for ECDSA, PKCS #1 v1.5 for RSA unless opts is *rsa.PSSOptions. It
// ends when ctx ends, with an error that wraps ctx.Err(), and makes no signature
// under a ctx that has ended already. A digest of another length than the hash's
// is an error that wraps [ErrDigest], and the key isn't used. A backend that
// reaches its key over a network verifies each signature under Public before it
// returns it. A Signer is safe for concurrent use.
type Signer interface {
	Public() crypto.PublicKey
	Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// ErrDigest is wrapped by errors about a digest that doesn't fit its hash, or a
// hash that no backend signs (SHA-256, SHA-384 and SHA-512 are).
var ErrDigest = errors.New("digest doesn't fit its hash")

// ErrSignatureScheme is wrapped by errors about a hash or padding that the key
// doesn't sign with, though another key would. What a key signs with is fixed
// when it is opened.
var ErrSignatureScheme = errors.New("the key doesn't sign that")

// ErrKeyExists is wrapped by the error for a key that was to be made and is
// there already.
var ErrKeyExists = errors.New("a key of this name exists, and is never replaced: use that one, or choose another name")

// ErrPINRefused is wrapped by the error for a token that refuses its PIN, or would
// lock with the next wrong one. Whoever starts processes again should leave this one
// alone: every start takes a try.
var ErrPINRefused = errors.New("the token refuses the PIN")

// Healthy is a Signer that can say whether its key could sign now, at no cost
// in signatures. Health's error is what Sign would fail with; after a Sign that
// failed, Health may make one signature now and then to see the key recover.
type Healthy interface {
	Signer
	Health(ctx context.Context) error
}

// Options are what a backend may need beside the reference.
type Options struct {
	// Passphrase decrypts the key of a file, or is the PIN of a token; a plain
	// file refuses one.
	Passphrase setting.Secret
	// Access says how a key in a KMS is reached.
	Access Access
	// Public is the public half of the key, from a certificate, say, where a token
	// doesn't keep one; nil if it isn't known. The trial signature shows whether it
	// fits. Backends that have the key's own pass it over.
	Public crypto.PublicKey
	// Later has Open take a key in a KMS that can't be reached at the moment, if Public is
	// known: it is opened when it is needed, and must then be Public's.
	Later bool
	// SealedKey is the file of a private key that the referenced key decrypts at
	// Open, or that Generate is to make; "" where the referenced key itself signs.
	SealedKey setting.Path
	// Logger is for the operator: whose credential was taken, a failover; nil discards.
	Logger *slog.Logger
	// Metrics count the key's calls; those of one process are shared by its keys. With
	// nil, nobody looks at them.
	Metrics *Metrics
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Getenv reads the environment; nil is os.Getenv.
	Getenv func(name string) string
	// Watch is told of every step of an Open as it ends; nil if nobody asks.
	Watch func(Step)

	backend string // that the key is of, as metrics name it
	use     use    // what the key is opened for
}

// Step is one step of an Open.
type Step struct {
	Name    string        // "reference", "credential", "token", "key", "sign", …
	Detail  string        // what was found: the canonical reference, the principal, the pinned key
	Elapsed time.Duration // what it took
	Err     error         // why it failed
}

// filled is o with its defaults.
func (o Options) filled() Options {
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Watch == nil {
		o.Watch = func(Step) {}
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	return o
}

// Step runs one step of an Open and tells whoever watches.
func (o Options) Step(name string, do func() (detail string, err error)) error {
	began := o.Now()
	detail, err := do()
	o.Watch(Step{Name: name, Detail: detail, Elapsed: o.Now().Sub(began), Err: err})
	return err
}

// FirstSet is the value of the first of the environment's variables that isn't empty.
func (o Options) FirstSet(names ...string) string {
	for _, name := range names {
		if value := o.Getenv(name); value != "" {
			return value
		}
	}
	return ""
}

// Close releases what s holds: idle connections, sessions. s must not be used
// after it. A process that ends needs no Close.
func Close(s Signer) {
	if c, ok := s.(io.Closer); ok {
		_ = c.Close() // nothing is kept that could be lost
	}
}

// Try signs a fixed digest as certificates are signed and verifies the signature
// locally, so that a key which can't sign is found before it is needed.
func Try(ctx context.Context, s Signer) error {
	a, err := AlgorithmOf(s.Public())
	if err != nil {
		return err
	}
	hash := a.Hash()
	digest := pubkey.Digest(hash, []byte("mayfly: trial signature, of no meaning"))
	sig, err := s.Sign(ctx, digest, hash)
	if err != nil {
		return err
	}
	return pubkey.Verify(s.Public(), hash, digest, sig)
}

// inMemory is a key in this process's memory, usually read from a file.
type inMemory struct {
	key    crypto.Signer
	random io.Reader // nil has ECDSA signatures be those of RFC 6979
}

// InMemory is the Signer of a key that is in memory already. Its algorithm is
// for the caller to check.
func InMemory(key crypto.Signer) Signer { return &inMemory{key, rand.Reader} }

// Repeatable is s with one signature for one digest (RFC 6979), where s is in
// memory, and else s itself: a KMS chooses its own.
func Repeatable(s Signer) Signer {
	if m, ok := s.(*inMemory); ok {
		return &inMemory{m.key, nil}
	}
	return s
}

// Local reports whether s signs within this process, where a signature costs CPU
// time and nothing else.
func Local(s Signer) bool {
	_, ok := s.(*inMemory)
	return ok
}

func (m *inMemory) Public() crypto.PublicKey { return m.key.Public() }

func (m *inMemory) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("signing with a key file: %w", err)
	}
	if err := CheckDigest(digest, opts); err != nil {
		return nil, err
	}
	if _, pss := opts.(*rsa.PSSOptions); pss {
		if _, ok := m.key.(*rsa.PrivateKey); !ok {
			return nil, fmt.Errorf("RSA-PSS was asked of a key of type %T", m.key.Public())
		}
	}
	sig, err := m.key.Sign(m.random, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("signing with a key file: %w", err)
	}
	return sig, nil
}

// ReadKeyFile reads a file that holds a key, or what unlocks one: see package
// secretfile for who else may use it.
func ReadKeyFile(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("key file: no path: write file:PATH")
	}
	b, err := secretfile.Read(path)
	if err != nil {
		return nil, fmt.Errorf("key file %w", err)
	}
	return b, nil
}

// ReadPlatformFile reads a token that a platform mounts, and may let others read:
// it is bound to the pod or machine, and short-lived.
func ReadPlatformFile(path string) ([]byte, error) {
	return durable.ReadPlain(path, secretfile.Max)
}

// Algorithm is a kind of key that an authority may have.
type Algorithm = pubkey.Algorithm

// The algorithms.
const (
	ECDSAP256 = pubkey.ECDSAP256
	ECDSAP384 = pubkey.ECDSAP384
	ECDSAP521 = pubkey.ECDSAP521
	RSA2048   = pubkey.RSA2048
	RSA3072   = pubkey.RSA3072
	RSA4096   = pubkey.RSA4096
)

// Algorithms are all of them, in a fixed order.
func Algorithms() []Algorithm { return pubkey.Algorithms() }

// AlgorithmOf names a public key's algorithm. The error says what is accepted.
func AlgorithmOf(public crypto.PublicKey) (Algorithm, error) { return pubkey.AlgorithmOf(public) }

// SignatureScheme is one way to sign: a kind of key, a hash, and for RSA the padding.
type SignatureScheme struct {
	Key  Algorithm
	Hash crypto.Hash
	PSS  bool
}

func (s SignatureScheme) String() string {
	padding := ""
	switch {
	case s.PSS:
		padding = " PSS"
	case s.Key.Bits() > 0:
		padding = " PKCS #1 v1.5"
	}
	return fmt.Sprintf("%s%s with %v", s.Key, padding, s.Hash)
}

// SchemeOf is the scheme that a caller of Sign asks of a key: a backend need not
// ask whether its kind of key has it. The error wraps ErrDigest or
// ErrSignatureScheme.
func SchemeOf(key Algorithm, digest []byte, opts crypto.SignerOpts) (SignatureScheme, error) {
	if err := CheckDigest(digest, opts); err != nil {
		return SignatureScheme{}, err
	}
	s := SignatureScheme{Key: key, Hash: opts.HashFunc()}
	pss, ok := opts.(*rsa.PSSOptions)
	if !ok {
		return s, nil
	}
	s.PSS = true
	// RFC 8017 §9.1: KMSs offer the salt of the hash's length alone.
	if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != s.Hash.Size() {
		return SignatureScheme{}, fmt.Errorf("%w: RSA-PSS with a salt of another length than the hash's", ErrSignatureScheme)
	}
	if key.Bits() == 0 {
		return SignatureScheme{}, fmt.Errorf("%w: %v", ErrSignatureScheme, s)
	}
	return s, nil
}

// CheckDigest refuses hashes that aren't signed here and digests of another
// length. The error wraps ErrDigest.
func CheckDigest(digest []byte, opts crypto.SignerOpts) error {
	hash := opts.HashFunc()
	if hash != crypto.SHA256 && hash != crypto.SHA384 && hash != crypto.SHA512 {
		return fmt.Errorf("%w: hash %v isn't supported: SHA-256, SHA-384 or SHA-512", ErrDigest, hash)
	}
	if len(digest) != hash.Size() {
		return fmt.Errorf("%w: %d bytes, %v has %d", ErrDigest, len(digest), hash, hash.Size())
	}
	return nil
}

// ECDSASignature makes the Ecdsa-Sig-Value (RFC 3279 §2.2.3) of r‖s, each half
// of raw.
func ECDSASignature(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, fmt.Errorf("an ECDSA signature of %d bytes isn't r and s", len(raw))
	}
	r, s := new(big.Int).SetBytes(raw[:len(raw)/2]), new(big.Int).SetBytes(raw[len(raw)/2:])
	return asn1.Marshal(struct{ R, S *big.Int }{r, s})
}
