package kms

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// resting is how long a replica that failed is asked last.
const resting = 30 * time.Second

// replicas are several references to one key. A signature that one of them
// doesn't make is made by the next.
type replicas struct {
	public  crypto.PublicKey
	members []*member // in the operator's order
	logger  *slog.Logger
	now     func() time.Time
}

// member is one of several references to a key.
type member struct {
	ref    string
	reopen func(ctx context.Context) (Signer, error)

	opening sync.Mutex // held while it is opened anew
	mu      sync.Mutex
	signer  Signer    // nil until it could be opened
	failed  time.Time // when it failed last; zero after a success
}

// openReplicas opens every reference. One that can't be reached now is opened
// when it is needed; another key, or a reference that can't work, is an error.
func openReplicas(ctx context.Context, ref string, o Options) (Signer, error) {
	all := &replicas{logger: o.Logger, now: o.Now}
	places := append([]Replica{{Key: setting.KeyRef(ref), Region: o.Access.Region, Endpoint: o.Access.Endpoint}}, o.Access.Replicas...)
	var unreached []error
	for i, place := range places {
		options := o
		options.Access = o.Access.at(place)
		m := &member{ref: string(place.Key), reopen: func(ctx context.Context) (Signer, error) {
			return openOne(ctx, string(place.Key), options)
		}}
		all.members = append(all.members, m)
		slice, cancel := share(ctx, len(places)-i)
		err := m.open(slice, all)
		cancel()
		var call *CallError
		switch {
		case err == nil:
		case errors.As(err, &call) && call.temporary && ctx.Err() == nil:
			o.Logger.ErrorContext(ctx, "a replica of the key can't be reached; it is tried again when it is needed",
				slog.String("key", m.ref), slog.Any("error", err))
			unreached = append(unreached, err)
		default:
			all.close()
			return nil, err
		}
	}
	if all.public == nil {
		return nil, fmt.Errorf("none of the key's %d replicas can be reached: %w", len(places), errors.Join(unreached...))
	}
	return all, nil
}

// open opens m and holds it against the key of the others.
func (m *member) open(ctx context.Context, all *replicas) error {
	s, err := m.reopen(ctx)
	if err != nil {
		m.fail(all.now())
		return err
	}
	if all.public == nil {
		all.public = s.Public()
	} else if !pubkey.Equal(all.public, s.Public()) {
		Close(s)
		return fmt.Errorf("key %s is another key than its replicas: name references to one and the same key", m.ref)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.signer, m.failed = s, time.Time{}
	return nil
}

// opened is m's signer, opening it if that wasn't possible before.
func (m *member) opened(ctx context.Context, all *replicas) (Signer, error) {
	m.mu.Lock()
	s := m.signer
	m.mu.Unlock()
	if s != nil {
		return s, nil
	}
	m.opening.Lock()
	defer m.opening.Unlock()
	m.mu.Lock()
	s = m.signer
	m.mu.Unlock()
	if s != nil { // another request was first
		return s, nil
	}
	if err := m.open(ctx, all); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.signer, nil
}

func (m *member) fail(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = now
}

// recovered reports whether m had failed, and forgets it.
func (m *member) recovered() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := !m.failed.IsZero()
	m.failed = time.Time{}
	return was
}

func (m *member) rests(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.failed.IsZero() && now.Sub(m.failed) < resting
}

// order is the members as they are to be asked: those that failed of late last.
func (r *replicas) order() []*member {
	now := r.now()
	first, last := make([]*member, 0, len(r.members)), []*member(nil)
	for _, m := range r.members {
		if m.rests(now) {
			last = append(last, m)
		} else {
			first = append(first, m)
		}
	}
	return append(first, last...)
}

// Public is the one key that all of them show.
func (r *replicas) Public() crypto.PublicKey { return r.public }

// Close closes every member.
func (r *replicas) Close() error {
	r.close()
	return nil
}

func (r *replicas) close() {
	for _, m := range r.members {
		m.mu.Lock()
		if m.signer != nil {
			Close(m.signer)
		}
		m.mu.Unlock()
	}
}

// Sign asks one after the other, each within its share of ctx's time.
func (r *replicas) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	var sig []byte
	err := r.each(ctx, "sign", func(ctx context.Context, s Signer) error {
		var err error
		sig, err = s.Sign(ctx, digest, opts)
		return err
	})
	return sig, err
}

// Health is nil when one of them is healthy: then a signature can be made.
func (r *replicas) Health(ctx context.Context) error {
	return r.each(ctx, "health", func(ctx context.Context, s Signer) error {
		if h, ok := s.(Healthy); ok {
			return h.Health(ctx)
		}
		return Try(ctx, s)
	})
}

// each does something with one member after the other until one succeeds.
func (r *replicas) each(ctx context.Context, what string, do func(ctx context.Context, s Signer) error) error {
	var errs []error
	order := r.order()
	for i, m := range order {
		slice, cancel := share(ctx, len(order)-i)
		err := r.one(slice, m, do)
		cancel()
		switch {
		case err == nil:
			if m.recovered() {
				r.logger.InfoContext(ctx, "a replica of the key works again", slog.String("key", m.ref))
			}
			return nil
		case errors.Is(err, ErrDigest), errors.Is(err, ErrScheme):
			return err // the caller's fault, which no other replica mends
		case ctx.Err() != nil:
			return errors.Join(append(errs, ctx.Err(), err)...)
		}
		m.fail(r.now())
		errs = append(errs, err)
		if i+1 < len(order) {
			r.logger.WarnContext(ctx, "a replica of the key failed; the next is used", slog.String("operation", what),
				slog.String("key", m.ref), slog.String("next", order[i+1].ref), slog.Any("error", err))
		}
	}
	return errors.Join(errs...)
}

func (r *replicas) one(ctx context.Context, m *member, do func(ctx context.Context, s Signer) error) error {
	s, err := m.opened(ctx, r)
	if err != nil {
		return err
	}
	return do(ctx, s)
}

// share is ctx with one part of its time, so that a replica that hangs leaves
// some for the others; without a deadline, and at most, the time of one attempt.
// The last one has all that is left.
func share(ctx context.Context, left int) (context.Context, context.CancelFunc) {
	if left <= 1 {
		return context.WithCancel(ctx)
	}
	part := attemptTimeout
	if deadline, ok := ctx.Deadline(); ok {
		part = min(part, time.Until(deadline)/time.Duration(left))
	}
	return context.WithTimeout(ctx, part)
}
