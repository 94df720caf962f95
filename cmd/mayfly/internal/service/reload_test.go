package service

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// reloading is a rig whose configuration a test can replace.
type reloading struct {
	*rig
	hangup chan os.Signal
	ticks  chan time.Time
	file   string

	mu   sync.Mutex
	next func() (*config.Config, error)
}

func (r *reloading) load() (*config.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next()
}

// newReloading starts a service that is ready. Its file is watched, and what the
// file stands for is what offer says.
func newReloading(t *testing.T, edit func(*rig, *config.Config)) *reloading {
	t.Helper()
	r := &reloading{hangup: make(chan os.Signal), ticks: make(chan time.Time), file: filepath.Join(t.TempDir(), "mayfly.yaml")}
	r.write(t, "1")
	r.rig = startRigFrom(t, edit, Source{File: r.file, Load: r.load, Hangup: r.hangup, ticks: r.ticks})
	if err := r.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.offer(nil)
	return r
}

func (r *reloading) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// offer makes the configuration that is read from now on: the one that the
// service started with, edited.
func (r *reloading) offer(edit func(*config.Config)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = func() (*config.Config, error) {
		c := *r.started
		c.Issuers = slices.Clone(c.Issuers)
		if edit != nil {
			edit(&c)
		}
		return &c, nil
	}
}

// look lets the service look at its files n times.
func (r *reloading) look(n int) {
	for range n {
		r.ticks <- time.Now()
	}
}

// hup sends SIGHUP, and returns when it was taken up and dealt with.
func (r *reloading) hup() {
	r.hangup <- syscall.SIGHUP
	r.look(1) // taken only when the reload is over
}

func (r *reloading) outcomes(t *testing.T) (applied, refused float64) {
	t.Helper()
	return r.sum(t, "mayfly_config_reloads_total", map[string]string{"outcome": reloadApplied}),
		r.sum(t, "mayfly_config_reloads_total", map[string]string{"outcome": reloadRefused})
}

func (r *reloading) expect(t *testing.T, when string, applied, refused float64) {
	t.Helper()
	if a, d := r.outcomes(t); a != applied || d != refused {
		t.Fatalf("%s: %v applied, %v refused; want %v and %v", when, a, d, applied, refused)
	}
}

// TestHangupWithBadConfiguration: the old configuration stays in force whatever is wrong with
// the new one, and says so in metric, log and page.
func TestHangupWithBadConfiguration(t *testing.T) {
	t.Parallel()
	r := newReloading(t, nil)
	bad := map[string]struct {
		edit func(*config.Config)
		says string
	}{
		"no issuers":      {func(c *config.Config) { c.Issuers = nil }, "issuers: required"},
		"a bad issuer":    {func(c *config.Config) { c.Issuers[0].Audiences = nil }, "issuers[0].audiences: required"},
		"no key file":     {func(c *config.Config) { c.Issuers[0].JWKSFile = "missing.json" }, "missing.json"},
		"a bad limit":     {func(c *config.Config) { c.Server.RateLimits.PerAddress.Rate = -1 }, "server.rate_limits.per_address.rate"},
		"another key":     {func(c *config.Config) { c.CA.Authority.Key = "file:other.pem" }, "ca.authority.key: can't change while the service runs"},
		"another place":   {func(c *config.Config) { c.Server.HTTPAddress = "127.0.0.1:1" }, "server.http_address: can't change"},
		"another trail":   {func(c *config.Config) { c.Audit.Path = "elsewhere" }, "audit.path: can't change"},
		"two faults":      {func(c *config.Config) { c.Issuers[0].Type = "oracle"; c.Server.Limits.Issuances = -1 }, "server.limits.issuances"},
		"TLS all at once": {func(c *config.Config) { c.Server.TLS.CertFile, c.Server.TLS.KeyFile = "a", "b" }, "server.tls: can't be turned on"},
	}
	refused := 0.0
	for name, c := range bad {
		r.offer(c.edit)
		r.hup()
		refused++
		r.expect(t, name, 0, refused)
		if !strings.Contains(r.lines.String(), c.says) {
			t.Errorf("%s: no line of the log has %q", name, c.says)
		}
		if !strings.Contains(r.lines.String(), "the old one stays in force") {
			t.Errorf("%s: the log doesn't say what is in force", name)
		}
	}
	var code int
	var page string
	poll(t, "the page is not from before the first keys", func() bool {
		code, page = r.readiness(t)
		return !strings.Contains(page, "issuers: failing")
	})
	if code != http.StatusOK || !strings.Contains(page, "configuration: failing, but certificates can be issued\n  in force since ") {
		t.Errorf("/readyz?verbose: %d %q", code, page)
	}
	r.issues(t, "by the old configuration", r.signingRequest(t, r.token(t, nil)))
	r.offer(nil)
	r.hup()
	r.expect(t, "mended", 1, refused)
	if _, page := r.readiness(t); !strings.Contains(page, "configuration: ok\n") {
		t.Errorf("mended, but the page says %q", page)
	}
}

