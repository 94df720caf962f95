package oidc

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestCacheControlWithinBounds(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]time.Duration{
		"":                                defaultFresh,
		"public":                          defaultFresh,
		"max-age=900":                     15 * time.Minute,
		"public, max-age=900, immutable":  15 * time.Minute,
		"Max-Age=900":                     15 * time.Minute,
		`max-age="900"`:                   15 * time.Minute,
		"max-age=1":                       minFresh,
		"max-age=0":                       minFresh,
		"max-age=86400":                   maxFresh,
		"max-age=99999999999999999999999": maxFresh,
		"max-age=-1":                      minFresh,
		"max-age":                         minFresh,
		"max-age=x":                       minFresh,
		"no-store":                        minFresh,
		"max-age=900, no-cache":           minFresh,
		"s-maxage=1":                      defaultFresh,
	} {
		if got := freshFor(http.Header{"Cache-Control": {header}}); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
	for age, want := range map[string]time.Duration{"300": 10 * time.Minute, "900": minFresh, "-1": 15 * time.Minute, "x": 15 * time.Minute} {
		if got := freshFor(http.Header{"Cache-Control": {"max-age=900"}, "Age": {age}}); got != want {
			t.Errorf("age %q: %s, want %s", age, got, want)
		}
	}
}

func FuzzCacheControl(f *testing.F) {
	f.Add("max-age=600", "3")
	f.Add(`private, max-age="1", no-store`, "")
	f.Fuzz(func(t *testing.T, control, age string) {
		got := freshFor(http.Header{"Cache-Control": {control}, "Age": {age}})
		if got < minFresh || got > maxFresh {
			t.Fatal(got)
		}
	})
}

// TestCacheControlSetsThePace: keys are fetched again when the issuer says so,
// within the bounds, by the background and by tokens alone.
func TestCacheControlSetsThePace(t *testing.T) {
	t.Parallel()
	rsaKeys()
	for header, want := range map[string]time.Duration{"max-age=120": 2 * time.Minute, "no-store": minFresh, "max-age=1000000": maxFresh} {
		synctest.Test(t, func(t *testing.T) {
			v, w, a := clocked(t)
			w.serve("issuer.example", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Cache-Control", header)
				a.ServeHTTP(rw, r)
			}))
			if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
				t.Fatal(err)
			}
			a.publish(jose.JSONWebKey{Key: key(1).Public(), KeyID: "k1"})
			before := w.count()
			time.Sleep(want - time.Second)
			if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil || w.count() != before {
				t.Errorf("%s, a second early: %v, %d requests", header, err, w.count()-before)
			}
			time.Sleep(time.Second)
			_, _ = v.Authenticate(t.Context(), fresh(t, 0, "k0")) // serves, and causes a refresh
			synctest.Wait()
			wantFault(t, v, header+": the removed key", fresh(t, 0, "k0"), fault.TokenSignature)
		})
	}
}

