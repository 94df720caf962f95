package identity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func newSuccession(t *testing.T, w http.RoundTripper, issuers ...IssuerConfig) *Succession {
	t.Helper()
	s, err := NewSuccession(issuers, Options{Now: atMoment, Transport: w})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func follow(t *testing.T, s *Succession, w http.RoundTripper, issuers ...IssuerConfig) {
	t.Helper()
	next, err := s.Prepare(issuers, Options{Now: atMoment, Transport: w})
	if err != nil {
		t.Fatal(err)
	}
	s.Follow(next)
}

// broken answers nothing: a verifier that asks it for keys has lost its own.
var broken = roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New("asked") })

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestFollowKeepsKeys(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	s := newSuccession(t, w, emailIssuer())
	if _, err := s.Authenticate(t.Context(), token(t, nil)); err != nil {
		t.Fatal(err)
	}
	claims := emailIssuer()
	claims.Audiences = append([]string{"another"}, claims.Audiences...)
	claims.MaxTokenLifetime = time.Hour * 23
	follow(t, s, broken, claims)
	if _, err := s.Authenticate(t.Context(), token(t, nil)); err != nil {
		t.Errorf("the keys were lost: %v", err)
	}
	if got := s.Issuers()[0].Audience; got != "another" {
		t.Errorf("the audience is %s: the old configuration is in force", got)
	}
	elsewhere := claims
	elsewhere.JWKSHosts = []string{"keys.example"}
	follow(t, s, broken, elsewhere)
	if _, err := s.Authenticate(t.Context(), token(t, nil)); err == nil {
		t.Error("an issuer that is fetched in another way kept its keys")
	}
}

func TestPrepareLeavesTheOldInForce(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	s := newSuccession(t, w, emailIssuer())
	if _, err := s.Prepare(nil, Options{}); err == nil {
		t.Error("no issuers at all were taken")
	}
	other := emailIssuer()
	other.URL = "https://other.example"
	if _, err := s.Prepare([]IssuerConfig{other}, Options{Transport: w}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Authenticate(t.Context(), token(t, nil)); err != nil {
		t.Error(err)
	}
}

// A one-time token stays used, whatever is reloaded.
func TestFollowKeepsReplay(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	once := emailIssuer()
	once.OneTime = true
	s := newSuccession(t, w, once)
	used := token(t, nil)
	if _, err := s.Authenticate(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	follow(t, s, w, once)
	if _, err := s.Authenticate(t.Context(), used); err == nil {
		t.Error("a token was accepted twice")
	}
}

// The status, and so the metrics, are those of the verifier in force.
func TestFollowMovesStatus(t *testing.T) {
	t.Parallel()
	w := new(world)
	r := prometheus.NewPedanticRegistry()
	s, err := NewSuccession([]IssuerConfig{emailIssuer()}, Options{Now: atMoment, Transport: w, Metrics: r})
	if err != nil {
		t.Fatal(err)
	}
	other := emailIssuer()
	other.URL = "https://other.example"
	follow(t, s, w, emailIssuer(), other)
	if n := len(s.Status()); n != 2 {
		t.Errorf("%d issuers", n)
	}
	if _, err := r.Gather(); err != nil {
		t.Error(err)
	}
}

// Run goes with the verifier in force: what stays isn't fetched again, what is
// new is fetched, and what is gone isn't asked any more.
func TestSuccessionRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		asked := map[string]int{}
		count := func(host string) int {
			mu.Lock()
			defer mu.Unlock()
			return asked[host]
		}
		w := new(world)
		for _, host := range []string{"a.example", "b.example", "c.example"} {
			found(w, "https://"+host, host)
		}
		counted := roundTrip(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			asked[r.URL.Host]++
			mu.Unlock()
			return w.RoundTrip(r)
		})
		entry := func(host string) IssuerConfig {
			c := emailIssuer()
			c.URL = "https://" + host
			return c
		}
		family := emailIssuer()
		family.URL, family.Pattern = "", "https://*.family.example"
		s := newSuccession(t, counted, entry("a.example"), entry("b.example"), family)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		before := count("a.example")
		if before == 0 || count("b.example") == 0 {
			t.Fatalf("asked %v", asked)
		}
		follow(t, s, counted, entry("a.example"), entry("c.example"), family)
		synctest.Wait()
		if count("a.example") != before || count("c.example") == 0 {
			t.Errorf("asked %v", asked)
		}
		gone := count("b.example")
		time.Sleep(24 * time.Hour)
		if count("b.example") != gone {
			t.Errorf("b, which is gone, was asked %d times more", count("b.example")-gone)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Every setting of an issuer is known to be about its keys or about claims: one
// that is new belongs into this list or into fetching.
func TestFetchingKnowsEverySetting(t *testing.T) {
	t.Parallel()
	keys := []string{
		"URL", "Pattern", "Type" /* a label of the fetches' metric */, "CAFile", "AllowNetworks", "JWKSHosts", "JWKSURL", "JWKSFile",
		"BearerTokenFile", "MaxKeysAge", "AllowInsecureLoopback",
	}
	var full IssuerConfig
	v := reflect.ValueOf(&full).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		switch f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case reflect.Map:
			f.Set(reflect.MakeMap(f.Type()))
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		case reflect.Int, reflect.Int64:
			f.SetInt(1)
		case reflect.Float64:
			f.SetFloat(1)
		default:
			t.Fatalf("%s is of a kind that this test doesn't know", v.Type().Field(i).Name)
		}
	}
	left := reflect.ValueOf(fetching(full))
	for i := range left.NumField() {
		name := left.Type().Field(i).Name
		if kept := !left.Field(i).IsZero(); kept != slices.Contains(keys, name) {
			t.Errorf("%s: fetching keeps it: %v", name, kept)
		}
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	down := emailIssuer()
	down.URL = "https://down.example"
	family := emailIssuer()
	family.URL, family.Pattern = "", "https://*.family.example"
	v, err := NewVerifier([]IssuerConfig{emailIssuer(), family, down}, Options{Now: atMoment, Transport: w})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range v.Probe(t.Context()) {
		got = append(got, fmt.Sprint(s.Issuer, " ", s.Name, " ", s.Err == nil))
	}
	want := []string{"https://issuer.example discovery true", "https://issuer.example keys true", "https://down.example discovery false"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if s := v.Status()[0]; s.Ready {
		t.Error("a probe left its keys")
	}
}

func TestCategory(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"":                nil,
		"timeout":         fmt.Errorf("keys: %w", context.DeadlineExceeded),
		"name not found":  &net.OpError{Err: &net.DNSError{}},
		"no connection":   &net.OpError{Err: errors.New("refused")},
		"address refused": &net.OpError{Err: errAddress},
		"bad answer":      errors.New("keys: the issuer answered 500"),
	} {
		if got := (IssuerStatus{Err: err}).Category(); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
