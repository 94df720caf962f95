package external

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/jsonclient"
	"golang.org/x/crypto/cryptobyte"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/bounded"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/oneline"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// How long is waited between attempts: a random time up to a bound that doubles.
const (
	minWait = 100 * time.Millisecond
	maxWait = 2 * time.Second

	// maxAfter bounds what a log may have our clients wait: they would go on when it is well again.
	maxAfter = 10 * time.Minute
)

// outage is a failure that another attempt may mend. after is how long the log
// asked to be left alone; zero: it didn't say.
type outage struct {
	cause error
	after time.Duration
}

func (o *outage) Error() string { return o.cause.Error() }
func (o *outage) Unwrap() error { return o.cause }

// retry attempts until the log answers, refuses, or ctx ends.
func (l *Log) retry(ctx context.Context, request *ct.AddChainRequest) (ctlog.SCT, error) {
	bound := minWait
	for {
		sct, err := l.attempt(ctx, request)
		var o *outage
		if !errors.As(err, &o) {
			return sct, err
		}
		pause := minWait + rand.N(bound) //nolint:gosec // jitter, not a secret
		pause = max(min(pause, maxWait), o.after)
		if deadline, ok := ctx.Deadline(); ctx.Err() == nil && ok && time.Until(deadline) <= pause {
			return ctlog.SCT{}, l.unavailable(o, pause) // no time for another: say so now, with the cause
		}
		if err := wait.For(ctx, pause); errors.Is(err, context.Canceled) {
			return ctlog.SCT{}, fmt.Errorf("submitting to the log: %w (last: %w)", err, o.cause)
		} else if err != nil {
			return ctlog.SCT{}, l.unavailable(o, pause)
		}
		bound = min(2*bound, maxWait)
	}
}

func (l *Log) unavailable(o *outage, after time.Duration) error {
	return fault.New(fault.LogUnavailable, "the transparency log is unavailable; nothing was issued; try again").
		With("dependency", "ctlog").After(max(after, time.Second)).Because(o.cause)
}

// attempt makes one request.
func (l *Log) attempt(ctx context.Context, request *ct.AddChainRequest) (ctlog.SCT, error) {
	client, err := l.fresh(maxAnswer)
	if err != nil {
		return ctlog.SCT{}, err
	}
	var body ct.AddChainResponse
	response, raw, err := client.PostAndParse(ctx, ct.AddPreChainPath, request, &body)
	if err != nil {
		return ctlog.SCT{}, classify(ctx, err)
	}
	if response.StatusCode != http.StatusOK {
		return ctlog.SCT{}, statusError(response, raw, l.o.Now())
	}
	return decode(body)
}

// classify tells an outage from an answer that makes no sense.
func classify(ctx context.Context, err error) error {
	var (
		answered jsonclient.RspError
		syntax   *json.SyntaxError
	)
	switch {
	case errors.Is(err, errTooLong):
		return flatten(err)
	case errors.As(err, &answered), errors.As(err, &syntax):
		return fmt.Errorf("the log's answer can't be read: %w", flatten(err))
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("submitting to the log: %w", ctx.Err())
	default:
		return &outage{cause: oneline.Error(err, 2*maxRefusal)} // it may hold a line of the log's
	}
}

// statusError classifies a status. Never again after 400: the log has understood
// and refused. Again after 408, 429 and 5xx, and the log may say when.
func statusError(r *http.Response, body []byte, now time.Time) error {
	said := fmt.Errorf("the log answered %s: %q", oneLine(r.Status), oneLine(string(body)))
	switch {
	case r.StatusCode == http.StatusRequestTimeout, r.StatusCode == http.StatusTooManyRequests, r.StatusCode >= 500:
		return &outage{cause: said, after: min(wait.Asked(r.Header, now), maxAfter)}
	default:
		return said
	}
}

// decode takes the SCT out of an answer: version 1, ECDSA with SHA-256, nothing
// behind it.
func decode(body ct.AddChainResponse) (ctlog.SCT, error) {
	var (
		sct             = ctlog.SCT{Timestamp: body.Timestamp}
		hash, algorithm uint8
		signature       cryptobyte.String
		signed          = cryptobyte.String(body.Signature)
	)
	if body.SCTVersion != ct.V1 || len(body.ID) != len(sct.LogID) {
		return ctlog.SCT{}, errors.New("the log's answer is not a version 1 SCT")
	}
	copy(sct.LogID[:], body.ID)
	// RFC 5246 §4.7: hash sha256(4), signature ecdsa(3).
	if !signed.ReadUint8(&hash) || !signed.ReadUint8(&algorithm) || hash != 4 || algorithm != 3 ||
		!signed.ReadUint16LengthPrefixed(&signature) || !signed.Empty() {
		return ctlog.SCT{}, errors.New("the log's signature is not ECDSA with SHA-256")
	}
	sct.Signature = signature
	var err error
	if sct.Extensions, err = base64.StdEncoding.DecodeString(body.Extensions); err != nil {
		return ctlog.SCT{}, fmt.Errorf("the SCT's extensions are not base64: %w", err)
	}
	return sct, nil
}

// oneLine is the beginning of what a log said, on one line.
func oneLine(said string) string { return oneline.Clean(said, maxRefusal) }

// flatten keeps an error's text and drops the body that jsonclient hangs on it.
func flatten(err error) error { return errors.New(oneLine(err.Error())) }

// errTooLong ends the reading of an answer that is longer than any honest one.
var errTooLong = errors.New("the log's answer is too long")

// capped is a transport whose bodies end with errTooLong after limit bytes:
// jsonclient reads a body to its end, however far that is.
type capped struct {
	next  http.RoundTripper
	limit int64
}

func (c capped) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := c.next.RoundTrip(r)
	if err == nil {
		response.Body = bounded.Body(response.Body, c.limit, errTooLong)
	}
	return response, err
}

// breaker leaves a log alone that failed several times in a row, and lets one
// submission try after a pause.
type breaker struct {
	now func() time.Time

	mu       sync.Mutex
	failures int
	until    time.Time // while open: when one may try
	trying   bool      // that one is on its way
}

// enter lets a submission through, or says when to come again.
func (b *breaker) enter() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < breakerFailures {
		return nil
	}
	if left := b.until.Sub(b.now()); left > 0 || b.trying {
		return resting(max(left, time.Second))
	}
	b.trying = true
	return nil
}

// ready is nil while submissions are let through, or one may try.
func (b *breaker) ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if left := b.until.Sub(b.now()); b.failures >= breakerFailures && left > 0 {
		return resting(left)
	}
	return nil
}

func resting(left time.Duration) error {
	return fault.New(fault.LogUnavailable, "the transparency log failed several times and is left alone for a while; try again").
		With("dependency", "ctlog").After(left)
}

// verdict is what the end of a submission says of the log.
type verdict int

const (
	nothing verdict = iota
	works
	fails
)

// leave ends a submission that was let through.
func (b *breaker) leave(v verdict) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trying = false
	switch v {
	case works:
		b.failures = 0
	case fails:
		if b.failures++; b.failures >= breakerFailures {
			b.until = b.now().Add(breakerPause)
		}
	case nothing:
	}
}
