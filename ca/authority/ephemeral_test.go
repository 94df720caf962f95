package authority

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// countingKey is a root's key that counts its signatures, and can be down.
type countingKey struct {
	kms.Signer
	signs atomic.Int64
	down  atomic.Bool
}

var errDown = errors.New("the KMS is down")

func (s *countingKey) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.down.Load() {
		return nil, errDown
	}
	s.signs.Add(1)
	return s.Signer.Sign(ctx, digest, opts)
}

// ephemeralRoot makes a root in files, for an authority of the mode ephemeral.
func ephemeralRoot(t *testing.T, now time.Time, life time.Duration) Config {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "root.key.pem")
	key, err := keystore.GenerateFile(path, kms.ECDSAP384, nil)
	if err != nil {
		t.Fatal(err)
	}
	draft, err := cacert.New(nil, cacert.Profile{Organization: "Example", PathLength: cacert.Unlimited, Lifetime: life}, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := draft.For(key.Public()); err != nil {
		t.Fatal(err)
	}
	made, err := draft.Sign(cacert.Key{Signer: key, Ref: path})
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root.pem")
	if err := os.WriteFile(root, chain.PEM(made.Chain), 0o600); err != nil {
		t.Fatal(err)
	}
	return Config{
		Mode: ModeEphemeral, Chain: setting.Path(root), Key: setting.KeyRef("file:" + path),
		Ephemeral: EphemeralConfig{History: setting.Path(filepath.Join(dir, "history"))},
	}
}

// ephemeralRig is an ephemeral authority at work, and what a client of it sees.
type ephemeralRig struct {
	*Ephemeral
	ca      *countingKey
	records recorder
	put     func(context.Context) error

	mu     sync.Mutex
	listed map[string]time.Time // since when, by fingerprint
	puts   int
}

// quiet is an audit trail whose log nobody reads.
func quiet(r audit.Recorder, now func() time.Time) audit.Trail {
	return audit.Trail{Recorder: r, Now: now, Logger: slog.New(slog.DiscardHandler)}
}

// recorder is an audit trail in memory that can be told to fail.
type recorder struct {
	fail   func(e audit.Event) error
	events []audit.Event
}

func (r *recorder) Record(_ context.Context, e audit.Event) error {
	if r.fail != nil {
		if err := r.fail(e); err != nil {
			return err
		}
	}
	r.events = append(r.events, e)
	return nil
}

func (r *recorder) types() (all []audit.Type) {
	for _, e := range r.events {
		all = append(all, e.Type)
	}
	return all
}

const testLeaf = 10 * time.Minute

func startEphemeral(t *testing.T, c Config, now func() time.Time) (*ephemeralRig, error) {
	t.Helper()
	a, err := Load(t.Context(), c, LoadOptions{Now: now()})
	if err != nil {
		return nil, err
	}
	r := &ephemeralRig{ca: &countingKey{Signer: a.signer}, listed: make(map[string]time.Time)}
	a.signer = r.ca
	r.Ephemeral, err = StartEphemeral(t.Context(), a, EphemeralOptions{Lifetime: testLeaf, Trail: quiet(&r.records, now)})
	if err != nil {
		return nil, err
	}
	r.put = func(context.Context) error { return nil }
	r.show()
	return r, nil
}

// show is the documents' part: what is listed from now on.
func (r *ephemeralRig) show() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.puts++
	for _, c := range r.certificates() {
		if _, known := r.listed[string(c.Raw)]; !known {
			r.listed[string(c.Raw)] = r.o.Trail.Now()
		}
	}
}

