package authority

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// Options are what InForce works with.
type Options struct {
	// Set is what signs and what clients are to trust. InForce owns it from then on.
	Set *Set
	// Life is that of leaves whose issuer chose none.
	Life
	// Probe has every log take a precertificate that s signs for a; its errors wrap
	// ctlog.ErrRefused where a log refuses it, and don't where a log couldn't be
	// asked. It is nil where there is no log, and so no precertificates.
	Probe func(ctx context.Context, a *Authority, s *PrecertificateSigner) error
	// Trail is required: no record, no signature. Its clock and logger serve all.
	Trail audit.Trail
	// Metrics takes the package's metrics; nil leaves them unregistered.
	Metrics prometheus.Registerer
}

// InForce holds the authorities in force. It is safe for concurrent use and owns no
// goroutine: [InForce.Run] and [InForce.WatchExpiry] are for the caller to run.
type InForce struct {
	o       Options
	expiry  *prometheus.GaugeVec // by the configured name
	active  *prometheus.GaugeVec
	health  health
	woken   chan struct{} // has Run look again
	using   sync.Mutex    // serialises Use
	current atomic.Pointer[Set]
}

// NewInForce puts o.Set in force. After an error it is still the caller's.
func NewInForce(o Options) (*InForce, error) {
	f := &InForce{
		o: o, woken: make(chan struct{}, 1),
		expiry: metric.Gauge("mayfly_ca_authority_expiry_timestamp_seconds",
			"When the first certificate of a listed authority's chain ends, in Unix seconds, by the authority's configured name.", "authority"),
		active: metric.Gauge("mayfly_ca_authority_active",
			"1 for the listed authority that signs, 0 for the others, by the authority's configured name.", "authority"),
	}
	signer := func() *PrecertificateSigner {
		a := f.current.Load().Active
		return a.PrecertificateSigner(f.validity(a))
	}
	f.Use(o.Set)
	return f, metric.Register(o.Metrics, f.expiry, f.active,
		metric.Read("mayfly_ca_signatures_per_certificate",
			"Signatures of the active authority's key that a certificate costs: 1 with a precertificate signing certificate or without a log, else 2.",
			nil, func() float64 { return float64(f.Signatures(signer())) }),
		metric.Read("mayfly_ca_precertificate_signer_expiry_timestamp_seconds",
			"When the precertificate signing certificate in force ends, in Unix seconds; 0 without one.", nil, func() float64 {
				if s := signer(); s != nil {
					return float64(s.Certificate.NotAfter.Unix())
				}
				return 0
			}),
	)
}

// Use puts authorities in force for every request that begins from now on;
// requests under way end with what they began with. InForce owns what it is given:
// when a later Use has another Active, the key of this one is closed once the last
// request that reads it has ended.
func (f *InForce) Use(next *Set) {
	f.using.Lock()
	defer f.using.Unlock()
	before := f.current.Swap(next)
	f.wake()
	f.show(next)
	if before != nil && before.Active.holders != next.Active.holders {
		before.Active.Close()
	}
}

// Close ends InForce's use of the key in force, as a Use of another does. Nothing can be
// acquired after it.
func (f *InForce) Close() {
	f.using.Lock()
	defer f.using.Unlock()
	f.current.Load().Active.Close()
}

// Authorities are those in force. Callers must not write to them.
func (f *InForce) Authorities() *Set { return f.current.Load() }

// Chains are the chains that verify what this CA signs, has signed or will sign,
// each in DER from the issuing certificate to the root: the trust bundle.
func (f *InForce) Chains() [][][]byte {
	var chains [][][]byte
	for _, t := range f.current.Load().Trusted {
		chains = append(chains, t.Chain)
	}
	return chains
}

// Acquire is the active authority for one request, to be released when it ends: a
// rotation meanwhile neither changes it nor closes its key.
func (f *InForce) Acquire() (*Authority, error) {
	for {
		a := f.current.Load().Active
		if a.Hold() {
			return a, nil
		}
		if f.current.Load().Active == a {
			return nil, errors.New("ca: the authority in force was closed")
		}
	}
}

