package kms

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// askedLast is how long a replica that failed is asked after the others.
const askedLast = 30 * time.Second

// place is one of the references to a key, with the access to it.
type place struct {
	ref string
	o   Options
}

// places are ref's own place and those of the replicas, in the operator's order.
func (o Options) places(ref string) []place {
	own := o
	own.Access.Replicas = nil
	all := []place{{ref, own}}
	for _, r := range o.Access.Replicas {
		own.Access = o.Access.at(r)
		all = append(all, place{string(r.Key), own})
	}
	return all
}

// replicated is one key with several references. A signature that one of them
// doesn't make is made by the next.
type replicated struct {
	public   crypto.PublicKey
	replicas []*replica // in the operator's order
	logger   *slog.Logger
	now      func() time.Time
}

// replica is one of the references.
type replica struct {
	ref    string
	reopen func(ctx context.Context) (Signer, error)

	opening chan struct{}             // holds one while it is opened anew
	signer  atomic.Pointer[Signer]    // nil until it could be opened
	failed  atomic.Pointer[time.Time] // when it failed last; nil after a success
	refused atomic.Pointer[error]     // why it couldn't be opened last
}

// openReplicas opens every reference. One that can't be reached now is opened
// when it is needed, where another can or o.Later says so; another key, or a
// reference that can't work, is an error.
func (all Registry) openReplicas(ctx context.Context, ref string, o Options) (Signer, error) {
	key := &replicated{logger: o.Logger, now: o.Now}
	places, open := o.places(ref), all.openOne
	if o.SealedKey != "" { // which any of them unseals, once
		places, open = []place{{ref, o}}, all.openSealed
	}
	var unreached []error
	for i, at := range places {
		r := &replica{ref: at.ref, opening: make(chan struct{}, 1), reopen: func(ctx context.Context) (Signer, error) { return open(ctx, at.ref, at.o) }}
		key.replicas = append(key.replicas, r)
		part, cancel := share(ctx, len(places)-i)
		s, err := key.opened(part, r)
		cancel()
		switch {
		case err == nil && len(places) == 1:
			return s, nil
		case err == nil:
		case temporary(err) && (ctx.Err() == nil || o.Later && errors.Is(context.Cause(ctx), ErrOpenTimeout)):
			o.Logger.ErrorContext(ctx, "a key, or a replica of it, can't be reached; it is tried again when it is needed",
				slog.String("key", r.ref), slog.Any("error", err))
			unreached = append(unreached, err)
		default:
			_ = key.Close()
			return nil, err
		}
	}
	if key.public == nil && o.Later {
		key.public = o.Public
	}
	if key.public == nil {
		return nil, fmt.Errorf("none of the key's %d replicas can be reached: %w", len(places), errors.Join(unreached...))
	}
	return key, nil
}

// temporary reports whether err is a call that may work later.
func temporary(err error) bool {
	call, ok := errors.AsType[*CallError](err)
	return ok && call.temporary
}

// opened is r's signer, which is opened now if that wasn't possible before, and
// held against the key of the others.
func (k *replicated) opened(ctx context.Context, r *replica) (Signer, error) {
	if s := r.signer.Load(); s != nil {
		return *s, nil
	}
	before := r.refused.Load()
	select {
	case r.opening <- struct{}{}:
		defer func() { <-r.opening }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for key %s, which can't be reached: %w", r.ref, ctx.Err())
	}
	if s := r.signer.Load(); s != nil { // another request was first
		return *s, nil
	}
	if why := r.refused.Load(); why != before { // in the attempt that was waited for; each of its own would make the last wait for all
		return nil, *why
	}
	s, err := r.reopen(ctx)
	if err != nil {
		if ctx.Err() == nil {
			r.refused.Store(&err)
		}
		r.fail(k.now())
		return nil, err
	}
	if k.public == nil {
		k.public = s.Public()
	} else if !pubkey.Equal(k.public, s.Public()) {
		Close(s)
		return nil, fmt.Errorf("key %s is another key than its replicas, or than the certificate's: name references to one and the same key", r.ref)
	}
	r.signer.Store(&s)
	r.failed.Store(nil)
	return s, nil
}

func (r *replica) fail(now time.Time) { r.failed.Store(&now) }

// inOrder is the replicas as they are to be asked: those that failed of late last.
func (k *replicated) inOrder() []*replica {
	now := k.now()
	var first, last []*replica
	for _, r := range k.replicas {
		if failed := r.failed.Load(); failed != nil && now.Sub(*failed) < askedLast {
			last = append(last, r)
		} else {
			first = append(first, r)
		}
	}
	return append(first, last...)
}

// Public is the one key that all of them show.
func (k *replicated) Public() crypto.PublicKey { return k.public }

// Close closes every replica.
func (k *replicated) Close() error {
	for _, r := range k.replicas {
		if s := r.signer.Load(); s != nil {
			Close(*s)
		}
	}
	return nil
}

// Sign asks one after the other, each within its share of ctx's time.
func (k *replicated) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	var sig []byte
	err := k.each(ctx, operationSign, func(ctx context.Context, s Signer) (err error) {
		sig, err = s.Sign(ctx, digest, opts)
		return err
	})
	return sig, err
}

// Health is nil when one of them is healthy: then a signature can be made.
func (k *replicated) Health(ctx context.Context) error {
	return k.each(ctx, "health", func(ctx context.Context, s Signer) error {
		if h, ok := s.(Healthy); ok {
			return h.Health(ctx)
		}
		return Try(ctx, s)
	})
}

// each does something with one replica after the other until one succeeds.
func (k *replicated) each(ctx context.Context, what string, do func(ctx context.Context, s Signer) error) error {
	var errs []error
	order := k.inOrder()
	for i, r := range order {
		part, cancel := share(ctx, len(order)-i)
		s, err := k.opened(part, r)
		if err == nil {
			err = do(part, s)
		}
		cancel()
		switch {
		case err == nil:
			if r.failed.Swap(nil) != nil {
				k.logger.InfoContext(ctx, "a replica of the key works again", slog.String("key", r.ref))
			}
			return nil
		case errors.Is(err, ErrDigest), errors.Is(err, ErrSignatureScheme):
			return err // the caller's fault, which no other replica mends
		case ctx.Err() != nil:
			return errors.Join(append(errs, ctx.Err(), err)...)
		}
		r.fail(k.now())
		errs = append(errs, err)
		if i+1 < len(order) {
			k.logger.WarnContext(ctx, "a replica of the key failed; the next is used", slog.String("operation", what),
				slog.String("key", r.ref), slog.String("next", order[i+1].ref), slog.Any("error", err))
		}
	}
	return errors.Join(errs...)
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
