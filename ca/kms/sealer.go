package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
const (
	maxSecret = 64
	maxAbout  = 256
)

// The operations of a key that seals, as operationSign is of one that signs.
const (
	operationSeal   = "seal"
	operationUnseal = "unseal"
)

// sealing is a reference whose backend can seal.
type sealing interface {
	reference

	// openSealer finds the key and pins it, as open does.
	openSealer(ctx context.Context, o Options) (Sealer, error)
	// sealedBy gives the reference to open what the key named pinned has sealed,
	// and false where r is another key than that.
	sealedBy(pinned reference) (sealing, bool)
}

// OpenSealer opens the key that ref names for encryption, as Open does for
// signatures: the same references, access, bounds in time and errors. It finds
// the key without using it.
func OpenSealer(ctx context.Context, ref string, o Options) (Sealer, error) {
	o, err := o.filled()
	if err != nil {
		return nil, fmt.Errorf("kms: registering metrics: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errOpenTimeout)
	defer cancel()
	r, err := o.sealing(ref)
	if err != nil {
		return nil, err
	}
	return r.openSealer(ctx, o)
}

// CheckSealing is nil where keys can be sealed by ref as it is accessed by a. It
// reads nothing.
func CheckSealing(ref string, a Access) error {
	_, _, err := parseSealing(ref, a)
	return err
}

// sealing is the step of reading a reference to a key that seals.
func (o Options) sealing(ref string) (r sealing, err error) {
	err = o.step("reference", func() (string, error) {
		var b *backend
		if b, r, err = parseSealing(ref, o.Access); err != nil {
			return "", err
		}
		if err := b.takes(o.Access.Credential); err != nil {
			return "", fmt.Errorf("key %s: %w", r, err)
		}
		return r.String(), nil
	})
	return r, err
}

func parseSealing(ref string, a Access) (*backend, sealing, error) {
	b, r, err := parse(ref, a)
	if err != nil {
		return nil, nil, err
	}
	s, ok := r.(sealing)
	switch {
	case ok:
		return b, s, nil
	case b == fileBackend:
		return nil, nil, fmt.Errorf("key %s: a file can't seal: name a key in a KMS, or keep the issuing key in a file that a passphrase encrypts (mode direct)", r)
	default:
		return nil, nil, fmt.Errorf("key %s: %s can't seal here: name a key in AWS KMS, Azure, Google Cloud KMS or Vault, or let this key sign (mode direct)", r, b.title)
	}
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

// remoteSealer is a key behind a network that seals: what is the same for every
// such backend.
type remoteSealer struct {
	service

	name string // the pinned reference
	// seal and unseal are one call each. An answer that refuses the sealed bytes
	// is a *sealedError.
	seal, unseal func(ctx context.Context, in []byte, about string) ([]byte, error)
}

// String is the pinned reference.
func (s *remoteSealer) String() string { return s.name }

// Close closes idle connections.
func (s *remoteSealer) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

// Seal encrypts secret.
func (s *remoteSealer) Seal(ctx context.Context, secret []byte, about string) ([]byte, error) {
	if len(secret) == 0 || len(secret) > maxSecret {
		return nil, fmt.Errorf("encrypting with %s: a secret of %d bytes: 1 to %d can be sealed", s.name, len(secret), maxSecret)
	}
	return s.do(ctx, operationSeal, "encrypting", s.seal, secret, about)
}

// Unseal decrypts what Seal made.
func (s *remoteSealer) Unseal(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	return s.do(ctx, operationUnseal, "decrypting", s.unseal, sealed, about)
}

func (s *remoteSealer) do(ctx context.Context, operation, verb string, do func(context.Context, []byte, string) ([]byte, error), in []byte, about string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s with %s: %w", verb, s.name, err)
	}
	if err := checkAbout(about); err != nil {
		return nil, fmt.Errorf("%s with %s: %w", verb, s.name, err)
	}
	var out []byte
	err := s.call(ctx, operation, func(ctx context.Context) error {
		got, err := do(ctx, in, about)
		if err == nil && len(got) == 0 {
			err = &sealedError{errors.New("the answer is empty")}
		}
		out = got
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", verb, s.name, err)
	}
	return out, nil
}

func checkAbout(about string) error {
	if about == "" || len(about) > maxAbout {
		return fmt.Errorf("what it is about has %d bytes: 1 to %d are wanted", len(about), maxAbout)
	}
	for _, c := range []byte(about) {
		if c < ' ' || c > '~' {
			return errors.New("what it is about has characters beside printable ASCII")
		}
	}
	return nil
}

// sealedError is a refusal of the sealed bytes themselves, in the vendor's words.
type sealedError struct{ cause error }

func (e *sealedError) Error() string { return ErrSealed.Error() + " (" + e.cause.Error() + ")" }

func (e *sealedError) Unwrap() []error { return []error{ErrSealed, e.cause} }

// rights say what to allow a principal: in the words of the backend's verdicts,
// for a key that signs, and for one that seals.
type rights struct{ signing, sealing string }

// judge is the backend's own judge for a key that seals: it knows refusals of
// what is sealed, and names the rights that are wanted.
func (r rights) judge(of func(error) (verdict, bool)) func(error) (verdict, bool) {
	return func(err error) (verdict, bool) {
		var sealed *sealedError
		if errors.As(err, &sealed) {
			return verdict{outcomeWrong, false, sealed.Error()}, true
		}
		v, ok := of(err)
		v.text = strings.Replace(v.text, r.signing, r.sealing, 1)
		return v, ok
	}
}
