// Package replay remembers used tokens for all replicas of a CA in one Redis or
// Valkey server.
package replay

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

const (
	// timeout bounds one use of a token, connecting included.
	timeout = 3 * time.Second
	// retryAfter is when a client is told to try again.
	retryAfter = 5 * time.Second
	// tries is how often a command is sent when its connection breaks: those
	// that lay idle while the server was started again are all broken.
	tries = 3
	// clocksDiffer is how much longer than asked a token is remembered: a
	// replica whose clock is this far behind the one that saw the token first
	// can't be shown it again.
	clocksDiffer = 10 * time.Minute
)

// Store is an identity.Replay on a Redis or Valkey server. What it can't find
// out it refuses. It is safe for concurrent use.
type Store struct {
	client *redis.Client
	prefix string
	now    func() time.Time
	longer time.Duration // than asked
}

var _ identity.Replay = (*Store)(nil)

// New reads what c names and makes a store that connects when it is used first.
// now is its clock; nil means time.Now. Close ends it.
func New(c Config, now func() time.Time) (*Store, error) {
	if now == nil {
		now = time.Now
	}
	r := c.Redis
	// What the library would print, past our logger, is in the errors that it
	// returns.
	redis.SetLogger(&logging.VoidLogger{})
	o := &redis.Options{
		Addr: r.Address, Network: "tcp",
		Protocol: 2, DisableIdentity: true, // two replies are read here; ask for nothing more
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		MaxRetries:               -1, // see Use
		DialerRetries:            1,
		DialTimeout:              timeout, ReadTimeout: timeout, WriteTimeout: timeout, PoolTimeout: timeout,
		ContextTimeoutEnabled: true,
		MaxIdleConns:          8, ConnMaxIdleTime: time.Minute,
		ReadBufferSize: 1 << 10, WriteBufferSize: 1 << 10, PipelinePoolSize: -1,
	}
	switch {
	case r.unix():
		o.Network = "unix"
	case r.TLS:
		roots, err := pemfile.PoolFile(r.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	}
	if !r.Password.IsZero() {
		if _, err := r.Password.Read(); err != nil {
			return nil, fmt.Errorf("password: %w", err)
		}
		o.CredentialsProviderContext = func(context.Context) (string, string, error) {
			password, err := r.Password.Read()
			return r.Username, string(password), err
		}
	}
	return &Store{client: redis.NewClient(o), prefix: r.KeyPrefix, now: now, longer: clocksDiffer}, nil
}

// Use marks a token as used; see identity.Replay. It takes 3 seconds at most.
// When the server can't be asked or refuses, the error is a *fault.Error,
// ReplayUnavailable; when ctx ends before, it wraps ctx's error. The token may
// count as used after either.
func (s *Store) Use(ctx context.Context, id [sha256.Size]byte, until time.Time) (first bool, err error) {
	key := s.prefix + hex.EncodeToString(id[:])
	// The time that is left, not the moment: the server's clock then doesn't matter.
	left := max(until.Sub(s.now()), 0) + s.longer
	// When the answer to a SET is lost, this tells whether it was ours that took effect.
	mine := rand.Text()
	err = s.try(ctx, func(ctx context.Context, again bool) error {
		err := s.set(ctx, key, mine, left, "NX")
		if first = err == nil; !errors.Is(err, redis.Nil) {
			return err
		}
		if !again {
			return nil
		}
		theirs, err := s.client.Get(ctx, key).Result()
		first = err == nil && theirs == mine
		return err
	})
	return first && err == nil, err
}

// Ready is nil when the store takes a key and forgets it a minute later: a
// server that can only be read would answer a PING. The error is as Use's.
func (s *Store) Ready(ctx context.Context) error {
	return s.try(ctx, func(ctx context.Context, _ bool) error {
		return s.set(ctx, s.prefix+"ready", "1", time.Minute)
	})
}

// set writes a key that ends after left. redis.Nil says that a condition didn't hold.
func (s *Store) set(ctx context.Context, key, value string, left time.Duration, conditions ...any) error {
	command := append([]any{"SET", key, value, "PX", max(left.Milliseconds(), 1)}, conditions...)
	return s.client.Do(ctx, command...).Err()
}

// try does something on the server, again when the connection breaks, and
// classifies what goes wrong.
func (s *Store) try(ctx context.Context, do func(ctx context.Context, again bool) error) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var err error
	for n := range tries {
		err = do(limited, n > 0)
		var refused redis.Error // by the server, which won't think better of it
		if err == nil || errors.As(err, &refused) || ended(limited) != nil {
			break
		}
	}
	switch {
	case err == nil:
		return nil
	case ended(ctx) != nil:
		return fmt.Errorf("asking whether a token was used: %w", ended(ctx))
	default:
		return fault.New(fault.ReplayUnavailable, "whether the identity token was used before can't be found out at the moment, and this issuer's tokens are accepted once; try again later, with a new token").
			With("dependency", "replay").After(retryAfter).Because(err)
	}
}

// ended is ctx.Err(), but no later than ctx's deadline: a connection has the same
// one, and may fail for it a moment before ctx ends.
func ended(ctx context.Context) error {
	if at, ok := ctx.Deadline(); ok && !time.Now().Before(at) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// Close closes the connections.
func (s *Store) Close() error { return s.client.Close() }