// run runs the renewal until the test ends.
func (r *ephemeralRig) run(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- r.Run(ctx, func(ctx context.Context) error {
			if err := r.put(ctx); err != nil {
				return err
			}
			r.show()
			return nil
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (r *ephemeralRig) active() *Authority {
	r.Ephemeral.mu.Lock()
	defer r.Ephemeral.mu.Unlock()
	return r.current
}

// issues reports whether a leaf could begin now, and holds what would be issued
// to what must never happen: a leaf beyond its issuer, or by an issuer that
// clients couldn't know for the stated time.
func (r *ephemeralRig) issues(t *testing.T, ahead time.Duration) bool {
	t.Helper()
	a, now := r.active(), r.o.Trail.Now().UTC().Truncate(time.Second)
	if a.Covers(now, now.Add(testLeaf-time.Second)) != nil {
		return false
	}
	if now.Add(testLeaf - time.Second).After(a.Certificate.NotAfter) {
		t.Errorf("%v: a leaf beyond its issuer, which ends at %v", now, a.Certificate.NotAfter)
	}
	r.mu.Lock()
	since, known := r.listed[string(a.Certificate.Raw)]
	r.mu.Unlock()
	if !known || r.o.Trail.Now().Sub(since) < ahead {
		t.Errorf("%v: %s issues, listed since %v (%v)", now, a.Subject, since, known)
	}
	return true
}

// TestEphemeralWeeks: over three weeks each certificate is listed for a day
// before it issues, there is no gap, every one stays listed, and the signing CA
// signs once for each.
func TestEphemeralWeeks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := ephemeralRoot(t, time.Now(), 0)
		r, err := startEphemeral(t, c, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		r.run(t)
		if r.issues(t, 0) {
			t.Error("issues at once, without accept_unlisted")
		}
		pass(t, 24*time.Hour-time.Minute)
		if r.issues(t, 0) {
			t.Error("issues before it has been listed for a day")
		}
		pass(t, 2*time.Minute)
		seen := make(map[string]bool)
		for range 21 * 24 * 2 {
			if !r.issues(t, 24*time.Hour) {
				t.Fatalf("%v: a gap: %v", time.Now(), r.Detail())
			}
			seen[string(r.active().Certificate.Raw)] = true
			if err := r.Ready(t.Context()); err != nil {
				t.Error(err)
			}
			pass(t, 30*time.Minute)
		}
		if n := int(r.ca.signs.Load()); len(seen) < 14 || n > len(seen)+1 {
			t.Errorf("%d issuing certificates in force in three weeks, %d signatures", len(seen), n)
		}
		if got := len(r.certificates()); got < len(seen) {
			t.Errorf("%d of %d are still listed", got, len(seen))
		}
		var want []audit.Type
		for range r.ca.signs.Load() {
			want = append(want, audit.Intent, audit.Issued)
		}
		if got := r.records.types(); !slices.Equal(got, want) {
			t.Errorf("on record: %v; want an intent and an outcome for each of %d signatures", got, r.ca.signs.Load())
		}
		first, last := r.records.events[0], r.records.events[len(want)-1]
		if first.Purpose != audit.PurposeIssuing || first.KeyFingerprint == "" || last.Serial == "" || last.Fingerprint == "" || last.NotAfter.IsZero() {
			t.Errorf("the first intent is %+v, the last outcome %+v", first, last)
		}
	})
}

// TestEphemeralOutage: a KMS that is down at renewal is asked again and again, the
// old certificate goes on as long as it can, readyz tells, and it ends by itself.
func TestEphemeralOutage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		outage time.Duration
		accept bool
		gap    time.Duration // with nothing issued, at most
	}{
		{"short", 15 * time.Hour, false, 0},
		{"longer than the slack", 30 * time.Hour, false, 14 * time.Hour},
		{"longer than the certificate", 60 * time.Hour, false, 24*time.Hour + 21*time.Hour},
		{"longer than the certificate, unlisted accepted", 60 * time.Hour, true, 21 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := ephemeralRoot(t, time.Now(), 0)
				c.Ephemeral.AcceptUnlisted = tt.accept
				r, err := startEphemeral(t, c, time.Now)
				if err != nil {
					t.Fatal(err)
				}
				r.run(t)
				pass(t, time.Until(r.renewAt())-time.Second)
				r.ca.down.Store(true)
				pass(t, time.Hour)
				if err := r.Ready(t.Context()); !errors.Is(err, errDown) {
					t.Errorf("after an hour's outage: %v", err)
				}
				if got := strings.Join(r.Detail(), "; "); !strings.Contains(got, "attempts failed") || strings.Contains(got, errDown.Error()) {
					t.Errorf("detail %q", got)
				}
				ahead := 24 * time.Hour
				if tt.accept {
					ahead = 0
				}
				var gap time.Duration
				for at := time.Hour; at < 200*time.Hour; at += 10 * time.Minute {
					if at == tt.outage {
						r.ca.down.Store(false)
					}
					if !r.issues(t, ahead) {
						gap += 10 * time.Minute
					}
					pass(t, 10*time.Minute)
				}
				if gap > tt.gap || tt.gap > 0 && gap == 0 {
					t.Errorf("nothing was issued for %v; want more than 0 and at most %v", gap, tt.gap)
				}
				if err := r.Ready(t.Context()); err != nil {
					t.Errorf("no recovery: %v", err)
				}
			})
		})
	}
}

