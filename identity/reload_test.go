package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// network is a transport that a test can replace.
type network struct{ http.RoundTripper }

func reloadable(t *testing.T, w http.RoundTripper, issuers ...IssuerConfig) (*Verifier, *network) {
	t.Helper()
	n := &network{w}
	v, err := NewVerifier(issuers, Options{Now: atMoment, Transport: n})
	if err != nil {
		t.Fatal(err)
	}
	return v, n
}

func reload(t *testing.T, v *Verifier, issuers ...IssuerConfig) {
	t.Helper()
	commit, err := v.Prepare(issuers, nil)
	if err != nil {
		t.Fatal(err)
	}
	commit()
}

// broken answers nothing: a verifier that asks it for keys has lost its own.
var broken = roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New("asked") })

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestReloadKeepsKeys(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	v, n := reloadable(t, w, emailIssuer())
	if _, err := v.Authenticate(t.Context(), token(t, nil)); err != nil {
		t.Fatal(err)
	}
	claims := emailIssuer()
	claims.Audiences = append([]string{"another"}, claims.Audiences...)
	claims.MaxTokenLifetime = time.Hour * 23
	n.RoundTripper = broken
	reload(t, v, claims)
	if _, err := v.Authenticate(t.Context(), token(t, nil)); err != nil {
		t.Errorf("the keys were lost: %v", err)
	}
	if got := v.Issuers()[0].Audiences[0]; got != "another" {
		t.Errorf("the audience is %s: the old configuration is in force", got)
	}
	elsewhere := claims
	elsewhere.JWKSHosts = []string{"keys.example"}
	reload(t, v, elsewhere)
	if _, err := v.Authenticate(t.Context(), token(t, nil)); err == nil {
		t.Error("an issuer that is fetched in another way kept its keys")
	}
}

func TestPrepareLeavesTheOldInForce(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	v, _ := reloadable(t, w, emailIssuer())
	if _, err := v.Prepare(nil, nil); err == nil {
		t.Error("no issuers at all were taken")
	}
	other := emailIssuer()
	other.URL = "https://other.example"
	if _, err := v.Prepare([]IssuerConfig{other}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Authenticate(t.Context(), token(t, nil)); err != nil {
		t.Error(err)
	}
}

// A one-time token stays used, whatever is reloaded.
func TestReloadKeepsUsedTokens(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	once := emailIssuer()
	once.OneTime = true
	v, _ := reloadable(t, w, once)
	used := token(t, nil)
	if _, err := v.Authenticate(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	reload(t, v, once)
	if _, err := v.Authenticate(t.Context(), used); err == nil {
		t.Error("a token was accepted twice")
	}
}

// The status, and so the metrics, are those of the verifier in force.
func TestReloadMovesStatus(t *testing.T) {
	t.Parallel()
	w := new(world)
	r := prometheus.NewPedanticRegistry()
	v, err := NewVerifier([]IssuerConfig{emailIssuer()}, Options{Now: atMoment, Transport: w, Metrics: r})
	if err != nil {
		t.Fatal(err)
	}
	other := emailIssuer()
	other.URL = "https://other.example"
	reload(t, v, emailIssuer(), other)
	if n := len(v.Status()); n != 2 {
		t.Errorf("%d issuers", n)
	}
	if _, err := r.Gather(); err != nil {
		t.Error(err)
	}
	machines := emailIssuer() // of the first issuer too: it has one status, whichever entry is new
	machines.Type, machines.SubjectDomain, machines.Audiences = TypeUsername, "example.com", []string{"machines"}
	reload(t, v, machines, emailIssuer())
	if n := len(v.Status()); n != 1 {
		t.Errorf("one issuer stands in the status %d times", n)
	}
	if _, err := r.Gather(); err != nil {
		t.Error(err)
	}
}

// Run goes with the verifier in force: what stays isn't fetched again, what is
// new is fetched, and what is gone isn't asked any more.
func TestRunFollowsReload(t *testing.T) {
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
		pattern := emailIssuer()
		pattern.URL, pattern.Pattern = "", "https://*.family.example"
		v, _ := reloadable(t, counted, entry("a.example"), entry("b.example"), pattern)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- v.Run(ctx) }()
		synctest.Wait()
		before := count("a.example")
		if before == 0 || count("b.example") == 0 {
			t.Fatalf("asked %v", asked)
		}
		reload(t, v, entry("a.example"), entry("c.example"), pattern)
		synctest.Wait()
		if count("a.example") != before || count("c.example") == 0 {
			t.Errorf("asked %v", asked)
		}
		gone := count("b.example")
		time.Sleep(24 * time.Hour) // the bubble's clock; keys are asked for again within it
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
// that is new belongs into keys or into the list here.
func TestEverySettingIsAboutKeysOrClaims(t *testing.T) {
	t.Parallel()
	claims := []string{
		"Aliases", "Audiences", "Allow", "Lifetime", "MaxLifetime", "Profiles", "Type", "SubjectDomain", "SPIFFETrustDomain", "ChallengeClaim",
		"SkipEmailVerification", "IssuerClaim", "Preset", "InlinePreset", "PresetConstants", "Algorithms", "MaxTokenLifetime", "MaxTokenAge",
		"AuthorizedParties", "OneTime", "Leeway",
	}
	all := reflect.TypeFor[IssuerConfig]()
	for i := range all.NumField() {
		var c IssuerConfig
		field := reflect.ValueOf(&c).Elem().Field(i)
		switch field.Kind() {
		case reflect.String:
			field.SetString("x")
		case reflect.Bool:
			field.SetBool(true)
		case reflect.Slice:
			field.Set(reflect.MakeSlice(field.Type(), 1, 1))
		case reflect.Map:
			field.Set(reflect.MakeMap(field.Type()))
		case reflect.Pointer:
			field.Set(reflect.New(field.Type().Elem()))
		case reflect.Int, reflect.Int64:
			field.SetInt(1)
		default:
			t.Fatalf("%s is of a kind that this test doesn't know", all.Field(i).Name)
		}
		aboutKeys := !reflect.ValueOf(c.keys()).IsZero()
		if name := all.Field(i).Name; aboutKeys == slices.Contains(claims, name) {
			t.Errorf("%s is about keys: %v", name, aboutKeys)
		}
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	w := new(world)
	found(w, "https://issuer.example", "issuer.example")
	down := emailIssuer()
	down.URL = "https://down.example"
	pattern := emailIssuer()
	pattern.URL, pattern.Pattern = "", "https://*.family.example"
	v, err := NewVerifier([]IssuerConfig{emailIssuer(), pattern, down}, Options{Now: atMoment, Transport: w})
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