func TestKeysMayBeWhereTheConfigurationSays(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Config)
		jwks   string // what discovery says; empty for the issuer's own
		want   string // "" for success, or the cause
		asked  int
	}{
		"own host":                      {func(*Config) {}, "", "", 2},
		"own host, port written out":    {func(*Config) {}, "https://issuer.example:443/keys", "", 2},
		"own host, upper case":          {func(*Config) {}, "https://ISSUER.example/keys", "", 2},
		"another host":                  {func(*Config) {}, "https://keys.example/keys", "jwks_hosts", 1},
		"another port":                  {func(*Config) {}, "https://issuer.example:8443/keys", "jwks_hosts", 1},
		"a host under ours":             {func(*Config) {}, "https://a.issuer.example/keys", "jwks_hosts", 1},
		"listed":                        {func(c *Config) { c.JWKSHosts = []string{"keys.example"} }, "https://keys.example/keys", "", 2},
		"listed, with the default port": {func(c *Config) { c.JWKSHosts = []string{"keys.example:443"} }, "https://keys.example/keys", "", 2},
		"listed, on another port":       {func(c *Config) { c.JWKSHosts = []string{"keys.example:8443"} }, "https://keys.example/keys", "jwks_hosts", 1},
		"configured":                    {func(c *Config) { c.JWKSURL = "https://keys.example/keys" }, "", "", 1},
		"Google's own":                  {func(c *Config) { c.URL = "https://accounts.google.com" }, "https://www.googleapis.com/oauth2/v3/keys", "", 2},
	} {
		config := ordinary()
		c.change(&config)
		w := new(world)
		host := strings.TrimPrefix(config.URL, "https://")
		a := found(w, config.URL, host)
		for _, other := range []string{"issuer.example:443", "ISSUER.example", "keys.example", "www.googleapis.com"} {
			w.serve(other, a)
		}
		if c.jwks != "" {
			w.serve(host, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/keys") {
					a.ServeHTTP(rw, r)
					return
				}
				_, _ = fmt.Fprintf(rw, `{"issuer":%q,"jwks_uri":%q}`, config.URL, c.jwks)
			}))
		}
		v, err := newVerifier([]Config{config}, Options{Now: atMoment, Transport: w})
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Authenticate(t.Context(), token(t, map[string]any{"iss": config.URL}))
		if c.want == "" && err != nil {
			t.Errorf("%s: %v", name, fault.From(err).Cause)
		}
		if c.want != "" && (err == nil || !strings.Contains(fault.From(err).Cause.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
		if w.count() != c.asked {
			t.Errorf("%s: %d requests, want %d", name, w.count(), c.asked)
		}
	}
}

// TestDiscoveryIsAskedAgain now and then, and when the keys are no longer there.
func TestDiscoveryIsAskedAgain(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		w := new(world)
		found(w, "https://issuer.example", "issuer.example")
		f, err := newFetcher(new(Config), w)
		if err != nil {
			t.Fatal(err)
		}
		r := (&Keys{fetcher: f, options: Options{Now: time.Now}}).server("https://issuer.example")
		fetch := func(name string, requests int, fails bool) {
			t.Helper()
			before := w.count()
			if _, err := r.fetch(t.Context()); (err != nil) != fails || w.count() != before+requests {
				t.Errorf("%s: %v, %d requests", name, err, w.count()-before)
			}
		}
		fetch("first", 2, false)
		fetch("soon after", 1, false)
		time.Sleep(rediscoverAfter)
		fetch("an hour later", 2, false)
		r.url = "https://issuer.example/moved/keys-that-are-gone"
		w.serve("issuer.example", http.NotFoundHandler())
		fetch("the keys are gone", 1, true)
		found(w, "https://issuer.example", "issuer.example")
		fetch("after that", 2, false)
	})
}

func TestKeysInAFile(t *testing.T) {
	t.Parallel()
	rsaKeys()
	set := func(i int, kid string) string {
		return encode(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key(i).Public(), KeyID: kid}}})
	}
	path := setting.Path(filepath.Join(t.TempDir(), "jwks.json"))
	config := ordinary()
	config.JWKSFile = path
	for name, content := range map[string]string{"missing": "", "no JSON": "x", "no keys": `{"keys":[]}`, "too long": set(0, "k0") + strings.Repeat(" ", maxBody)} {
		if content != "" {
			write(t, path, content)
		}
		if _, err := newVerifier([]Config{config}, Options{}); err == nil || !strings.Contains(err.Error(), "https://issuer.example") {
			t.Errorf("%s: %v", name, err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		write(t, path, set(0, "k0"))
		w := new(world)
		v, err := newVerifier([]Config{config}, Options{Transport: w})
		if err != nil {
			t.Fatal(err)
		}
		if s := v.Status()[0]; !s.Ready || s.Err != nil {
			t.Errorf("ready at once: %+v", s)
		}
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Error(err)
		}
		write(t, path, set(1, "k1"))
		if _, err := v.Authenticate(t.Context(), fresh(t, 1, "k1")); err != nil {
			t.Errorf("a key that was added: %v", err)
		}
		wantFault(t, v, "a key that was taken out", fresh(t, 0, "k0"), fault.TokenSignature)
		write(t, path, set(0, "k0"))
		time.Sleep(fileFresh)
		_, _ = v.Authenticate(t.Context(), fresh(t, 1, "k1"))
		synctest.Wait()
		wantFault(t, v, "taken out, and nobody asked for another", fresh(t, 1, "k1"), fault.TokenSignature)
		if err := os.Remove(string(path)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(defaultKeysAge - time.Second)
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Errorf("the file is gone: %v", err)
		}
		synctest.Wait()
		if s := v.Status()[0]; s.Err == nil {
			t.Error("the status doesn't say so")
		}
		time.Sleep(time.Minute)
		wantFault(t, v, "gone for too long", fresh(t, 0, "k0"), fault.IssuerUnavailable)
		if w.count() != 0 {
			t.Errorf("%d requests", w.count())
		}
	})
}

