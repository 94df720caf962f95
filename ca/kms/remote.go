package kms

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// RemoteReference is a reference to a key behind a network, which signs or seals.
type RemoteReference interface {
	Reference

	// Client makes a client of the key, which asks nobody yet.
	Client(ctx context.Context, o Options) (Client, error)
	// Unsealer is the reference to unseal with, where a file says that the key
	// named pinned has sealed it: r, of pinned's version if r names none. It is
	// false where r is another key.
	Unsealer(pinned Reference) (RemoteReference, bool)
}

// Client reaches one key of a KMS. It embeds a *[Service]. Its errors are for the
// operator, without the key's name.
type Client interface {
	overService

	// Authenticate takes the credential that o names ([Chosen]), and finds out and
	// logs whose it is ([Service.Identify]).
	Authenticate(ctx context.Context, o Options) error
	// SigningKey finds the key and pins its version, in one attempt.
	SigningKey(ctx context.Context) (SigningKey, error)
	// SealingKey finds the key and pins its version, where the KMS needs that to
	// unseal, in one attempt.
	SealingKey(ctx context.Context) (SealingKey, error)
	// Make makes a key that can't be taken out of its KMS, where a new one can have
	// the reference, and returns that which names it and its version. It never replaces a key: its error
	// for one that is there wraps ErrKeyExists.
	Make(ctx context.Context, a Algorithm) (ref string, err error)
}

// overService is what embeds a *Service.
type overService interface{ service() *Service }

// SigningKey is a key that a [Client] has found.
type SigningKey struct {
	Name   string // the pinned reference
	Detail string // what it signs, for who watches; its algorithm if empty
	Public crypto.PublicKey
	// Supports gives the vendor's name of a scheme of the key's algorithm; "" for
	// one that the key doesn't sign with.
	Supports func(s SignatureScheme) string
	// Sign asks for one signature, in the form that Verify takes.
	Sign func(ctx context.Context, scheme string, digest []byte) ([]byte, error)
	// Describe fails unless the key is there and enabled; it makes no signature.
	Describe func(ctx context.Context) error
}

// use is what a key is opened for.
type use int

const (
	useSigning use = iota
	useSealing
	useMaking
)

// Rights say what to allow a principal, for each use of a key. Without Making,
// nobody knows what that needs.
type Rights struct{ Signing, Sealing, Making string }

func (r Rights) of(u use) string {
	return cmp.Or([...]string{useSigning: r.Signing, useSealing: r.Sealing, useMaking: r.Making}[u], r.Signing)
}

// NewService makes the far end of one key, at host[:port]. classify says what the
// vendor's own errors mean, with the rights that the principal needs; known is
// false for others.
func (o Options) NewService(host string, rights Rights, classify func(err error, rights string) (c Classified, known bool)) (*Service, error) {
	client, err := newHTTPClient(o.Access)
	if err != nil {
		return nil, err
	}
	return &Service{
		HTTP: client, Logger: o.Logger, Now: o.Now,
		backend: o.backend, host: strings.ToLower(host), metrics: o.Metrics,
		classify: func(err error) (Classified, bool) {
			if own, ok := errors.AsType[*keyError](err); ok {
				return own.outcome.Text(own.Error()), true
			}
			return classify(err, rights.of(o.use))
		},
	}, nil
}

func (s *Service) service() *Service { return s }

// Close closes idle connections.
func (s *Service) Close() error {
	s.HTTP.CloseIdleConnections()
	return nil
}

// Chosen is the step of making the credential that o names or, for [CredentialAuto],
// the first that is set up, be it by half: then it fails, rather than another being
// taken without a word. source says in words which it is: never a secret.
func Chosen[C any](o Options, firstSetUp func(Options) Credential, named func(Credential) (c C, source string, err error)) (c C, source string, err error) {
	name, auto := o.Access.Credential, ""
	if name == CredentialAuto {
		name, auto = firstSetUp(o), "auto: "
	}
	err = o.Step("credential", func() (string, error) {
		if c, source, err = named(name); err != nil {
			return "", fmt.Errorf("credential %s: %w", name, err)
		}
		source = auto + source
		return source, nil
	})
	return c, source, err
}

