package external

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	ct "github.com/google/certificate-transparency-go"
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
func (l *Log) retry(ctx context.Context, chain ctlog.Chain) (ctlog.SCT, error) {
	request, err := l.request(chain)
	if err != nil {
		return ctlog.SCT{}, fmt.Errorf("submitting to the log: %w", err)
	}
	bound := minWait
	for {
		var body ct.AddChainResponse
		err := l.exchange(ctx, http.MethodPost, ct.AddPreChainPath, request, maxAnswer, &body)
		var o *outage
		switch {
		case err == nil:
			return decode(body)
		case !errors.As(err, &o):
			return ctlog.SCT{}, err
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

// exchange makes one request, and decodes at most limit bytes of the answer's JSON. The
// error is an *outage unless the log's answer was one, or the caller went away.
func (l *Log) exchange(ctx context.Context, method, path string, body []byte, limit int64, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, l.description.URL+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("making a request for the log: %w", err)
	}
	request.Header.Set("User-Agent", userAgent)
	if len(body) > 0 {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := l.Reader().Do(request)
	switch {
	case err != nil && errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("submitting to the log: %w", ctx.Err())
	case err != nil:
		return &outage{cause: oneline.Error(err, 2*maxRefusal)} // it may hold a line of the log's
	}
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(bounded.Body(response.Body, limit, errTooLong))
	if code := response.StatusCode; err == nil && code != http.StatusOK {
		said := fmt.Errorf("the log answered %s: %q", oneLine(response.Status), oneLine(string(raw)))
		// Never again after 400: the log has understood and refused. It may say when to come again.
		if code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500 {
			return &outage{cause: said, after: min(wait.Asked(response.Header, l.o.Now()), maxAfter)}
		}
		return said
	}
	if err == nil {
		err = json.Unmarshal(raw, answer)
	}
	if err != nil {
		return fmt.Errorf("the log's answer can't be read: %w", oneline.Error(err, maxRefusal))
	}
	return nil
}

// decode takes the SCT out of an answer: version 1, ECDSA with SHA-256, nothing
// behind it.
func decode(body ct.AddChainResponse) (ctlog.SCT, error) {
	extensions, err := base64.StdEncoding.DecodeString(body.Extensions)
	if err != nil {
		return ctlog.SCT{}, fmt.Errorf("the SCT's extensions are not base64: %w", err)
	}
	if body.SCTVersion != ct.V1 || len(body.ID) != sha256.Size {
		return ctlog.SCT{}, errors.New("the log's answer is not a version 1 SCT")
	}
	var b cryptobyte.Builder // RFC 6962 §3.2
	b.AddUint8(uint8(body.SCTVersion))
	b.AddBytes(body.ID)
	b.AddUint64(body.Timestamp)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(extensions) })
	b.AddBytes(body.Signature) // with its algorithms and length
	raw, err := b.Bytes()
	if err != nil {
		return ctlog.SCT{}, fmt.Errorf("reading the log's SCT: %w", err)
	}
	return ctlog.ParseSCT(raw)
}

// oneLine is the beginning of what a log said, on one line.
func oneLine(said string) string { return oneline.Clean(said, maxRefusal) }

// errTooLong ends the reading of an answer that is longer than any honest one.
var errTooLong = errors.New("the log's answer is too long")

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

// leave ends a submission that was let through. A caller that went away says nothing
// about the log; one that went because another log was faster does.
func (b *breaker) leave(ctx context.Context, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trying = false
	_, outage := errors.AsType[*fault.Error](err)
	left := errors.Is(err, context.Canceled)
	switch {
	case left && !errors.Is(context.Cause(ctx), ctlog.ErrSuperseded):
	case left, outage, errors.Is(err, context.DeadlineExceeded):
		if b.failures++; b.failures >= breakerFailures {
			b.until = b.now().Add(breakerPause)
		}
	default: // it answered, if only to refuse
		b.failures = 0
	}
}