// TestFileChangeIsNoticed: written in place, renamed over, and reached by a link that is
// swapped. A change counts when two looks see the same.
func TestFileChangeIsNoticed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	version := func(name, text string) {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, name), 0o700), os.WriteFile(filepath.Join(dir, name, "f"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	swap := func(to string) error {
		return errors.Join(os.Symlink(to, filepath.Join(dir, "tmp")), os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "..data")))
	}
	version("..1", "one")
	version("..2", "two")
	plain, linked, absent := filepath.Join(dir, "plain"), filepath.Join(dir, "linked"), filepath.Join(dir, "absent")
	if err := errors.Join(swap("..1"), os.Symlink("..data/f", linked), os.WriteFile(plain, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var w watcher
	w.watch([]string{plain, linked})
	w.also([]string{absent})
	for name, change := range map[string]func() error{
		"in place": func() error { return os.WriteFile(plain, []byte("longer"), 0o600) },
		"renamed over": func() error {
			return errors.Join(os.WriteFile(plain+".new", []byte("longer"), 0o600), os.Rename(plain+".new", plain))
		},
		"link swapped": func() error { return swap("..2") },
		"appears":      func() error { return os.WriteFile(absent, nil, 0o600) },
		"mode":         func() error { return os.Chmod(linked, 0o640) },
	} {
		if w.changed() {
			t.Fatalf("%s: changed before", name)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if w.changed() {
			t.Errorf("%s: taken up at first sight", name)
		}
		if !w.changed() {
			t.Errorf("%s: not noticed", name)
		}
		if w.changed() {
			t.Errorf("%s: noticed twice", name)
		}
	}
}

func TestFileChangeReloads(t *testing.T) {
	t.Parallel()
	r := newReloading(t, nil)
	r.look(3)
	r.expect(t, "nothing changed", 0, 0)
	r.offer(func(c *config.Config) {
		c.Issuers[0].Audiences = append(slices.Clone(c.Issuers[0].Audiences), "another")
	})
	r.write(t, "version 2")
	r.look(3)
	r.expect(t, "changed", 1, 0)
	r.issues(t, "the new audience", r.signingRequest(t, r.token(t, map[string]any{"aud": "another"})))
	// A file that a refused configuration names is waited for.
	keys := filepath.Join(t.TempDir(), "keys.json")
	r.offer(func(c *config.Config) { c.Issuers[0].JWKSFile = setting.Path(keys) })
	r.write(t, "version three")
	r.look(3)
	r.expect(t, "without its file", 1, 1)
	r.look(3)
	r.expect(t, "nothing new", 1, 1)
	_, text, err := get(t.Context(), r.issuer.URL+issuerKeys)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keys, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r.look(3)
	r.expect(t, "the file is there", 2, 1)
	r.refuses(t, "the old audience list", r.signingRequest(t, r.token(t, map[string]any{"aud": "another"})), fault.TokenAudience)
	r.issues(t, "with keys from the file", r.signingRequest(t, r.token(t, nil)))
}

// A reload under load loses nothing: every honest request gets its certificate,
// though the issuer itself can't be asked any more.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	r := newReloading(t, func(_ *rig, c *config.Config) {
		limits := &c.Server.RateLimits
		limits.PerAddress.Rate, limits.PerPrincipal.Rate = 0, 0
	})
	r.issuer.Break(issuerDiscovery, failing(http.StatusServiceUnavailable))
	r.issuer.Break(issuerKeys, failing(http.StatusServiceUnavailable))
	o := r.signingRequest(t, r.token(t, nil))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	var done atomic.Int64
	for worker := range 4 {
		load.Go(func() {
			for n := worker; ctx.Err() == nil; n++ {
				if a := r.ask(t, edges[n%len(edges)], o); a.reason != "" || a.failed != nil {
					t.Errorf("%s: %s %q %v", a.edge, a.reason, a.message, a.failed)
					return
				}
				done.Add(1)
			}
		})
	}
	for round := range 30 {
		r.offer(func(c *config.Config) {
			c.Issuers[0].MaxTokenLifetime = time.Duration(20+round%3) * time.Hour
			c.Server.RateLimits.PerPrincipal.Rate = float64(round%2) * 1e6
			c.Server.RateLimits.PerPrincipal.Burst = 1e6
			c.Server.Limits.TokenBytes = 8<<10 + round
			if round%5 == 4 {
				c.Issuers[0].Audiences = nil // refused
			}
		})
		before := done.Load()
		r.hup()
		poll(t, "requests go on", func() bool { return done.Load() >= before+4 || t.Failed() })
	}
	stop()
	load.Wait()
	r.expect(t, "at the end", 24, 6)
}