// Identify is the step of asking whose the credential is that source names, which also
// shows that it gives a token. The answer is logged: never a secret.
func (s *Service) Identify(ctx context.Context, o Options, key fmt.Stringer, source string, ask func(ctx context.Context) ([]slog.Attr, error)) error {
	var who []slog.Attr
	err := o.Step(stepToken, func() (string, error) {
		err := s.Call(ctx, OperationIdentity, func(ctx context.Context) (err error) {
			who, err = ask(ctx)
			return err
		})
		var words []string
		for _, a := range who {
			words = append(words, a.Key+" "+a.Value.String())
		}
		return strings.Join(words, ", "), err
	})
	if err == nil {
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "credential of a key",
			append([]slog.Attr{slog.String("key", key.String()), slog.String("source", source)}, who...)...)
	}
	return err
}

// ParsePublic reads the public key of a SubjectPublicKeyInfo (RFC 5280 §4.1).
func ParsePublic(spki []byte) (crypto.PublicKey, error) {
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, Unusable("its public key can't be read: %w", err)
	}
	return public, nil
}

// AllSet are the values of environment variables that mean nothing one by one.
func (o Options) AllSet(names ...string) (values []string, err error) {
	var missing []string
	for _, name := range names {
		if values = append(values, o.Getenv(name)); o.Getenv(name) == "" {
			missing = append(missing, name)
		}
	}
	switch len(missing) {
	case 0:
		return values, nil
	case len(names):
		return values, fmt.Errorf("%s aren't set", strings.Join(names, ", "))
	default:
		return values, fmt.Errorf("half of it is set: %s is missing", strings.Join(missing, ", "))
	}
}

// Absent is nil where describe finds no key, by an error that missing knows. A key
// that is there, be it disabled, is ErrKeyExists.
func (s *Service) Absent(ctx context.Context, describe func(ctx context.Context) error, missing func(error) bool) error {
	err := s.Call(ctx, OperationKey, describe)
	if _, disabled := errors.AsType[*keyError](err); disabled || err == nil {
		return ErrKeyExists
	}
	if missing(err) {
		return nil
	}
	return err
}

// keyError is what an adapter itself found wrong with a key or an answer. The
// same call would find it again.
type keyError struct {
	outcome Outcome
	error
}

func (e *keyError) Unwrap() error { return e.error }

// Unusable is the error for a key that was found and can't be used as it is.
func Unusable(format string, args ...any) error {
	return &keyError{OutcomeUnusable, fmt.Errorf(format, args...)}
}

// WrongSignature is the error for a signature that doesn't verify. There is no
// second attempt: a service that signs with another key, or corrupts what it
// signed, is broken.
func WrongSignature(cause error) error {
	return &keyError{OutcomeWrong, fmt.Errorf("the signature that came back doesn't verify under the key that was found at the start: %w", cause)}
}

// NotSealed is the error for a refusal of the sealed bytes themselves, in the
// vendor's words. It wraps ErrSealed.
func NotSealed(cause error) error {
	return &keyError{OutcomeWrong, fmt.Errorf("%w (%w)", ErrSealed, cause)}
}

