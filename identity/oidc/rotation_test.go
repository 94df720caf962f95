package oidc

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestHonestRotationNeverFails rotates keys at every moment around a fetch,
// with clients that use the new key at once, and a network that takes its time.
func TestHonestRotationNeverFails(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, w, a := clocked(t)
		w.serve("issuer.example", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			time.Sleep(40 * time.Millisecond)
			a.ServeHTTP(rw, r) // what is published now
			time.Sleep(40 * time.Millisecond)
		}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- v.Run(ctx) }()
		time.Sleep(time.Second)
		var clients sync.WaitGroup
		for generation := range 60 {
			kid := fmt.Sprintf("g%d", generation)
			a.publish(jose.JSONWebKey{Key: key(generation % 2).Public(), KeyID: kid})
			tok := fresh(t, generation%2, kid)
			for range 20 {
				clients.Go(func() {
					began := time.Now()
					if _, err := v.Authenticate(ctx, tok); err != nil {
						t.Errorf("%s: %v", kid, err)
					}
					if took := time.Since(began); took > demandGap+time.Second {
						t.Errorf("%s took %s", kid, took)
					}
				})
			}
			clients.Wait() // a key that is gone doesn't have to work
			// From no time at all to a while, so that a fetch is under way, just
			// ended, or long ago; and now and then the background's is near.
			time.Sleep(time.Duration(generation%7) * 30 * time.Millisecond)
			if generation%10 == 9 {
				time.Sleep(v.keys[0].exact.refreshIn() - 50*time.Millisecond)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestRotationDuringAFetch: the fetch that is under way read the keys before
// the new one was there; the token is not refused by what it brings.
func TestRotationDuringAFetch(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, w, a := clocked(t)
		w.serve("issuer.example", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			a.ServeHTTP(rw, r)
			time.Sleep(100 * time.Millisecond) // the answer is on its way
		}))
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		var wg sync.WaitGroup
		wg.Go(func() { wantFault(t, v, "a made-up kid", fresh(t, 0, "made up"), fault.TokenSignature) })
		time.Sleep(gather + 50*time.Millisecond)
		a.publish(jose.JSONWebKey{Key: key(1).Public(), KeyID: "k1"})
		wg.Go(func() {
			if _, err := v.Authenticate(t.Context(), fresh(t, 1, "k1")); err != nil {
				t.Errorf("the new key: %v", err)
			}
		})
		wg.Wait()
	})
}

// TestWaitingIsBounded: of a flood of unknown keys right after a fetch, few
// wait for the next, and the others are told when to come back.
func TestWaitingIsBounded(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, w, _ := clocked(t)
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(demandGap / 2)
		before := w.count()
		tok := fresh(t, 0, "made up")
		var refused, later atomic.Int32
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				e := wantFault(t, v, "flood", tok, fault.TokenSignature, fault.IssuerUnavailable)
				if e.Reason == fault.TokenSignature {
					refused.Add(1)
				} else if later.Add(1); e.RetryAfter < time.Second {
					t.Errorf("retry after %s", e.RetryAfter)
				}
			})
		}
		wg.Wait()
		const most = defaultRequests / partOfIssuer
		if refused.Load() != most || later.Load() != 1000-most || w.count() != before+1 {
			t.Errorf("%d refused, %d told to come back, %d requests", refused.Load(), later.Load(), w.count()-before)
		}
	})
}

// TestFailingIssuerIsAskedLessOften: an issuer that is down is asked ever less often.
func TestFailingIssuerIsAskedLessOften(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, w, a := clocked(t)
		a.setDown(true)
		tok := fresh(t, 0, "k0")
		for range 600 { // a minute
			wantFault(t, v, "down", tok, fault.IssuerUnavailable)
			time.Sleep(100 * time.Millisecond)
		}
		if n := w.count(); n < 6 || n > 10 {
			t.Errorf("%d requests in a minute", n)
		}
		a.setDown(false)
		time.Sleep(failureGap)
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Error(err)
		}
	})
}