// Hold is Acquire for an authority at hand, false once its key is closed.
func (a *Authority) Hold() bool {
	for {
		n := a.holders.Load()
		if n == 0 {
			return false
		}
		if a.holders.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release ends the use of a that Acquire or Hold began.
func (a *Authority) Release() {
	if a.holders.Add(-1) == 0 {
		kms.Close(a.signer)
	}
}

// Close ends the owner's use of a's key: it is closed when the last request that
// still signs with it has ended. An authority is closed once.
func (a *Authority) Close() { a.Release() }

// Life is how long leaves live, and how much of that lies before their issuance.
type Life struct{ Lifetime, Backdate time.Duration }

// LeafValidity is that of a leaf which a issues at the time now, both ends included
// (RFC 5280 §4.1.2.5): ten minutes end one second early. It is backdated no further
// than to a's own begin.
func (a *Authority) LeafValidity(now time.Time, l Life) (notBefore, notAfter time.Time) {
	now = now.UTC().Truncate(time.Second)
	notBefore = later(now.Add(-l.Backdate), earlier(now, a.notBefore))
	return notBefore, notBefore.Add(l.Lifetime - time.Second)
}

func earlier(times ...time.Time) time.Time { return slices.MinFunc(times, time.Time.Compare) }

func later(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// validity is that of a's leaf whose issuer chose no lifetime.
func (f *InForce) validity(a *Authority) (notBefore, notAfter time.Time) {
	return a.LeafValidity(f.o.Trail.Now(), f.o.Life)
}

// Ready is nil when a certificate could be issued now: the authority covers its
// validity and the key can sign. A key that can tell without a signature is
// asked once every few seconds; of any other, a signature is made.
func (f *InForce) Ready(ctx context.Context) error {
	a, err := f.Acquire()
	if err != nil {
		return err
	}
	defer a.Release()
	if err := a.Covers(f.validity(a)); err != nil {
		return err
	}
	if err := f.health.check(ctx, a, f.o.Trail.Now); err != nil {
		return signerFault(ctx, err)
	}
	return nil
}

// How long what a key says of its health is good for: long enough that many
// probes cost a KMS nothing, short enough that a key which comes back is seen.
const (
	healthyFor   = 5 * time.Second
	unhealthyFor = time.Second
)

// health remembers what a key said that can be asked without a signature.
type health struct {
	mu      sync.Mutex
	of      *Authority
	checked time.Time // when it was asked
	err     error     // what it said; nil: it could sign
}

// check is nil when a's key could sign. Callers at the same time share one question.
func (h *health) check(ctx context.Context, a *Authority, now func() time.Time) error {
	key, ok := a.signer.(kms.Healthy)
	if !ok {
		return kms.Try(ctx, a.signer)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	good := healthyFor
	if h.err != nil {
		good = unhealthyFor
	}
	if h.of == a && now().Sub(h.checked) < good {
		return h.err
	}
	err := key.Health(ctx)
	if ctx.Err() != nil {
		return err // that the caller gave up says nothing about the key
	}
	h.of, h.checked, h.err = a, now(), err
	return err
}

// expiryInterval is how often the trusted authorities are looked at: a CA's life is
// counted in months, or days.
const expiryInterval = time.Minute

// WatchExpiry warns of every trusted authority whose end comes near: at once, and
// each time that less of its life remains than before, until ctx ends. A retired
// one may expire; what it signed stays trusted.
func (f *InForce) WatchExpiry(ctx context.Context) error {
	logged := make(map[string]int) // by issuing certificate: the last percentage
	for next := time.Duration(0); wait.For(ctx, next) == nil; next = expiryInterval {
		logged = f.logExpiry(ctx, logged)
	}
	return nil
}

// logExpiry warns of what is worth it since the percentages of before, and gives
// those of now.
func (f *InForce) logExpiry(ctx context.Context, before map[string]int) map[string]int {
	now, remaining := f.o.Trail.Now(), make(map[string]int)
	for _, t := range f.current.Load().Trusted {
		id, percent := string(t.Chain[0]), t.remains(now)
		remaining[id] = percent
		last, known := before[id]
		if ended := t.Renewed || !t.End.IsZero() && t.End.Before(now) && t.End.Before(t.NotAfter); ended || percent == 100 || known && percent >= last {
			continue
		}
		level := slog.LevelWarn
		if percent <= 10 {
			level = slog.LevelError
		}
		f.o.Trail.Logger.LogAttrs(ctx, level, "an authority's certificate ends soon, or has ended", slog.String("authority", t.Name),
			slog.Int("percent_of_life_remaining", percent), slog.Time("not_after", t.NotAfter), slog.String("advice", "prepare and publish its successor: docs/authorities.md"))
	}
	return remaining
}

// show shows the trusted authorities, and no other ones any more.
func (f *InForce) show(s *Set) {
	f.expiry.Reset()
	f.active.Reset()
	for _, active := range []bool{false, true} { // which is last, since issuing certificates of one ephemeral authority have one name
		for _, t := range s.Trusted {
			if !active || bytes.Equal(t.Chain[0], s.Active.Chain[0]) {
				f.expiry.WithLabelValues(t.Name).Set(float64(t.NotAfter.Unix()))
				f.active.WithLabelValues(t.Name).Set(metric.Bool(active))
			}
		}
	}
}
