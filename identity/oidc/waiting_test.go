package oidc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestHangingIssuerLeavesRoomForOthers: tokens of an issuer that hangs, signed by
// anybody, wait in each phase of a fetch, and never more than its share of them.
func TestHangingIssuerLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	rsaKeys()
	for name, hangs := range map[string]string{
		"discovery": "/.well-known/openid-configuration", "keys": "/keys", "a key that isn't known": "",
	} {
		synctest.Test(t, func(t *testing.T) {
			other := Config{URL: "https://other.example"}
			v, w, a := clocked(t, ordinary(), other)
			found(w, other.URL, "other.example")
			if hangs == "" { // the first fetch is done before it hangs
				if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				hangs = "/keys"
			}
			w.serve("issuer.example", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == hangs {
					<-r.Context().Done()
				}
				a.ServeHTTP(rw, r)
			}))
			waiting, refused := floodOf(t, v, func(int) (context.Context, string) { return t.Context(), fresh(t, 1, "made up") })
			if waiting != defaultRequests/partOfIssuer || refused != floodSize-waiting {
				t.Errorf("%s: %d wait, %d are refused", name, waiting, refused)
			}
			began := time.Now()
			if _, err := v.Authenticate(t.Context(), issued(t, other.URL)); err != nil || time.Since(began) > 0 {
				t.Errorf("%s: a healthy issuer, cold: %v after %s", name, err, time.Since(began))
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := len(v.keys[0].exact.Places.taken); n != 0 {
				t.Errorf("%s: %d places stay taken", name, n)
			}
		})
	}
}

const floodSize = 300

// floodOf has tokens authenticated, and tells how many wait and how many are told
// at once to come back. Those that wait end with the test.
func floodOf(t *testing.T, v *verifier, token func(n int) (context.Context, string)) (waiting, refused int) {
	t.Helper()
	var done, come atomic.Int64
	for n := range floodSize {
		ctx, tok := token(n)
		go func() {
			defer done.Add(1)
			_, err := v.Authenticate(ctx, tok)
			if e := fault.From(err); e.Reason == fault.IssuerUnavailable && e.RetryAfter > 0 && strings.Contains(e.Public, "too many") {
				come.Add(1)
			}
		}()
	}
	time.Sleep(gather / 2)
	synctest.Wait()
	return floodSize - int(done.Load()), int(come.Load())
}

// issued is a good token of now by an issuer.
func issued(t *testing.T, issuer string) string {
	t.Helper()
	now := time.Now()
	return sign(t, key(0), plainHeader, encode(t, claims(map[string]any{"iss": issuer, "iat": now.Unix(), "nbf": nil, "exp": now.Add(time.Hour).Unix()})))
}

// TestHangingMembersOfAPatternLeaveRoom: a client that has tokens wait for ever other
// members of a pattern takes its own share, all clients take the pattern's, and a
// member that verified a token has one of its own.
func TestHangingMembersOfAPatternLeaveRoom(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, w, _ := clocked(t, Config{Pattern: "https://*.family.example.com"})
		const honest, late = "https://honest.family.example.com", "https://late.family.example.com"
		found(w, honest, "honest.family.example.com")
		found(w, late, "late.family.example.com")
		hang := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		for i := range 10 {
			w.serve(fmt.Sprintf("h%d.family.example.com", i), hang)
		}
		attacker := WithClient(t.Context(), clientOfNetwork(0))
		if _, err := v.Authenticate(attacker, issued(t, honest)); err != nil {
			t.Fatal(err)
		}
		tokens := make([]string, 10)
		for i := range tokens {
			tokens[i] = issued(t, fmt.Sprintf("https://h%d.family.example.com", i))
		}
		waiting, refused := floodOf(t, v, func(n int) (context.Context, string) { return attacker, tokens[n%10] })
		if waiting != defaultRequests/partOfClient || refused != floodSize-waiting {
			t.Errorf("of one client %d wait, %d are refused", waiting, refused)
		}
		if _, err := v.Authenticate(WithClient(t.Context(), clientOfNetwork(1)), issued(t, late)); err != nil {
			t.Errorf("a new member, of another client: %v", err)
		}
		waiting, _ = floodOf(t, v, func(n int) (context.Context, string) {
			return WithClient(t.Context(), clientOfNetwork(2+n)), tokens[n%10]
		})
		if waiting != defaultRequests/partOfIssuer-defaultRequests/partOfClient {
			t.Errorf("of many clients %d more wait", waiting)
		}
		time.Sleep(demandGap)
		now := time.Now()
		_, err := v.Authenticate(attacker, sign(t, key(1), `{"alg":"RS256","kid":"new"}`, encode(t, claims(map[string]any{"iss": honest, "iat": nil, "nbf": nil, "exp": now.Add(time.Hour).Unix()}))))
		if e := fault.From(err); e == nil || e.Reason != fault.TokenSignature {
			t.Errorf("a key that isn't known, of a member that verified a token: %v", err)
		}
		time.Sleep(time.Minute)
	})
}

// TestPlacesFollowTheRequests: the shares are parts of what the CA serves at once,
// and never nothing.
func TestPlacesFollowTheRequests(t *testing.T) {
	t.Parallel()
	p := NewPlaces(1)
	a, b := []share{{nil, partOfAll}, {"a", partOfIssuer}}, []share{{nil, partOfAll}, {"b", partOfIssuer}}
	if !p.take(a) || p.take(b) {
		t.Error("of one request")
	}
	p.Resize(8)
	var wg sync.WaitGroup
	var taken atomic.Int64
	for range 100 {
		wg.Go(func() {
			for _, s := range [][]share{a, b} {
				if p.take(s) {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if taken.Load() != 3 { // two of each, and one was taken before
		t.Errorf("%d were taken", taken.Load())
	}
	for range 2 {
		p.leave(a)
		p.leave(b)
	}
	if len(p.taken) != 0 {
		t.Errorf("%v is still taken", p.taken)
	}
}

// TestWaitingEndsWithItsPlace, whether the request ends or the fetch fails.
func TestWaitingEndsWithItsPlace(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, w, _ := clocked(t)
		w.serve("issuer.example", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := v.Authenticate(ctx, fresh(t, 0, "k0")); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if n := len(v.keys[0].exact.Places.taken); n != 0 {
			t.Errorf("%d places stay taken", n)
		}
		time.Sleep(fetchTimeout)
	})
}
