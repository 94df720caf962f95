// Package kms opens the private keys that authorities sign with. The form of a
// key's reference picks the backend; each backend is one file and one line in
// the table of backends, and passes the suite of kmstest.
package kms

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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

// ErrScheme is wrapped by errors about a hash or padding that the key doesn't
// sign with, though another key would. What a key signs with is fixed at Open.
var ErrScheme = errors.New("the key doesn't sign that")

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
	// SealedKey is the file of a private key that the referenced key decrypts at
	// Open, or that Generate is to make; "" where the referenced key itself signs.
	SealedKey setting.Path
	// Logger is for the operator: whose credential was taken, a failover; nil discards.
	Logger *slog.Logger
	// Metrics takes the package's metrics, shared by all keys; nil leaves them unregistered.
	Metrics prometheus.Registerer
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Getenv reads the environment; nil is os.Getenv.
	Getenv func(name string) string
	// Watch is told of every step of an Open as it ends; nil if nobody asks.
	Watch func(Step)

	metrics *metrics
}

// Step is one step of an Open.
type Step struct {
	Name    string        // "reference", "credential", "token", "key", "sign", …
	Detail  string        // what was found: the canonical reference, the principal, the pinned key
	Elapsed time.Duration // what it took
	Err     error         // why it failed
}

// filled is o with its defaults.
func (o Options) filled() (Options, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Watch == nil {
		o.Watch = func(Step) {}
	}
	var err error
	o.metrics, err = newMetrics(o.Metrics)
	return o, err
}

// step runs one part of an Open and tells whoever watches.
func (o Options) step(name string, do func() (detail string, err error)) error {
	began := o.Now()
	detail, err := do()
	o.Watch(Step{Name: name, Detail: detail, Elapsed: o.Now().Sub(began), Err: err})
	return err
}

// Open opens the key that ref names (`file:issuing.key.pem`, or as a vendor's
// console shows it: see Canonical), signs a fixed digest with it and verifies
// that signature locally. It takes at most 15 s. With replicas, each of them is
// opened; one that can't be reached is opened later, one with another public key
// is an error. With a SealedKey, ref's key decrypts that file, once, and the key
// from it signs in memory. Its errors are for the operator: they name the key,
// what is wrong with it and the mend.
func Open(ctx context.Context, ref string, o Options) (Signer, error) {
	o, err := o.filled()
	if err != nil {
		return nil, fmt.Errorf("kms: registering metrics: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errOpenTimeout)
	defer cancel()
	if o.SealedKey != "" {
		return openSealed(ctx, ref, o)
	}
	if len(o.Access.Replicas) > 0 {
		return openReplicas(ctx, ref, o)
	}
	return openOne(ctx, ref, o)
}

// openOne opens one reference and tries it.
func openOne(ctx context.Context, ref string, o Options) (Signer, error) {
	var b *backend
	var r reference
	err := o.step("reference", func() (string, error) {
		var err error
		if b, r, err = parse(ref, o.Access); err != nil {
			return "", err
		}
		return r.String(), nil
	})
	if err != nil {
		return nil, err
	}
	if err := b.takes(o.Access.Credential); err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	s, err := r.open(ctx, o)
	if err != nil {
		return nil, err
	}
	err = o.step("sign", func() (string, error) { return "trial signature verified", Try(ctx, s) })
	if err != nil {
		Close(s)
		return nil, fmt.Errorf("key %s: trial signature: %w", ref, err)
	}
	return s, nil
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
	h := hash.New()
	_, _ = h.Write([]byte("mayfly: trial signature, of no meaning")) // a hash never fails
	digest := h.Sum(nil)
	sig, err := s.Sign(ctx, digest, hash)
	if err != nil {
		return err
	}
	return Verify(s.Public(), hash, digest, sig)
}

// checkDigest refuses hashes that aren't signed here and digests of another length.
func checkDigest(digest []byte, opts crypto.SignerOpts) error {
	hash := opts.HashFunc()
	switch hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return fmt.Errorf("%w: hash %v isn't supported: SHA-256, SHA-384 or SHA-512", ErrDigest, hash)
	}
	if len(digest) != hash.Size() {
		return fmt.Errorf("%w: %d bytes, %v has %d", ErrDigest, len(digest), hash, hash.Size())
	}
	return nil
}
