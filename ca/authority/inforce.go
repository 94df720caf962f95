package authority

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/kms"
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
	metrics *metrics
	health  health
	woken   chan struct{} // has Run look again
	using   sync.Mutex    // serialises Use
	current atomic.Pointer[Set]
}

// NewInForce puts o.Set in force. After an error it is still the caller's.
func NewInForce(o Options) (*InForce, error) {
	f := &InForce{o: o, woken: make(chan struct{}, 1)}
	var err error
	if f.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, err
	}
	f.Use(o.Set)
	return f, f.registerSigner(o.Metrics)
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
	f.metrics.show(next)
	if before != nil && before.Active.lease != next.Active.lease {
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
		if a.lease.take() {
			return a, nil
		}
		if f.current.Load().Active == a {
			return nil, errors.New("ca: the authority in force was closed")
		}
	}
}

// Hold is Acquire for an authority at hand, false once its key is closed.
func (a *Authority) Hold() bool { return a.lease.take() }

// Release ends the use of a that Acquire or Hold began.
func (a *Authority) Release() { a.lease.leave() }

// Close ends the owner's use of a's key: it is closed when the last request that
// still signs with it has ended. An authority is closed once.
func (a *Authority) Close() { a.lease.leave() }

// lease counts who uses an authority's key: its owner, and each request that
// reads it. The last to leave closes the key.
type lease struct {
	holders atomic.Int64
	signer  kms.Signer
}

func newLease(s kms.Signer) *lease {
	l := &lease{signer: s}
	l.holders.Store(1) // the owner
	return l
}

// take adds a holder; it is false when the last has left.
func (l *lease) take() bool {
	for {
		n := l.holders.Load()
		if n == 0 {
			return false
		}
		if l.holders.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// leave ends one holding.
func (l *lease) leave() {
	if l.holders.Add(-1) == 0 {
		kms.Close(l.signer)
	}
}

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