func TestMaxKeysAge(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		c := ordinary()
		c.MaxKeysAge = time.Hour
		v, _, a := clocked(t, c)
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Fatal(err)
		}
		a.setDown(true)
		time.Sleep(time.Hour - time.Second)
		if _, err := v.Authenticate(t.Context(), fresh(t, 0, "k0")); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		wantFault(t, v, "too old", fresh(t, 0, "k0"), fault.IssuerUnavailable)
	})
}

// TestShortMaxKeysAgeLeavesNoGap: keys that may serve for less long than their
// issuer says are fetched again before they are too old.
func TestShortMaxKeysAgeLeavesNoGap(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		c := ordinary()
		c.MaxKeysAge = leastKeysAge
		v, _, _ := clocked(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- v.Run(ctx) }()
		for range 120 {
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if s := v.Status()[0]; !s.Ready {
				t.Fatalf("no keys: %+v", s)
			}
		}
		cancel()
		<-done
	})
}

// TestIssuersOfAPatternHaveSmallAnswers: there may be many of them.
func TestIssuersOfAPatternHaveSmallAnswers(t *testing.T) {
	t.Parallel()
	const member = "https://one.family.example.com"
	for _, c := range []struct {
		config Config
		size   int
		taken  bool
	}{
		{Config{URL: member}, maxMemberBody + 1000, true},
		{Config{Pattern: "https://*.family.example.com"}, maxMemberBody + 1000, false},
		{Config{Pattern: "https://*.family.example.com"}, maxMemberBody - 1000, true},
	} {
		w := new(world)
		a := found(w, member, "one.family.example.com")
		w.serve("one.family.example.com", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			a.ServeHTTP(rw, r)
			if r.URL.Path == "/keys" {
				_, _ = rw.Write([]byte(strings.Repeat(" ", c.size-1000)))
			}
		}))
		v, err := newVerifier([]Config{c.config}, Options{Now: atMoment, Transport: w})
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Authenticate(t.Context(), token(t, map[string]any{"iss": member}))
		if (err == nil) != c.taken {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestHangingMemberDoesNotStopTheOthersRenewal in the background.
func TestHangingMemberDoesNotStopTheOthersRenewal(t *testing.T) {
	t.Parallel()
	rsaKeys()
	synctest.Test(t, func(t *testing.T) {
		v, w, _ := clocked(t, Config{Pattern: "https://*.family.example.com"})
		hangs := make(map[string]*authority)
		for i := range 30 {
			host := fmt.Sprintf("m%d.family.example.com", i)
			hangs[host] = found(w, "https://"+host, host)
			from := WithClient(t.Context(), clientOfNetwork(i))
			if _, err := v.Authenticate(from, issued(t, "https://"+host)); err != nil {
				t.Fatal(err)
			}
		}
		for host := range hangs {
			if host != "m0.family.example.com" {
				w.serve(host, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- v.Run(ctx) }()
		time.Sleep(defaultFresh + time.Minute)
		c := v.keys[0].pattern.caches["https://m0.family.example.com"]
		if age := time.Since(c.keys.Load().fetched); age > 3*time.Minute {
			t.Errorf("keys are %s old", age)
		}
		cancel()
		<-done
		time.Sleep(fetchTimeout)
	})
}
