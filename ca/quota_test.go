package ca

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// pass lets time pass in a bubble.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	if err := wait.For(t.Context(), d); err != nil {
		t.Error(err)
	}
}

// kmsTime is what a signature of the slow key takes.
const kmsTime = 20 * time.Millisecond

// slowKey makes the rig's key take its time, and remembers when it was asked.
func slowKey(r *rig) (asked func() []time.Time) {
	var mu sync.Mutex
	var times []time.Time
	r.signer.answer = func(ctx context.Context, _ int64, sign func() ([]byte, error)) ([]byte, error) {
		mu.Lock()
		times = append(times, time.Now())
		mu.Unlock()
		if err := wait.For(ctx, kmsTime); err != nil {
			return nil, err
		}
		return sign()
	}
	return func() []time.Time {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(times)
	}
}

// most is the largest number of times within any second.
func most(times []time.Time) int {
	slices.SortFunc(times, time.Time.Compare)
	largest := 0
	for first, last := 0, 0; last < len(times); last++ {
		for times[last].Sub(times[first]) >= time.Second {
			first++
		}
		largest = max(largest, last-first+1)
	}
	return largest
}

// TestQuota: at three times the quota the key never sees more than the quota in any
// second, what is issued is what the quota allows, and who is refused is told so at
// once, with a time to come back, a record and no trace elsewhere. A log that
// holds everybody up for a while changes nothing of this.
func TestQuota(t *testing.T) {
	t.Parallel()
	who, key := alice(t)
	const perSecond, seconds = 100, 5
	const patience = 16 * time.Second / perSecond // of the quota
	for name, tt := range map[string]struct {
		presigned bool
		cost      int
		stall     time.Duration // of the log, in the middle
	}{
		"two signatures":             {cost: 2},
		"one signature":              {cost: 1, presigned: true},
		"one, a log that stalls":     {cost: 1, presigned: true, stall: time.Second},
		"two, and a log that stalls": {cost: 2, stall: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, kms.ECDSAP256, func(c *Config, _ *Options) {
					c.Authority.SigningQuota = perSecond
					if tt.presigned {
						c.Authority.PrecertificateSigner = authority.SignerAuto
					}
				})
				asked := slowKey(r)
				begin := time.Now()
				r.log.take = func(ctlog.Chain) error {
					if at := time.Since(begin); tt.stall > 0 && at > 2*time.Second && at < 2*time.Second+tt.stall {
						pass(t, 2*time.Second+tt.stall-at)
					}
					return nil
				}
				if err := r.issuer.CheckPrecertificateSigner(t.Context(), r.issuer.Authorities().Active); err != nil {
					t.Fatal(err)
				}
				own := len(r.log.entries()) // the probe's
				var issued, refused int
				var slowest, latest time.Duration
				var mu sync.Mutex
				var all sync.WaitGroup
				offered := 3 * perSecond / tt.cost * seconds
				for n := range offered {
					pass(t, time.Until(begin.Add(time.Duration(n)*seconds*time.Second/time.Duration(offered))))
					all.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
						defer cancel()
						start := time.Now()
						_, err := r.issuer.Issue(ctx, who, key)
						took := time.Since(start)
						mu.Lock()
						defer mu.Unlock()
						f := fault.From(err)
						switch {
						case err == nil:
							issued++
							slowest = max(slowest, took)
						case f.Reason == fault.SigningQuota && f.Kind() == fault.Unavailable && f.RetryAfter >= time.Second:
							refused++
							latest = max(latest, took)
						default:
							t.Errorf("%v", err)
						}
					})
				}
				all.Wait()
				if got := most(asked()); got > perSecond {
					t.Errorf("the key was asked %d times within a second, and its quota is %d", got, perSecond)
				}
				could := perSecond / tt.cost * seconds
				if least := could*95/100 - int(tt.stall.Seconds()*perSecond); issued < least || issued > could+perSecond/2 {
					t.Errorf("%d certificates in %d s, the quota allows %d", issued, seconds, could)
				}
				if issued+refused != offered || latest > 0 {
					t.Errorf("%d issued, %d refused of %d; a refusal took up to %v", issued, refused, offered, latest)
				}
				if allowed := patience + 2*(kmsTime+time.Second/perSecond) + 2*tt.stall; slowest > allowed {
					t.Errorf("a certificate took %v, want at most %v", slowest, allowed)
				}
				if got := len(r.log.entries()) - own; got != issued {
					t.Errorf("%d entries in the log for %d certificates", got, issued)
				}
				checkRefusals(t, r, refused)
			})
		})
	}
}

// checkRefusals wants one record of each refusal, which says no more than that.
func checkRefusals(t *testing.T, r *rig, refused int) {
	t.Helper()
	found, intents := 0, 0
	for _, e := range r.audit.events {
		switch {
		case e.Type == audit.Failed && e.Reason == fault.SigningQuota && e.Serial == "" && e.Subject != "":
			found++
		case e.Type == audit.Denied, e.Type == audit.Failed:
			t.Errorf("record %+v", e)
		case e.Type == audit.Intent:
			intents++
		}
	}
	if found != refused {
		t.Errorf("%d refusals on record of %d", found, refused)
	}
	if outcomes := len(r.audit.events) - found - intents; outcomes != intents {
		t.Errorf("%d intents, %d outcomes", intents, outcomes)
	}
}

// TestQuotaReadiness: a readiness probe takes nothing of the quota, also where it
// costs a signature.
func TestQuotaReadiness(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, kms.ECDSAP256, func(c *Config, _ *Options) { c.Authority.SigningQuota = 1 })
		for range 20 {
			if err := r.issuer.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		if err := r.authority.Admit(t.Context(), 1); err != nil || time.Since(begin) > 0 {
			t.Errorf("a probe took a turn: the first admission came after %v, %v", time.Since(begin), err)
		}
		if _, err := r.authority.SignTBS(t.Context(), nil); err != nil || time.Since(begin) > 0 {
			t.Errorf("a probe took a turn: the first signature came after %v, %v", time.Since(begin), err)
		}
	})
}
