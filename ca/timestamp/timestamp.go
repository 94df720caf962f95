// Package timestamp is a timestamp authority (RFC 3161): it signs that a digest was
// there at a time, so that a signature goes on verifying when its certificate has
// expired.
//
// A query goes one way: parse it within bounds (rfc3161.go), ask the clock, which
// refuses while something is known against it (clock.go), and sign. There
// is a reply to every query, a refusal too. [Load] reads an authority, [InForce] holds
// the one that answers.
package timestamp

import (
	"context"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// Paths of the authority on the REST port, those of sigstore's timestamp-authority:
// clients add them to a URL, or find them in the signing config.
const (
	Path      = "/api/v1/timestamp"
	ChainPath = Path + "/certchain"
)

// Options are what an InForce works with.
type Options struct {
	// Now is the machine's clock.
	Now func() time.Time
	// TimeSources are [Config.TimeSources].
	TimeSources []string
	Logger      *slog.Logger
	Metrics     prometheus.Registerer

	running func() time.Duration // a clock that nobody can set; nil is the process's own. Tests set it.
}

// InForce answers queries with the authority in force, which may be none. It is safe
// for concurrent use and owns no goroutine: [InForce.Watch] is for the caller to run.
type InForce struct {
	logger  *slog.Logger
	clock   *clock
	replies *prometheus.CounterVec // by status
	seconds prometheus.Histogram   // that signatures took
	current atomic.Pointer[Authority]
	failed  atomic.Pointer[error] // of the last signature
}

// NewInForce makes an InForce without an authority.
func NewInForce(o Options) (*InForce, error) {
	if o.running == nil {
		began := time.Now()
		o.running = func() time.Duration { return time.Since(began) }
	}
	f := &InForce{
		logger: o.Logger,
		clock:  newClock(o.Now, o.running, o.TimeSources),
		replies: metric.Counter("mayfly_timestamps_total",
			"Replies to queries for timestamps by status: granted, or why not, as RFC 3161 calls it; timeNotAvailable is for the clock.", "status"),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "mayfly_timestamp_signing_seconds",
			Help:    "Time that the timestamp authority's key took for a signature, in seconds.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
	}
	f.replies.WithLabelValues(granted)
	for _, name := range failures {
		f.replies.WithLabelValues(name)
	}
	return f, metric.Register(o.Metrics, f.replies, f.seconds,
		metric.Read("mayfly_timestamp_authority_expiry_timestamp_seconds", "When the timestamp authority's certificate ends, in Unix seconds; 0 without one.", nil, func() float64 {
			if a := f.current.Load(); a != nil {
				return float64(a.end().Unix())
			}
			return 0
		}),
		metric.Read("mayfly_timestamp_clock_trusted", "0 while no timestamps are given because the clock was set, or is off, else 1.", nil, func() float64 {
			return metric.Bool(f.clock.trusted(f.bound()) == nil)
		}))
}

// Use has next answer from now on, nil nobody, and closes the one before once its last
// signature is made.
func (f *InForce) Use(next *Authority) {
	if before := f.current.Swap(next); before != next {
		before.Close()
	}
}

// bound is how far the clock may be off.
func (f *InForce) bound() time.Duration {
	c := DefaultConfig()
	if a := f.current.Load(); a != nil {
		c = a.config
	}
	return c.bound()
}

// Watch looks at the clock until ctx ends, and logs when it becomes trusted or is no
// longer, and what keeps time sources from answering.
func (f *InForce) Watch(ctx context.Context) error {
	last := ""
	f.clock.watch(ctx, f.bound, func(err error) {
		now := ""
		if err != nil {
			now = err.Error()
		}
		if now == last || ctx.Err() != nil {
			return
		}
		if last = now; err != nil {
			f.logger.LogAttrs(ctx, slog.LevelWarn, "the clock can't be relied on for timestamps, or not be compared", slog.Any("error", err))
			return
		}
		f.logger.LogAttrs(ctx, slog.LevelInfo, "the clock can be relied on for timestamps")
	})
	return nil
}

// PEM is the chain in force.
func (f *InForce) PEM() []byte {
	if a := f.current.Load(); a != nil {
		return chain.PEM(a.Chain)
	}
	return nil
}

// Ready is nil while timestamps are given, or aren't to be, as far as is known without
// a signature.
func (f *InForce) Ready(context.Context) error {
	if f.current.Load() == nil {
		return nil
	}
	if last := f.failed.Load(); last != nil {
		return *last
	}
	if r := f.current.Load().valid(f.clock.now()); r != nil {
		return r.Error
	}
	return f.clock.trusted(f.bound())
}

// Detail is what anybody may know of it.
func (f *InForce) Detail() []string {
	a := f.current.Load()
	if a == nil {
		return []string{"none are given here"}
	}
	return []string{fmt.Sprintf("%s, valid to %s", chain.Subject(a.Chain[0]), chain.Stamp(a.end()))}
}

// ReplyDER answers a TimeStampReq. The reply is a TimeStampResp in any case; the
// failure is nil where it grants a timestamp.
func (f *InForce) ReplyDER(ctx context.Context, body []byte) ([]byte, *fault.Error) {
	return f.reply(ctx, func(a *Authority) (query, *refusal) { return parseDER(body, a.template.policy) })
}

// ReplyJSON is ReplyDER for the form of sigstore's timestamp-authority.
func (f *InForce) ReplyJSON(ctx context.Context, body []byte) ([]byte, *fault.Error) {
	return f.reply(ctx, func(a *Authority) (query, *refusal) { return parseJSON(body, a.config.Policy) })
}

func (f *InForce) reply(ctx context.Context, parse func(*Authority) (query, *refusal)) ([]byte, *fault.Error) {
	reply, r := f.grant(ctx, parse)
	if r != nil {
		f.replies.WithLabelValues(failures[r.failure]).Inc()
		return rejected(r), r.Error
	}
	f.replies.WithLabelValues(granted).Inc()
	return reply, nil
}

// grant gives a timestamp, or says why not.
func (f *InForce) grant(ctx context.Context, parse func(*Authority) (query, *refusal)) ([]byte, *refusal) {
	a := f.current.Load()
	if r := a.valid(f.clock.now()); r != nil {
		return nil, r
	}
	q, r := parse(a)
	if r != nil {
		return nil, r
	}
	at, err := f.clock.time(a.config.bound())
	if err != nil {
		return nil, &refusal{timeNotAvailable, fault.New(fault.TimeUnavailable,
			"the timestamp authority's clock can't be relied on at the moment; try again later").With("dependency", "clock").Because(err)}
	}
	serial, err := cacert.NewSerial(rand.Reader)
	if err != nil {
		return nil, &refusal{systemFailure, fault.From(err)}
	}
	said := a.template.info
	said.Imprint.FullBytes, said.Nonce.FullBytes, said.Serial, said.Time = q.imprint, q.nonce, serial, at
	info, err := asn1.Marshal(said)
	if err != nil {
		return nil, &refusal{systemFailure, fault.From(err)}
	}
	attributes, err := asn1.MarshalWithParams(append(attributesOf(info, a.template.hash), a.template.certificate), "set")
	if err != nil {
		return nil, &refusal{systemFailure, fault.From(err)}
	}
	signature, err := f.sign(ctx, a, attributes)
	if err != nil {
		return nil, &refusal{systemFailure, signerFault(ctx, err)}
	}
	reply, err := a.template.granted(info, attributes, signature, q.certs)
	if err != nil {
		return nil, &refusal{systemFailure, fault.From(err)}
	}
	return reply, nil
}

// valid is nil while the whole chain is.
func (a *Authority) valid(now time.Time) *refusal {
	if a != nil && !now.Before(a.Chain[0].NotBefore) && !now.After(a.end()) {
		return nil
	}
	return &refusal{systemFailure, fault.New(fault.SignerUnavailable,
		"the timestamp authority's certificate isn't valid now; its operator must renew it").With("dependency", "signer")}
}

// errClosed is why an authority that another took the place of doesn't sign.
var errClosed = errors.New("timestamp: the authority isn't in force any more")

// sign signs attributes, a SET in DER.
func (f *InForce) sign(ctx context.Context, a *Authority, attributes []byte) ([]byte, error) {
	a.using.RLock()
	defer a.using.RUnlock()
	if a.signer == nil {
		return nil, errClosed
	}
	began := time.Now()
	signature, err := a.signer.Sign(ctx, pubkey.Digest(a.template.hash, attributes), a.template.hash)
	switch {
	case err == nil:
		f.seconds.Observe(time.Since(began).Seconds())
		f.failed.Store(nil)
	case ctx.Err() == nil: // that the client gave up says nothing about the key
		f.failed.Store(&err)
	}
	return signature, err
}

// signerFault classifies what a signer failed with: the request's own end, or a key
// that is out of reach.
func signerFault(ctx context.Context, err error) *fault.Error {
	if ctx.Err() != nil {
		return fault.From(ctx.Err()).Because(err)
	}
	return fault.New(fault.SignerUnavailable, "the timestamp authority's key can't be used at the moment; try again").
		With("dependency", "signer").Because(err)
}

// granted is the status of a reply that has a timestamp; others have a failure's name.
const granted = "granted"
