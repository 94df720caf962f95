package service

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// The modes of issuing through the whole service: the root's key in every KMS, or
// the issuing key sealed by one.

// rootKey is the root's key and certificate of a new CA.
func rootKey(t *testing.T, dir string) (crypto.Signer, []*x509.Certificate) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, authorityName, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := cachain.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return readKey(t, filepath.Join(dir, authorityName, "root.key.pem")), root
}

// ephemeralBy makes the configured authority one of the mode ephemeral, with the
// root's key in a vendor's stand-in.
func ephemeralBy(t *testing.T, vendor string, r *rig, c *config.Config) *kmstest.StandIn {
	t.Helper()
	key, _ := rootKey(t, r.dir)
	s := kmstest.Vendors[vendor](t, key)
	c.CA.Authority = authority.Config{
		Mode: authority.ModeEphemeral, Key: setting.KeyRef(s.Ref), Access: s.Options.Access,
		Chain:     setting.Path(filepath.Join(r.dir, authorityName, "root.pem")),
		Ephemeral: authority.EphemeralConfig{History: setting.Path(filepath.Join(r.dir, "history")), AcceptUnlisted: true},
	}
	r.getenv = s.Options.Getenv
	r.private = append(r.private, kmstest.Secret)
	return s
}

// listed are the issuing certificates in the trusted root that is served.
func (r *rig) listed(t *testing.T) (all []*x509.Certificate) {
	t.Helper()
	status, text, err := get(t.Context(), r.url+"/trusted_root.json")
	if err != nil || status != http.StatusOK {
		t.Fatalf("HTTP %d, %v", status, err)
	}
	var root struct {
		Authorities []struct {
			Chain struct {
				Certificates []struct {
					Raw string `json:"rawBytes"`
				} `json:"certificates"`
			} `json:"certChain"`
		} `json:"certificateAuthorities"`
	}
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	for _, a := range root.Authorities {
		der, err := base64.StdEncoding.DecodeString(a.Chain.Certificates[0].Raw)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// TestEphemeralService: certificates come from an issuing CA that the trusted
// root lists, at no signature of the KMS, which may be down; past ones stay listed
// over a restart; /readyz tells how things stand.
func TestEphemeralService(t *testing.T) {
	t.Parallel()
	for vendor := range kmstest.Vendors {
		t.Run(vendor, func(t *testing.T) {
			t.Parallel()
			var s *kmstest.StandIn
			var of authority.Config
			r := newRig(t, func(r *rig, c *config.Config) {
				s = ephemeralBy(t, vendor, r, c)
				of = c.CA.Authority
			})
			before := s.Count(s.Sign)
			if before != 2 { // the trial at the start, and the issuing certificate
				t.Errorf("%d signatures of the KMS at the start", before)
			}
			s.Always(kmstest.Fault{Drop: true})
			leaves := r.issues(t, "with the KMS down", r.signingRequest(t, r.token(t, nil)))
			if got := s.Count(s.Sign) - before; got != 0 {
				t.Errorf("%d signatures of the KMS for %d certificates", got, len(leaves))
			}
			if status, page := r.readiness(t); status != http.StatusOK || !strings.Contains(page, "renewal") || !strings.Contains(page, "issues from") {
				t.Errorf("HTTP %d: %s", status, page)
			}
			all := r.listed(t)
			// An issuer's own lifetime may be longer than ca.lifetime: the longest leaf still fits.
			if _, page := r.readiness(t); !strings.Contains(page, "until "+all[0].NotAfter.Add(time.Second-ca.MaxLifetime).UTC().Format(time.RFC3339)) {
				t.Errorf("it issues for too long: %s", page)
			}
			for _, leaf := range leaves {
				if len(all) != 1 || leaf.CheckSignatureFrom(all[0]) != nil || leaf.NotAfter.After(all[0].NotAfter) {
					t.Errorf("the trusted root lists %d, none of which issued %s", len(all), leaf.SerialNumber)
				}
			}
			s.Break(nil)

			// Another replica, or this one again: it has another key, and lists both.
			again := newRig(t, func(again *rig, c *config.Config) {
				c.CA.Authority = of
				again.getenv = r.getenv
				again.private = append(again.private, kmstest.Secret)
				if err := os.RemoveAll(filepath.Join(again.dir, authorityName)); err != nil {
					t.Error(err)
				}
			})
			both := again.listed(t)
			if len(both) != 2 || !slices.ContainsFunc(both, all[0].Equal) || both[0].Equal(both[1]) {
				t.Errorf("the second lists %d", len(both))
			}
			for _, leaf := range again.issues(t, "the second", again.signingRequest(t, again.token(t, nil))) {
				if !slices.ContainsFunc(both, func(c *x509.Certificate) bool { return leaf.CheckSignatureFrom(c) == nil && !c.Equal(all[0]) }) {
					t.Error("a leaf of an issuer that isn't listed")
				}
			}
		})
	}
}

// TestSealedService: certificates come from a key that a KMS has decrypted at the
// start, and which is asked for nothing after it.
func TestSealedService(t *testing.T) {
	t.Parallel()
	for vendor, make := range kmstest.Sealings {
		t.Run(vendor, func(t *testing.T) {
			t.Parallel()
			s := make(t)
			r := newRig(t, func(r *rig, c *config.Config) { sealedBy(t, s, kms.ECDSAP256, r, c) })
			s.Always(kmstest.Fault{Drop: true})
			before := s.Count("")
			leaves := r.issues(t, "with the KMS down", r.signingRequest(t, r.token(t, nil)))
			if got := s.Count("") - before; got != 0 {
				t.Errorf("%d calls to the KMS for %d certificates", got, len(leaves))
			}
			all := r.listed(t)
			for _, leaf := range leaves {
				if len(all) != 1 || leaf.CheckSignatureFrom(all[0]) != nil {
					t.Errorf("the trusted root lists %d, none of which issued %s", len(all), leaf.SerialNumber)
				}
			}
			if status, page := r.readiness(t); status != http.StatusOK {
				t.Errorf("HTTP %d: %s", status, page)
			}
		})
	}
}

// sealedBy makes the configured authority one of the mode sealed, with its key sealed by
// a vendor's stand-in.
func sealedBy(t *testing.T, s *kmstest.Sealing, a kms.Algorithm, r *rig, c *config.Config) {
	t.Helper()
	key, root := rootKey(t, r.dir)
	o := s.Options
	o.SealedKey = setting.Path(filepath.Join(r.dir, "issuing.sealed.json"))
	if _, err := keystore.Generate(t.Context(), s.Ref, a, o); err != nil {
		t.Fatal(err)
	}
	c.CA.Authority = authority.Config{
		Mode: authority.ModeSealed, SealedKey: o.SealedKey, Key: setting.KeyRef(s.Ref), Access: s.Options.Access,
		Chain: certify(t, "Sealed", filepath.Join(r.dir, "sealed.chain.pem"), s.Ref, o, root, key),
	}
	r.getenv = s.Options.Getenv
	r.private = append(r.private, "do-not-log-me")
}

// TestSealedStartsWithoutItsKMS: what no certificate needs is served, and certificates are
// issued once the KMS has decrypted the key, after which it may go again.
func TestSealedStartsWithoutItsKMS(t *testing.T) {
	t.Parallel()
	for vendor, make := range kmstest.Sealings {
		t.Run(vendor, func(t *testing.T) {
			t.Parallel()
			s := make(t)
			k := &kmsRig{ahead: new(atomic.Int64), kms: s.StandIn}
			k.rig = startRig(t, func(r *rig, c *config.Config) {
				sealedBy(t, s, kms.ECDSAP256, r, c)
				c.Server.RequestTimeout = 3 * time.Second
				r.now = func() time.Time { return time.Now().Add(time.Duration(k.ahead.Load())) }
				r.broken = true
				s.Down()
			})
			poll(t, "the issuer's keys", func() bool { _, text := k.readiness(t); return strings.Contains(text, "issuers: ok") })
			k.awaits(t, "down", http.StatusServiceUnavailable)
			if status, page := k.readiness(t); !strings.Contains(page, "authority: failing") {
				t.Errorf("HTTP %d: %s", status, page)
			}
			if all := k.listed(t); len(all) != 1 {
				t.Errorf("%d are listed", len(all))
			}
			k.refusesAll(t, "down")
			s.Up()
			k.awaits(t, "up", http.StatusOK)
			s.Down()
			k.works(t, "unsealed")
		})
	}
}

// certify makes an intermediate for a key, in a file called path, as `mayfly ca intermediate` does.
func certify(t *testing.T, name, path, ref string, o kms.Options, root []*x509.Certificate, key crypto.Signer) setting.Path {
	t.Helper()
	signer, err := keystore.Open(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cacert.New(root, cacert.Profile{CommonName: name}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.For(signer.Public()); err != nil {
		t.Fatal(err)
	}
	made, err := c.Sign(cacert.Key{Signer: key, Ref: "the root's"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, cachain.PEM(made.Chain), 0o600); err != nil {
		t.Fatal(err)
	}
	return setting.Path(path)
}

// TestEphemeralWaits: without accept_unlisted a start lists its certificate and
// issues nothing, and says when it will.
func TestEphemeralWaits(t *testing.T) {
	t.Parallel()
	r := startRig(t, func(r *rig, c *config.Config) {
		ephemeralBy(t, "vault", r, c)
		c.CA.Authority.Ephemeral.AcceptUnlisted = false
		r.broken = true
	})
	if got := r.listed(t); len(got) != 1 {
		t.Errorf("%d are listed", len(got))
	}
	if status, page := r.readiness(t); status != http.StatusServiceUnavailable || !strings.Contains(page, "issues from "+time.Now().UTC().Add(24*time.Hour).Format("2006-01-02T")) {
		t.Errorf("HTTP %d: %s", status, page)
	}
	if !strings.Contains(r.lines.String(), "`accept_unlisted: true` would issue at once") {
		t.Error("the log doesn't say why nothing is issued")
	}
}

// TestEphemeralStartsWithoutItsKMS: what was certified before is listed, other documents are
// served, and certificates are issued once the KMS has signed an issuing one.
func TestEphemeralStartsWithoutItsKMS(t *testing.T) {
	t.Parallel()
	for vendor := range kmstest.Vendors {
		t.Run(vendor, func(t *testing.T) {
			t.Parallel()
			wake := make(chan time.Time)
			k := &kmsRig{ahead: new(atomic.Int64)}
			var of authority.Config
			before := newRig(t, func(r *rig, c *config.Config) {
				k.kms = ephemeralBy(t, vendor, r, c)
				of = c.CA.Authority
			})
			past := before.listed(t)
			k.kms.Down()
			k.rig = startRig(t, func(r *rig, c *config.Config) {
				c.CA.Authority = of
				c.Server.RequestTimeout = 3 * time.Second
				revoking(t, r, c)
				r.getenv, r.broken, r.wake = before.getenv, true, wake
				r.now = func() time.Time { return time.Now().Add(time.Duration(k.ahead.Load())) }
				r.private = append(r.private, kmstest.Secret)
			})
			poll(t, "the issuer's keys", func() bool { _, text := k.readiness(t); return strings.Contains(text, "issuers: ok") })
			k.awaits(t, "down", http.StatusServiceUnavailable)
			if status, page := k.readiness(t); !strings.Contains(page, "no issuing certificate could be made since the start") {
				t.Errorf("HTTP %d: %s", status, page)
			}
			if all := k.listed(t); len(all) != 1 || !all[0].Equal(past[0]) {
				t.Errorf("%d are listed", len(all))
			}
			if asked := k.refusesAll(t, "down"); asked != 0 {
				t.Errorf("the signing CA's key was asked for %d signatures by requests", asked)
			}
			for failed := range 3 { // each a minute after the one before
				poll(t, "another attempt", func() bool {
					_, page := k.readiness(t)
					return strings.Contains(page, fmt.Sprintf("; %d attempts failed", failed+1))
				})
				k.ahead.Add(int64(time.Minute + time.Second))
				if failed == 2 {
					k.kms.Up()
				}
				wake <- time.Time{}
			}
			k.awaits(t, "up", http.StatusOK)
			all := k.listed(t)
			k.kms.Down()
			for _, leaf := range k.issues(t, "certified", k.signingRequest(t, k.token(t, nil))) {
				if len(all) != 2 || !slices.ContainsFunc(all, func(c *x509.Certificate) bool { return leaf.CheckSignatureFrom(c) == nil && !c.Equal(past[0]) }) {
					t.Errorf("the trusted root lists %d, none of which issued %s", len(all), leaf.SerialNumber)
				}
			}
		})
	}
}

// TestEphemeralStartFails: a KMS that refuses at the start is named, with the step.
func TestEphemeralStartFails(t *testing.T) {
	t.Parallel()
	r := &rig{dir: filepath.Join(t.TempDir(), "ca"), lines: &catest.Lines{}}
	r.issuer = newRig(t, nil).issuer
	c := r.configuration(t)
	s := ephemeralBy(t, "aws", r, c)
	calls := 0
	s.Break(func(operation string, _ int) kmstest.Fault {
		if operation == s.Sign {
			if calls++; calls > 1 { // the trial of kms.Open passes
				return s.Codes["denied"]
			}
		}
		return kmstest.Fault{}
	})
	opened, err := Open(t.Context(), c, Dependencies{Now: time.Now, getenv: r.getenv, Logger: r.logger()}, Overrides{}, Source{})
	if err == nil {
		t.Fatal("it started", opened.Close(t.Context()))
	}
	for _, want := range []string{"the first ephemeral issuing certificate: signing with", s.Host + ": sign: the principal may not"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	if bytes.Contains([]byte(err.Error()), []byte(kmstest.Secret)) {
		t.Error("a secret is in the error")
	}
}

// TestEphemeralRelists: what another replica adds to the history is served by this
// one, and a reload keeps it.
func TestEphemeralRelists(t *testing.T) {
	t.Parallel()
	wake := make(chan time.Time)
	var of authority.Config
	r := &reloading{hangup: make(chan os.Signal), ticks: make(chan time.Time), file: filepath.Join(t.TempDir(), "mayfly.yaml")}
	r.write(t, "1")
	r.rig = startRigFrom(t, func(first *rig, c *config.Config) {
		first.wake = wake
		ephemeralBy(t, "vault", first, c)
		of = c.CA.Authority
	}, Source{File: r.file, Load: r.load, Hangup: r.hangup, ticks: r.ticks})
	if err := r.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.offer(nil)
	a, err := authority.Load(t.Context(), of, authority.LoadOptions{Now: time.Now(), KMS: kms.Options{Getenv: r.getenv}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.StartEphemeral(t.Context(), a, authority.EphemeralOptions{Lifetime: 10 * time.Minute, Trail: audit.Trail{Recorder: r.audit, Now: time.Now, Logger: r.logger()}}); err != nil {
		t.Fatal(err)
	}
	if got := r.listed(t); len(got) != 1 {
		t.Errorf("%d are listed before a look", len(got))
	}
	for range 2 { // the second begins when the first has been done
		select {
		case wake <- time.Now():
		case <-time.After(patience):
			t.Fatal("nobody looks")
		}
	}
	if got := r.listed(t); len(got) != 2 {
		t.Errorf("%d are listed after a look", len(got))
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 {
		select {
		case r.hangup <- os.Interrupt:
		case <-ctx.Done():
			t.Fatal("nobody reloads")
		}
	}
	if got := r.listed(t); len(got) != 2 {
		t.Errorf("%d are listed after a reload", len(got))
	}
	r.issues(t, "after all of it", r.signingRequest(t, r.token(t, nil)))
}

// TestEphemeralDiskIsNotMounted: a service whose history is empty, and whose audit trail shows
// that it wasn't, doesn't start, nor does the check pass.
func TestEphemeralDiskIsNotMounted(t *testing.T) {
	t.Parallel()
	var c *config.Config
	r := startRig(t, func(r *rig, own *config.Config) {
		ephemeralBy(t, "vault", r, own)
		c = own
	})
	r.issues(t, "before", r.signingRequest(t, r.token(t, nil)))
	d := Dependencies{Now: time.Now, getenv: r.getenv, Logger: r.logger()}
	if checked, err := Check(t.Context(), c, d); err != nil {
		t.Errorf("the folder is there: %v", err)
	} else if err := checked.close(); err != nil {
		t.Error(err)
	}
	if err := os.Rename(string(c.CA.Authority.Ephemeral.History), filepath.Join(r.dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(t.Context(), c, d); err == nil || !strings.Contains(err.Error(), "ca.authority.ephemeral.history: ") || !strings.Contains(err.Error(), "mount it, or restore it from a copy") {
		t.Errorf("the folder isn't there: %v", err)
	}
	if _, err := Open(t.Context(), c, d, Overrides{}, Source{}); err == nil || !strings.Contains(err.Error(), "ca.authority.ephemeral.history: ") {
		t.Errorf("it starts: %v", err)
	}
}