// TestEphemeralRestart: the key before is gone; its certificate stays listed, and
// the new one is listed at once and waits, or issues where that is accepted.
func TestEphemeralRestart(t *testing.T) {
	t.Parallel()
	for _, accept := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := ephemeralRoot(t, time.Now(), 0)
			c.Ephemeral.AcceptUnlisted = accept
			first, err := startEphemeral(t, c, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			pass(t, time.Hour)
			second, err := startEphemeral(t, c, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			listed := second.certificates()
			if len(listed) != 2 || !listed[0].Equal(first.active().Certificate) || !listed[1].Equal(second.active().Certificate) {
				t.Errorf("%d listed", len(listed))
			}
			if got := second.issues(t, 0); got != accept {
				t.Errorf("accept_unlisted %t: issues %t", accept, got)
			}
			pass(t, 24*time.Hour)
			if !second.issues(t, 0) {
				t.Error("doesn't issue after a day")
			}
		})
	}
}

// TestEphemeralReplicas: replicas that share a history list each other's.
func TestEphemeralReplicas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := ephemeralRoot(t, time.Now(), 0)
		a, err := startEphemeral(t, c, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		a.run(t)
		pass(t, time.Second) // two machines never start at one instant
		b, err := startEphemeral(t, c, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		b.run(t)
		pass(t, 2*historyInterval)
		for name, r := range map[string]*ephemeralRig{"first": a, "second": b} {
			r.mu.Lock()
			if len(r.listed) != 2 {
				t.Errorf("the %s lists %d", name, len(r.listed))
			}
			r.mu.Unlock()
		}
	})
}

// TestEphemeralUnlistable: a certificate that couldn't be listed doesn't issue
// before it has been for the stated time.
func TestEphemeralUnlistable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, err := startEphemeral(t, ephemeralRoot(t, time.Now(), 0), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		var broken atomic.Bool
		r.put = func(context.Context) error {
			if broken.Load() {
				return errors.New("no documents")
			}
			return nil
		}
		r.run(t)
		pass(t, 24*time.Hour+time.Minute)
		broken.Store(true)
		pass(t, time.Until(r.renewAt())+10*time.Hour)
		if err := r.Ready(t.Context()); err == nil {
			t.Error("ready without documents")
		}
		broken.Store(false)
		for range 4 * 24 {
			if !r.issues(t, 24*time.Hour) {
				t.Fatalf("a gap: %v", r.Detail())
			}
			pass(t, time.Hour)
		}
	})
}

// TestEphemeralLastDays: the last certificates end with the signing CA, and then
// it says what to do.
func TestEphemeralLastDays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, err := startEphemeral(t, ephemeralRoot(t, time.Now(), 7*24*time.Hour), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		r.run(t)
		end := r.signing.notAfter
		pass(t, 24*time.Hour+time.Minute)
		for time.Until(end) > testLeaf {
			r.issues(t, 24*time.Hour) // with its checks
			pass(t, 10*time.Minute)
		}
		if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "renew it first") && !strings.Contains(err.Error(), "state from 1 day") {
			t.Errorf("%v", err)
		}
		for _, c := range r.certificates() {
			if c.NotAfter.After(end) {
				t.Errorf("%s ends at %v, after the signing CA (%v)", c.Subject, c.NotAfter, end)
			}
		}
	})
}

