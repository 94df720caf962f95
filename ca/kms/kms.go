// Package kms opens the private keys that authorities sign with. The scheme of
// a key's URI picks the backend; each backend is one file and one line in the
// table of [Open], and passes the suite of kmstest.
package kms

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

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

// Options are what a backend may need beside the URI.
type Options struct {
	// Passphrase decrypts the key of a file; a plain file refuses one.
	Passphrase setting.Secret
}

// openers is the table of backends.
var openers = map[string]func(ctx context.Context, rest string, o Options) (Signer, error){
	"file": openFile,
}

// Schemes are the supported schemes in alphabetical order.
func Schemes() []string { return slices.Sorted(maps.Keys(openers)) }

// Open opens the key that uri names (`file:issuing.key.pem`), signs a fixed
// digest with it and verifies that signature locally. Its errors are for the
// operator: they name the key, what is wrong with it and the mend.
func Open(ctx context.Context, uri string, o Options) (Signer, error) {
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok {
		return nil, fmt.Errorf("key %q has no scheme: write file:PATH (supported: %s)", uri, strings.Join(Schemes(), ", "))
	}
	open, ok := openers[strings.ToLower(scheme)] // RFC 3986 §3.1: schemes are case-insensitive
	if !ok {
		return nil, fmt.Errorf("key scheme %q isn't supported (supported: %s)", scheme, strings.Join(Schemes(), ", "))
	}
	s, err := open(ctx, rest, o)
	if err != nil {
		return nil, err
	}
	if err := Try(ctx, s); err != nil {
		return nil, fmt.Errorf("key %s: trial signature: %w", uri, err)
	}
	return s, nil
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
