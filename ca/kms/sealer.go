package kms

import (
	"context"
	"errors"
	"fmt"
	"regexp"
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
	o, err := o.filled()
	if err != nil {
		return nil, err
	}
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
