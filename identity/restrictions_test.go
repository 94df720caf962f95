package identity

import (
	"context"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

func TestAuthorizedPartyIsChecked(t *testing.T) {
	t.Parallel()
	several := []string{"sigstore", "other"}
	for _, c := range []struct {
		parties []string
		aud     any
		azp     any
		want    fault.Reason // "" for accepted
	}{
		{nil, "sigstore", nil, ""},
		{nil, "sigstore", "client", ""}, // one audience is unmistakable
		{nil, several, nil, ""},
		{nil, several, "sigstore", ""},
		{nil, several, "other", fault.TokenAudience},
		{nil, several, "Sigstore", fault.TokenAudience},
		{nil, several, "", fault.TokenAudience},
		{nil, several, 1, fault.TokenMalformed},
		{nil, several, []string{"sigstore"}, fault.TokenMalformed},
		{[]string{"client"}, several, "client", ""},
		{[]string{"client"}, several, "sigstore", ""},
		{[]string{"client"}, several, "other", fault.TokenAudience},
		{[]string{"client"}, several, nil, fault.TokenAudience},
		{[]string{"client"}, "sigstore", nil, ""},
		{[]string{"client"}, "sigstore", "client", ""},
		{[]string{"client"}, "sigstore", "other", fault.TokenAudience},
	} {
		config := emailIssuer()
		config.AuthorizedParties = c.parties
		v, w, _ := verifier(t, config)
		name := fmt.Sprintf("%v %v %v", c.parties, c.aud, c.azp)
		tok := token(t, map[string]any{"aud": c.aud, "azp": c.azp})
		if c.want != "" {
			wantFault(t, v, name, tok, c.want)
			if w.count() != 0 {
				t.Errorf("%s: %d requests", name, w.count())
			}
			continue
		}
		if _, err := v.Authenticate(t.Context(), tok); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTokensThatAreTooOldAreRefused(t *testing.T) {
	t.Parallel()
	config := emailIssuer()
	config.MaxTokenAge = 5 * time.Minute
	v, w, _ := verifier(t, config)
	issued := func(ago time.Duration) string {
		return token(t, map[string]any{"iat": moment.Add(-ago).Unix(), "nbf": nil})
	}
	wantFault(t, v, "a second too old", issued(6*time.Minute+time.Second), fault.TokenExpired)
	wantFault(t, v, "no iat", token(t, map[string]any{"iat": nil}), fault.TokenMalformed)
	if w.count() != 0 {
		t.Errorf("%d requests", w.count())
	}
	if _, err := v.Authenticate(t.Context(), issued(6*time.Minute)); err != nil {
		t.Errorf("the age and the leeway: %v", err)
	}
}

func TestOneTime(t *testing.T) {
	t.Parallel()
	once, often := emailIssuer(), emailIssuer()
	once.OneTime, often.URL = true, "https://often.example"
	v, w, a := verifier(t, once, often)
	found(w, often.URL, "often.example")
	good := token(t, nil)

	// A token that was refused was not used.
	wantFault(t, v, "forged", sign(t, key(1), plainHeader, encode(t, claims(nil))), fault.TokenSignature)
	wantFault(t, v, "unverified", token(t, map[string]any{"email_verified": false, "jti": "a"}), fault.EmailUnverified)
	var accepted atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			_, err := v.Authenticate(t.Context(), good)
			if err == nil {
				accepted.Add(1)
			} else if e := fault.From(err); e.Reason != fault.TokenReplayed || e.Kind() != fault.Unauthenticated {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if accepted.Load() != 1 {
		t.Errorf("accepted %d times", accepted.Load())
	}
	// jti is what counts, where there is one.
	for jti, want := range map[string]bool{"a": true, "b": true} {
		if _, err := v.Authenticate(t.Context(), token(t, map[string]any{"jti": jti})); (err == nil) != want {
			t.Errorf("jti %s: %v", jti, err)
		}
	}
	wantFault(t, v, "another token with a used jti", token(t, map[string]any{"jti": "a", "email": "bob@example.com"}), fault.TokenReplayed)
	for range 3 {
		if _, err := v.Authenticate(t.Context(), token(t, map[string]any{"iss": often.URL, "jti": "a"})); err != nil {
			t.Errorf("an issuer without one_time: %v", err)
		}
	}

	// Another signature over the same token is the same token: (r, n − s) is as
	// good an ECDSA signature as (r, s), and anybody can make it.
	ec := ecKey(t)
	a.publish(jose.JSONWebKey{Key: ec.Public(), KeyID: "ec"})
	fresh, _, b := verifier(t, once)
	b.publish(jose.JSONWebKey{Key: ec.Public(), KeyID: "ec"})
	tok := ecSign(t, ec, `{"alg":"ES256","kid":"ec"}`, encode(t, claims(nil)))
	dot := strings.LastIndexByte(tok, '.')
	sig, err := base64.RawURLEncoding.DecodeString(tok[dot+1:])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(sig[32:]))
	s.FillBytes(sig[32:])
	if _, err := fresh.Authenticate(t.Context(), tok); err != nil {
		t.Fatal(err)
	}
	wantFault(t, fresh, "the other signature", tok[:dot+1]+base64.RawURLEncoding.EncodeToString(sig), fault.TokenReplayed)
}

// later is a clock that a test moves.
func later() (now func() time.Time, move func(time.Duration)) {
	var offset atomic.Int64
	return func() time.Time { return moment.Add(time.Duration(offset.Load())) }, func(d time.Duration) { offset.Add(int64(d)) }
}

func TestMemoryReplay(t *testing.T) {
	t.Parallel()
	now, move := later()
	m := newMemory(now, 6) // of which one issuer has three
	alone := owner{"https://issuer.example", "https://issuer.example"}
	use := func(name string, id byte, until time.Duration, first bool) {
		t.Helper()
		got, err := m.use(alone, [sha256.Size]byte{id}, now().Add(until))
		if err != nil || got != first {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	use("one", 1, time.Minute, true)
	use("one again", 1, time.Hour, false)
	use("two", 2, time.Hour, true)
	use("three", 3, 2*time.Minute, true)
	if _, err := m.use(alone, [sha256.Size]byte{4}, now().Add(time.Minute)); fault.From(err).Reason != fault.Overloaded || fault.From(err).RetryAfter != time.Minute {
		t.Errorf("full: %v", err)
	}
	use("two, when it is full", 2, time.Hour, false)
	move(time.Minute)
	if _, err := m.use(alone, [sha256.Size]byte{4}, now()); err == nil {
		t.Error("forgotten at the very end")
	}
	move(time.Second)
	use("four, since one has ended", 4, time.Minute, true)
	use("three is still known", 3, time.Minute, false)
	if len(m.used) != 3 || len(m.ends) != 3 || m.count[alone.entry] != 3 {
		t.Errorf("%d, %d and %d are remembered", len(m.used), len(m.ends), m.count[alone.entry])
	}
}

// TestOneIssuerCannotFillTheMemoryOfUsedTokens: whoever gives out tokens without
// end fills a share, by entry and within a pattern by issuer, and no other's.
func TestOneIssuerCannotFillTheMemoryOfUsedTokens(t *testing.T) {
	t.Parallel()
	now, move := later()
	const most = 1200
	m := newMemory(now, most)
	var next uint32
	fill := func(of owner) (n int) {
		t.Helper()
		for ; ; n++ {
			next++
			switch _, err := m.use(of, [sha256.Size]byte{byte(next >> 16), byte(next >> 8), byte(next)}, now().Add(time.Minute)); {
			case err == nil:
			case fault.From(err).Reason == fault.Overloaded:
				return n
			default:
				t.Fatal(err)
			}
		}
	}
	flooder := owner{"https://flood.example", "https://flood.example"}
	if n := fill(flooder); n != most/2 {
		t.Errorf("one issuer has %d of %d", n, most)
	}
	const pattern = "https://*.example.com"
	for tenant, least := range []int{most / 10, most / 20, most / 60} {
		if n := fill(owner{pattern, fmt.Sprintf("https://t%d.example.com", tenant)}); n < least {
			t.Errorf("tenant %d of a pattern has %d, want %d", tenant, n, least)
		}
	}
	if n := fill(owner{"https://honest.example", "https://honest.example"}); n < most/10 {
		t.Errorf("an issuer beside all of them has %d", n)
	}
	move(2 * time.Minute)
	if n := fill(flooder); n != most/2 || len(m.count) != 1 {
		t.Errorf("after they have ended: %d, of %d owners", n, len(m.count))
	}
}

type brokenReplay struct{ err error }

func (b brokenReplay) Use(context.Context, [sha256.Size]byte, time.Time) (bool, error) {
	return true, b.err
}

// TestReplayFailsClosed: what can't be known is refused, and is not the client's fault.
func TestReplayFailsClosed(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	c := emailIssuer()
	c.OneTime = true
	v, err := NewVerifier([]IssuerConfig{c}, Options{Now: atMoment, Transport: w, Replay: brokenReplay{errors.New("the store is down")}})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := v.Authenticate(t.Context(), token(t, nil)); fault.From(err) == nil || fault.From(err).Kind() != fault.Internal || !p.IsZero() {
		t.Errorf("%v, %v", p, err)
	}
}