// TestEphemeralRefusals: what the operator reads when it can't start.
func TestEphemeralRefusals(t *testing.T) {
	t.Parallel()
	good := ephemeralRoot(t, noon.AddDate(0, -1, 0), 0)
	leafIssuer := newLineage(t)
	leafIssuer.intermediate.MaxPathLenZero = true
	zero := leafIssuer.write(t)
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no history":        {func(c *Config) { c.Ephemeral.History = "" }, "ca.authority.ephemeral.history: required with `mode: ephemeral`"},
		"too short":         {func(c *Config) { c.Ephemeral.Lifetime = time.Hour }, "ca.authority.ephemeral.lifetime: 1h0m0s is out of bounds: from 24h0m0s to 720h0m0s, in whole seconds"},
		"too long":          {func(c *Config) { c.Ephemeral.Lifetime = 721 * time.Hour }, "is out of bounds"},
		"no room":           {func(c *Config) { c.Ephemeral.Lifetime = 24 * time.Hour }, "ca.authority.ephemeral.publish_ahead: 24h0m0s is out of bounds: from 1m to half of the lifetime (12h0m0s)"},
		"another mode":      {func(c *Config) { c.Mode = ModeDirect }, "ca.authority.ephemeral: belongs to `mode: ephemeral`"},
		"a leaf issuer":     {func(c *Config) { c.Chain, c.Key = zero.Chain, zero.Key }, "its path length 0 forbids the 1 CA certificates below it: reissue it with a longer one"},
		"a sealed key":      {func(c *Config) { c.SealedKey = "x" }, "ca.authority.sealed_key: belongs to `mode: sealed`"},
		"precertificates":   {func(c *Config) { c.PrecertificateSigner = SignerOn }, "ca.authority.precertificate_signer: is for a key in a KMS"},
		"a quota":           {func(c *Config) { c.SigningQuota = 5 }, "ca.authority.signing_quota: is for a key that signs certificates"},
		"a file as history": {func(c *Config) { c.Ephemeral.History = c.Chain }, "not a directory"},
	} {
		c := good
		tt.change(&c)
		if _, err := startEphemeral(t, c, clock); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}

	unrecorded, err := Load(t.Context(), good, LoadOptions{Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	counting := &countingKey{Signer: unrecorded.signer}
	unrecorded.signer = counting
	full := &recorder{fail: func(audit.Event) error { return errors.New("the disk is full") }}
	if _, err := StartEphemeral(t.Context(), unrecorded, EphemeralOptions{Lifetime: testLeaf, Trail: quiet(full, clock)}); fault.From(err).Reason != fault.AuditUnavailable || counting.signs.Load() != 0 {
		t.Errorf("without a record: %v, %d signatures", err, counting.signs.Load())
	}

	down, err := Load(t.Context(), good, LoadOptions{Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	down.signer = &countingKey{Signer: down.signer}
	down.signer.(*countingKey).down.Store(true)
	o := EphemeralOptions{Lifetime: testLeaf, Trail: quiet(&recorder{}, clock)}
	if _, err := StartEphemeral(t.Context(), down, o); !errors.Is(err, errDown) || !strings.Contains(err.Error(), "the first ephemeral issuing certificate: signing with the signing CA's key") {
		t.Errorf("%v", err)
	}
	left, err := os.ReadDir(string(good.Ephemeral.History))
	if err != nil || len(left) != 0 {
		t.Errorf("%d files are left of a start that failed: %v", len(left), err)
	}
}

// TestEphemeralStartsOverAndOver: a service that does is stopped before clients'
// documents are full.
func TestEphemeralStartsOverAndOver(t *testing.T) {
	t.Parallel()
	c := ephemeralRoot(t, noon.AddDate(0, -1, 0), 0)
	r, err := startEphemeral(t, c, clock)
	if err != nil {
		t.Fatal(err)
	}
	for n := range maxValidEphemeral - 1 {
		if err := r.checkValidCount(); err != nil {
			t.Fatalf("at %d: %v", n, err)
		}
		r.history.known[fmt.Sprint(n)] = r.active().Certificate
	}
	if err := r.checkValidCount(); err == nil || !strings.Contains(err.Error(), "200 ephemeral issuing certificates are valid already") {
		t.Errorf("%v", err)
	}
}

// TestABrokenHistoryIsRefusedAtStartAndLeftAloneLater: what isn't as Mayfly wrote it is refused at the start by name, and
// in a running service leaves what is known.
func TestABrokenHistoryIsRefusedAtStartAndLeftAloneLater(t *testing.T) {
	t.Parallel()
	c := ephemeralRoot(t, noon.AddDate(0, -1, 0), 0)
	r, err := startEphemeral(t, c, clock)
	if err != nil {
		t.Fatal(err)
	}
	dir, name := string(c.Ephemeral.History), historyName(r.active().Certificate)
	good, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := startEphemeral(t, ephemeralRoot(t, noon.AddDate(0, -1, 0), 0), clock)
	if err != nil {
		t.Fatal(err)
	}
	other := stranger.active().Certificate
	root := r.history.parent[0]
	for what, tt := range map[string]struct {
		name string
		b    []byte
		want string
	}{
		"damaged":          {name, good[:len(good)/2], "isn't whole PEM at block 1: restore it from a copy"},
		"empty":            {name, nil, "is empty: a certificate"},
		"another's name":   {historyName(root), good, "holds another certificate than its name says"},
		"two certificates": {name, append(bytes.Clone(good), good...), "has more in it than one certificate"},
		"a space":          {name, append(bytes.Clone(good), ' '), "has more in it than one certificate"},
		"the root":         {historyName(root), []byte(chain.Encode(root.Raw)), "isn't the certificate of an issuing CA"},
		"another CA's":     {historyName(other), []byte(chain.Encode(other.Raw)), "doesn't belong to this authority's chain"},
		"no PEM":           {"notes.txt", []byte("rotate on Monday"), "holds no PEM block: a certificate"},
		"too large":        {"large.pem", bytes.Repeat([]byte("\n"), maxHistoryFile+1), "is larger than"},
	} {
		path := filepath.Join(dir, tt.name)
		if err := os.WriteFile(path, tt.b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(t.Context(), c, LoadOptions{Now: noon})
		if err == nil || !strings.Contains(err.Error(), "ca.authority.ephemeral.history: "+path) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", what, err, tt.want)
		}
		if tt.name != name {
			r.advance(t.Context())
			if err := r.Ready(t.Context()); err == nil || len(r.certificates()) != 1 {
				t.Errorf("%s: a running service: %v, lists %d", what, err, len(r.certificates()))
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			r.advance(t.Context())
			if err := r.Ready(t.Context()); err != nil {
				t.Errorf("%s: no recovery: %v", what, err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, ".new-x"), good[:9], 0o600); err != nil { // the power went
		t.Fatal(err)
	}
	if _, err := Load(t.Context(), c, LoadOptions{Now: noon}); err != nil {
		t.Error(err)
	}
}

// TestHistoryPipe: what nobody writes to doesn't hold a look at the folder up.
func TestHistoryPipe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.pem"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := (&history{dir: dir}).refresh()
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "isn't a plain file") {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it hangs")
	}
}

// TestHistoryGone: a folder that isn't there any more takes nothing out of what clients are told.
func TestHistoryGone(t *testing.T) {
	t.Parallel()
	c := ephemeralRoot(t, noon.AddDate(0, -1, 0), 0)
	r, err := startEphemeral(t, c, clock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := startEphemeral(t, c, clock); err != nil { // a replica
		t.Fatal(err)
	}
	r.advance(t.Context())
	if err := os.RemoveAll(string(c.Ephemeral.History)); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{"", "lost+found"} { // where it was, there may be the folder to mount at
		if left != "" {
			if err := os.MkdirAll(filepath.Join(string(c.Ephemeral.History), left), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		r.advance(t.Context())
		if err := r.Ready(t.Context()); err == nil || len(r.certificates()) != 2 {
			t.Errorf("lists %d, %v", len(r.certificates()), err)
		}
	}
}

// TestEmptyHistory: a start finds out that the folder of its issuing certificates isn't the
// one that it had, where the audit trail shows that leaves were signed below them.
func TestEmptyHistory(t *testing.T) {
	t.Parallel()
	issuing := func(subject string) audit.Event {
		return audit.Event{Type: audit.Issued, Time: noon, Purpose: audit.PurposeIssuing, Authority: subject, Serial: "ab12", Fingerprint: "f"}
	}
	leaf := audit.Event{Type: audit.Issued, Time: noon, Authority: "CN=Issuing", Serial: "cd"}
	c := ephemeralRoot(t, noon.AddDate(0, -1, 0), 0)
	subject := "O=Example"
	if a, err := Load(t.Context(), c, LoadOptions{Now: noon}); err != nil {
		t.Fatal(err)
	} else {
		subject = a.Subject
		a.Close()
	}
	for name, tt := range map[string]struct {
		trail []audit.Event
		put   string // into the folder
		lost  bool
	}{
		"no trail":                   {nil, "", false},
		"another mode before":        {[]audit.Event{leaf}, "", false},
		"killed before it was kept":  {[]audit.Event{leaf, issuing(subject)}, "", false},
		"another signing CA":         {[]audit.Event{issuing("CN=other"), leaf}, "", false},
		"it was in use":              {[]audit.Event{issuing(subject), leaf}, "", true},
		"another disk":               {[]audit.Event{issuing(subject), leaf}, "lost+found", true},
		"the operator begins anew":   {[]audit.Event{issuing(subject), leaf}, anew, false},
		"in use, and one not kept":   {[]audit.Event{issuing(subject), leaf, issuing(subject)}, "", true},
		"a signer of precertificate": {[]audit.Event{{Type: audit.Issued, Time: noon, Purpose: audit.PurposePrecertificateSigner, Authority: subject, Serial: "1"}, leaf}, "", false},
	} {
		dir := t.TempDir()
		trail := filepath.Join(dir, "audit.jsonl")
		config := audit.DefaultConfig()
		config.Path = setting.Path(trail)
		f, err := audit.Open(config, audit.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range tt.trail {
			if err := f.Record(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		history := filepath.Join(dir, "history")
		c.Ephemeral.History = setting.Path(history)
		if tt.put != "" {
			if err := os.MkdirAll(filepath.Join(history, tt.put), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		a, err := Load(t.Context(), c, LoadOptions{Now: noon})
		if err != nil {
			t.Fatal(err)
		}
		err = a.CheckHistory(trail)
		if tt.lost != (err != nil) || err != nil && !strings.HasPrefix(err.Error(), "ca.authority.ephemeral.history: "+history+" holds no issuing certificate, but "+trail+" has an issuing CA that this authority certified on 2026-03-01T12:00:00Z (serial ab12)") {
			t.Errorf("%s: %v", name, err)
		}
		a.Close()
	}
}

// TestEmptyHistoryOfARetired: what an authority signed that signs no more is told to clients,
// or the start fails.
func TestEmptyHistoryOfARetired(t *testing.T) {
	t.Parallel()
	c := threeAuthorities(t, nil)
	c.Authorities[2].Config = ephemeralRoot(t, noon.AddDate(0, -1, 0), 0)
	_, err := LoadSet(t.Context(), c, LoadOptions{Now: noon})
	if err == nil || !strings.Contains(err.Error(), "ca.authorities[2].ephemeral.history: ") || !strings.Contains(err.Error(), "retired has signed") {
		t.Errorf("%v", err)
	}
}

// FuzzHistory: a file of any bytes is read or refused; what is read is one issuing
// CA below this root, as it was written.
func FuzzHistory(f *testing.F) {
	root, issuing := fuzzChain(f)
	name := historyName(issuing)
	f.Add(name, []byte(chain.Encode(issuing.Raw)))
	f.Add(historyName(root), []byte(chain.Encode(root.Raw)))
	f.Add("x.pem", []byte("-----BEGIN CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		c, err := parseHistory(name, b, []*x509.Certificate{root})
		if err != nil {
			return
		}
		if !bytes.Equal(b, []byte(chain.Encode(c.Raw))) || c.CheckSignatureFrom(root) != nil {
			t.Errorf("%s is taken", b)
		}
	})
}

// fuzzChain is a root and an issuing CA below it.
func fuzzChain(f *testing.F) (root, issuing *x509.Certificate) {
	f.Helper()
	l := newLineage(f)
	l.intermediate.MaxPathLenZero = true
	a, err := Load(f.Context(), l.write(f), LoadOptions{Now: noon})
	if err != nil {
		f.Fatal(err)
	}
	if root, err = x509.ParseCertificate(a.Chain[1]); err != nil {
		f.Fatal(err)
	}
	return root, a.Certificate
}
