package kms

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// trialInterval is the least time between two trial signatures of Health.
const trialInterval = 10 * time.Second

// remote is a key behind a network: what is the same for every such backend.
type remote struct {
	service

	name       string // the pinned reference
	public     crypto.PublicKey
	key        Algorithm
	algorithms map[scheme]string // what the key signs with, by the service's own names
	// sign asks for one signature, in the form that Verify takes.
	sign func(ctx context.Context, algorithm string, digest []byte) ([]byte, error)
	// describe fails unless the key is there and enabled; it makes no signature.
	describe func(ctx context.Context) error

	mu        sync.Mutex
	failure   error     // of the last signature; nil after one that succeeded
	lastTrial time.Time // of Health
}

// Public is the key that every signature is verified under.
func (r *remote) Public() crypto.PublicKey { return r.public }

// String is the pinned reference.
func (r *remote) String() string { return r.name }

// Close closes idle connections.
func (r *remote) Close() error {
	r.client.CloseIdleConnections()
	return nil
}

// Sign makes one signature and verifies it.
func (r *remote) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("signing with %s: %w", r.name, err)
	}
	want, err := schemeOf(r.key, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r.name, err)
	}
	algorithm, ok := r.algorithms[want]
	if !ok {
		return nil, fmt.Errorf("key %s: %w: %v", r.name, ErrScheme, want)
	}
	var sig []byte
	err = r.call(ctx, operationSign, func(ctx context.Context) error {
		got, err := r.sign(ctx, algorithm, digest)
		if err != nil {
			return err
		}
		if err := Verify(r.public, opts, digest, got); err != nil {
			return &wrongError{err}
		}
		sig = got
		return nil
	})
	r.remember(err)
	if err != nil {
		return nil, fmt.Errorf("signing with %s: %w", r.name, err)
	}
	return sig, nil
}

// wrongError is a signature that doesn't verify. There is no second attempt:
// a service that signs with another key, or corrupts what it signed, is broken.
type wrongError struct{ cause error }

func (e *wrongError) Error() string {
	return "the signature that came back doesn't verify under the key that was found at the start: " + e.cause.Error()
}

func (e *wrongError) Unwrap() error { return e.cause }

// remember keeps how the last signature ended, for Health. A caller who went
// away and a quota that is used up say nothing about the key.
func (r *remote) remember(err error) {
	var call *CallError
	if errors.As(err, &call) && (call.outcome == outcomeCanceled || call.outcome == outcomeThrottled) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failure = err
}

// Health asks the service for the key. Only after a signature that failed does
// it make one itself, at most every trialInterval, until one succeeds: that is
// how a key that is looked after by a load balancer comes back by itself.
func (r *remote) Health(ctx context.Context) error {
	if err := r.call(ctx, operationKey, r.describe); err != nil {
		return fmt.Errorf("key %s: %w", r.name, err)
	}
	r.mu.Lock()
	failure, now := r.failure, r.now()
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

// newService makes the far end of one key.
func newService(b *backend, host string, o Options, judge func(error) (verdict, bool)) (service, error) {
	client, err := newHTTPClient(o.Access)
	if err != nil {
		return service{}, err
	}
	return service{
		backend: b.name, host: strings.ToLower(host), client: client,
		judge: func(err error) (verdict, bool) {
			var wrong *wrongError
			if errors.As(err, &wrong) {
				return verdict{outcomeWrong, false, wrong.Error()}, true
			}
			return judge(err)
		},
		logger: o.Logger, now: o.Now, metrics: o.metrics,
	}, nil
}