// connect makes a client of the key and authenticates.
func connect(ctx context.Context, r RemoteReference, o Options, u use) (Client, error) {
	o.use = u
	c, err := r.Client(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := c.Authenticate(ctx, o); err != nil {
		_ = c.service().Close()
		return nil, err
	}
	return c, nil
}

// find connects and runs the step that finds the key, all of whose attempts are one call.
func find(ctx context.Context, r RemoteReference, o Options, u use, key func(ctx context.Context, c Client) (detail string, err error)) (*Service, error) {
	c, err := connect(ctx, r, o, u)
	if err == nil {
		err = o.Step("key", func() (detail string, err error) {
			err = c.service().Call(ctx, OperationKey, func(ctx context.Context) error {
				detail, err = key(ctx, c)
				return err
			})
			return detail, err
		})
		if err == nil {
			return c.service(), nil
		}
		_ = c.service().Close()
	}
	return nil, fmt.Errorf("key %s: %w", r, err)
}

func openRemote(ctx context.Context, r RemoteReference, o Options) (Signer, error) {
	signer := new(remoteSigner)
	var err error
	signer.Service, err = find(ctx, r, o, useSigning, func(ctx context.Context, c Client) (_ string, err error) {
		if signer.key, err = c.SigningKey(ctx); err != nil {
			return "", err
		}
		if signer.algorithm, err = AlgorithmOf(signer.key.Public); err != nil {
			return "", Unusable("%w", err)
		}
		return signer.key.Name + ", " + cmp.Or(signer.key.Detail, string(signer.algorithm)), nil
	})
	if err != nil {
		return nil, err
	}
	return signer, nil
}

// makeRemote makes a key, within the time of an Open.
func makeRemote(ctx context.Context, r RemoteReference, a Algorithm, o Options) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, ErrOpenTimeout)
	defer cancel()
	c, err := connect(ctx, r, o, useMaking)
	if err != nil {
		return "", err
	}
	defer c.service().Close()
	return c.Make(ctx, a)
}

// trialInterval is the least time between two trial signatures of Health.
const trialInterval = 10 * time.Second

// remoteSigner is a key behind a network.
type remoteSigner struct {
	*Service

	key       SigningKey
	algorithm Algorithm

	mu        sync.Mutex
	failure   error     // of the last signature; nil after one that succeeded
	lastTrial time.Time // of Health
}

// Public is the key that every signature is verified under.
func (r *remoteSigner) Public() crypto.PublicKey { return r.key.Public }

// String is the pinned reference.
func (r *remoteSigner) String() string { return r.key.Name }

// Sign makes one signature and verifies it.
func (r *remoteSigner) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("signing with %s: %w", r, err)
	}
	wanted, err := SchemeOf(r.algorithm, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	scheme := r.key.Supports(wanted)
	if scheme == "" {
		return nil, fmt.Errorf("key %s: %w: %v", r, ErrSignatureScheme, wanted)
	}
	var sig []byte
	err = r.Call(ctx, operationSign, func(ctx context.Context) (err error) {
		if sig, err = r.key.Sign(ctx, scheme, digest); err != nil {
			return err
		}
		if err := pubkey.Verify(r.key.Public, opts, digest, sig); err != nil {
			return WrongSignature(err)
		}
		return nil
	})
	r.remember(err)
	if err != nil {
		return nil, fmt.Errorf("signing with %s: %w", r, err)
	}
	return sig, nil
}

// remember keeps how the last signature ended, for Health. A caller who went
// away and a quota that is used up say nothing about the key.
func (r *remoteSigner) remember(err error) {
	if call, ok := errors.AsType[*CallError](err); ok && (call.outcome == outcomeCanceled || call.outcome == OutcomeThrottled) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failure = err
}

// Health asks the service for the key. Only after a signature that failed does
// it make one itself, at most every trialInterval, until one succeeds: that is
// how a key that is looked after by a load balancer comes back by itself.
func (r *remoteSigner) Health(ctx context.Context) error {
	if err := r.Call(ctx, OperationKey, r.key.Describe); err != nil {
		return fmt.Errorf("key %s: %w", r, err)
	}
	r.mu.Lock()
	failure, now := r.failure, r.Now()
	try := failure != nil && now.Sub(r.lastTrial) >= trialInterval
	if try {
		r.lastTrial = now
	}
	r.mu.Unlock()
	if !try {
		return failure
	}
	return Try(ctx, r)
}
