package service

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// An issuing key in a KMS that fails or lies, through the whole
// service and for every backend that is reached over a network.

// kmsRig is a rig whose issuing key is in a vendor's stand-in.
type kmsRig struct {
	*rig
	kms   *kmstest.StandIn
	ahead *atomic.Int64 // how far the service's clock is ahead of the machine's, in ns
}

// newKMSRig starts a service that is ready.
func newKMSRig(t *testing.T, vendor string, timeout time.Duration) *kmsRig {
	t.Helper()
	k := &kmsRig{ahead: new(atomic.Int64)}
	k.rig = newRig(t, func(r *rig, c *config.Config) {
		k.kms = kmstest.Vendors[vendor](t, issuingKey(t, r.dir))
		c.CA.Authority.Key, c.CA.Authority.Access = setting.KeyRef(k.kms.Ref), k.kms.Options.Access
		c.Server.RequestTimeout = timeout
		r.getenv, r.broken = k.kms.Options.Getenv, true
		r.now = func() time.Time { return time.Now().Add(time.Duration(k.ahead.Load())) }
		r.private = append(r.private, kmstest.Secret)
	})
	t.Cleanup(func() { k.accounted(t) })
	return k
}

// issuingKey is the key of a new CA.
func issuingKey(t *testing.T, dir string) crypto.Signer {
	t.Helper()
	return readKey(t, filepath.Join(dir, authorityName, "issuing.key.pem"))
}

// readKey reads a plain key from a file.
func readKey(t *testing.T, path string) crypto.Signer {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		t.Fatalf("a key of type %T", key)
	}
	return signer
}

// accounted holds that each certificate that left was signed, and that what was
// begun without one has its outcome on record.
func (k *kmsRig) accounted(t *testing.T) {
	t.Helper()
	issued := uint64(k.issued.Load())
	if n := k.counts(t)["sign"]; n != issued {
		t.Errorf("%d certificates were signed, %d left", n, issued)
	}
	begun, ended := map[string]bool{}, map[string]string{}
	for _, one := range records(t, k.trail()) {
		switch {
		case one.Data.RequestID == "": // of the service's own
		case one.kind() == "intent":
			begun[one.Data.RequestID] = true
		default:
			ended[one.Data.RequestID] += one.kind()
		}
	}
	for id := range begun {
		if outcome := ended[id]; outcome != "issued" && outcome != "failed" {
			t.Errorf("%s: an intent with the outcome %q", id, outcome)
		}
	}
}

// page is the status of an operator's page, and its text.
func (k *kmsRig) page(t *testing.T, path string) (int, string) {
	t.Helper()
	status, text, err := get(t.Context(), k.url+path)
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text)
}

// awaits polls /readyz until it has the status: what was found last is good for
// a moment.
func (k *kmsRig) awaits(t *testing.T, name string, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		status, text := k.page(t, "/readyz")
		if status == want {
			if want == http.StatusServiceUnavailable && text != "authority: failing\n" {
				t.Errorf("%s: /readyz says %q", name, text)
			}
			return
		}
		k.ahead.Add(int64(time.Second))
	}
	t.Errorf("%s: /readyz isn't %d", name, want)
}

// works issues over every edge.
func (k *kmsRig) works(t *testing.T, name string) {
	t.Helper()
	k.issues(t, name, k.signingRequest(t, k.token(t, nil)))
}

// refusesAll asks over every edge at once: each answer is a 503 that asks to try
// again. It gives how many signatures the KMS was asked for.
func (k *kmsRig) refusesAll(t *testing.T, name string) (asked int) {
	t.Helper()
	before := k.kms.Count(k.kms.Sign)
	k.refuses(t, name, k.signingRequest(t, k.token(t, nil)), fault.SignerUnavailable)
	return k.kms.Count(k.kms.Sign) - before
}

// kmsFault is one thing that a KMS does to us.
type kmsFault struct {
	name  string
	does  func(t *testing.T, s *kmstest.StandIn) (undo func())
	calls []int // signatures that one request may ask for; nil where none arrives
	ready bool  // the KMS answers as it should, only not now: the key itself is well
}

// signing breaks every signature.
func signing(f func(s *kmstest.StandIn) kmstest.Fault) func(*testing.T, *kmstest.StandIn) func() {
	return func(_ *testing.T, s *kmstest.StandIn) func() {
		s.Always(f(s), s.Sign)
		return s.Mend
	}
}

func does(f kmstest.Fault) func(*kmstest.StandIn) kmstest.Fault {
	return func(*kmstest.StandIn) kmstest.Fault { return f }
}

func says(code string) func(*kmstest.StandIn) kmstest.Fault {
	return func(s *kmstest.StandIn) kmstest.Fault { return s.Codes[code] }
}

// everything breaks each request of whatever kind.
func everything(f kmstest.Fault) func(*testing.T, *kmstest.StandIn) func() {
	return func(_ *testing.T, s *kmstest.StandIn) func() {
		s.Break(func(string, int) kmstest.Fault { return f })
		return s.Mend
	}
}

var once, thrice = []int{1}, []int{3}

var kmsFaults = []kmsFault{
	{"down", func(_ *testing.T, s *kmstest.StandIn) func() { s.Down(); return s.Up }, nil, false},
	{"connections dropped", everything(kmstest.Fault{Drop: true}), thrice, false},
	{"hanging", signing(does(kmstest.Fault{Hang: true})), once, false},
	{"hanging in all it is asked", everything(kmstest.Fault{Hang: true}), []int{0, 1}, false}, // 0: while it fetches a token
	{"throttled", signing(says("throttled")), thrice, true},
	{"failing within itself", signing(says("internal")), thrice, false},
	{"denied", signing(says("denied")), once, false},
	{"signs with another key", signing(does(kmstest.Fault{Other: true})), once, false},
	{"corrupted signature", signing(does(kmstest.Fault{Corrupt: true})), once, false},
	{"disabled", func(_ *testing.T, s *kmstest.StandIn) func() {
		s.Change(s.Name, 1, func(v *kmstest.Version) { v.Disabled = true })
		return func() { s.Change(s.Name, 1, func(v *kmstest.Version) { v.Disabled = false }) }
	}, once, false},
	{"deleted", func(_ *testing.T, s *kmstest.StandIn) func() { return s.Remove(s.Name) }, once, false},
	{"replaced", func(t *testing.T, s *kmstest.StandIn) func() {
		var kept crypto.Signer
		s.Change(s.Name, 1, func(v *kmstest.Version) { kept, v.Key = v.Key, kmstest.Key(t, kms.ECDSAP256) })
		return func() { s.Change(s.Name, 1, func(v *kmstest.Version) { v.Key = kept }) }
	}, once, false},
}

// eachKMS runs f for every vendor at the same time, whatever -parallel says:
// what these tests do is wait.
func eachKMS(t *testing.T, f func(t *testing.T, vendor string)) {
	t.Helper()
	var all sync.WaitGroup
	for vendor := range kmstest.Vendors {
		all.Go(func() { t.Run(vendor, func(t *testing.T) { f(t, vendor) }) })
	}
	all.Wait()
}

// TestKMSFaults: whatever the KMS does, a client gets 503 in time, nothing that
// doesn't verify leaves, /readyz names the authority while /healthz is fine, and
// all of it ends by itself.
func TestKMSFaults(t *testing.T) {
	t.Parallel()
	eachKMS(t, func(t *testing.T, vendor string) {
		k := newKMSRig(t, vendor, 3*time.Second)
		k.works(t, "before")
		for _, f := range kmsFaults {
			undo := f.does(t, k.kms)
			asked := k.refusesAll(t, f.name)
			if f.calls != nil && !slices.ContainsFunc(f.calls, func(n int) bool { return asked == n*len(edges) }) {
				t.Errorf("%s: %d signatures were asked for by %d requests; want %v each", f.name, asked, len(edges), f.calls)
			}
			if !f.ready {
				k.awaits(t, f.name, http.StatusServiceUnavailable)
			}
			k.serves(t, f.name)
			undo()
			k.awaits(t, f.name+", mended", http.StatusOK)
			k.works(t, f.name+", mended")
		}
	})
}

// serves holds that what no certificate needs is there whatever fails: documents and
// the log's reads.
func (k *kmsRig) serves(t *testing.T, name string) {
	t.Helper()
	u, err := url.Parse(k.started.CTLog.Own()[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/healthz", "/trusted_root.json", "/api/v2/trustBundle", "/api/v1/rootCert", "/api/v2/configuration", u.Path + "/checkpoint", u.Path + "/ct/v1/get-sth"} {
		if status, text := k.page(t, path); status != http.StatusOK {
			t.Errorf("%s: %s is %d %s", name, path, status, text)
		}
	}
}

// TestKMSUnreachableAtStart: a service starts without its KMS, serves what no certificate
// needs, isn't ready, and issues when the KMS answers, unless another key is there then.
func TestKMSUnreachableAtStart(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]struct{ breaks, mends func(*kmstest.StandIn) }{
		"down": {(*kmstest.StandIn).Down, (*kmstest.StandIn).Up},
		"hanging": {func(s *kmstest.StandIn) {
			s.Break(func(string, int) kmstest.Fault { return kmstest.Fault{Hang: true} })
		}, (*kmstest.StandIn).Mend},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachKMS(t, func(t *testing.T, vendor string) {
				k := &kmsRig{ahead: new(atomic.Int64)}
				k.rig = startRig(t, func(r *rig, c *config.Config) {
					k.kms = kmstest.Vendors[vendor](t, issuingKey(t, r.dir))
					f.breaks(k.kms)
					c.CA.Authority.Key, c.CA.Authority.Access = setting.KeyRef(k.kms.Ref), k.kms.Options.Access
					c.Server.RequestTimeout = 3 * time.Second
					revoking(t, r, c)
					r.getenv, r.broken = k.kms.Options.Getenv, true
					r.now = func() time.Time { return time.Now().Add(time.Duration(k.ahead.Load())) }
					r.private = append(r.private, kmstest.Secret)
				})
				poll(t, "the issuer's keys", func() bool { _, text := k.readiness(t); return strings.Contains(text, "issuers: ok") })
				k.awaits(t, name, http.StatusServiceUnavailable)
				k.serves(t, name)
				k.refusesAll(t, name)
				var kept crypto.Signer
				k.kms.Change(k.kms.Name, 1, func(v *kmstest.Version) { kept, v.Key = v.Key, kmstest.Key(t, kms.ECDSAP256) })
				f.mends(k.kms)
				k.refusesAll(t, "another key")
				k.awaits(t, "another key", http.StatusServiceUnavailable)
				k.kms.Change(k.kms.Name, 1, func(v *kmstest.Version) { v.Key = kept })
				k.awaits(t, "its key", http.StatusOK)
				k.works(t, "its key")
			})
		})
	}
}

// TestKMSThrottlesOneInTen: nobody notices.
func TestKMSThrottlesOneInTen(t *testing.T) {
	t.Parallel()
	eachKMS(t, func(t *testing.T, vendor string) {
		k := newKMSRig(t, vendor, 5*time.Second)
		before := k.kms.Count(k.kms.Sign)
		k.kms.Break(func(operation string, call int) kmstest.Fault {
			if operation == k.kms.Sign && call%10 == 0 {
				return k.kms.Codes["throttled"]
			}
			return kmstest.Fault{}
		})
		for range 5 {
			k.works(t, "one in ten throttled")
		}
		issued := int(k.issued.Load()) // each of them one signature of the KMS: see direct in docs/keys.md
		asked := k.kms.Count(k.kms.Sign) - before
		if throttled := asked - issued; throttled < issued/10 || throttled > issued/8+1 {
			t.Errorf("%d signatures were asked for, for %d certificates", asked, issued)
		}
	})
}

// TestKMSKeyRotated: a new version of the key under us changes nothing.
func TestKMSKeyRotated(t *testing.T) {
	t.Parallel()
	eachKMS(t, func(t *testing.T, vendor string) {
		k := newKMSRig(t, vendor, 5*time.Second)
		k.kms.Add(k.kms.Name, kmstest.Key(t, kms.ECDSAP384))
		k.works(t, "rotated")
		k.awaits(t, "rotated", http.StatusOK)
	})
}

// TestKMSFiveSecondsSlow: an attempt that takes 5 s is given up and there is one
// more, as the default time of a request allows. This takes 10 s of real time.
func TestKMSFiveSecondsSlow(t *testing.T) {
	t.Parallel()
	eachKMS(t, func(t *testing.T, vendor string) {
		k := newKMSRig(t, vendor, 10*time.Second)
		k.kms.Always(kmstest.Fault{Slow: 5*time.Second + 500*time.Millisecond}, k.kms.Sign)
		if asked := k.refusesAll(t, "5 s slow"); asked < len(edges) || asked > 2*len(edges) {
			t.Errorf("%d signatures were asked for by %d requests", asked, len(edges))
		}
		k.kms.Mend()
		k.awaits(t, "mended", http.StatusOK)
		k.works(t, "mended")
	})
}

// TestKMSKeyThatCantIssueIsRefusedAtStart: a key that can't issue is refused at the start, and the line says
// what to do.
func TestKMSKeyThatCantIssueIsRefusedAtStart(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, s *kmstest.StandIn)
		want  string
	}{
		"another key than the certificate's": {func(t *testing.T, s *kmstest.StandIn) {
			s.Change(s.Name, 1, func(v *kmstest.Version) { v.Key = kmstest.Key(t, kms.ECDSAP256) })
		}, "isn't the key of the first certificate"},
		"disabled": {func(_ *testing.T, s *kmstest.StandIn) {
			s.Change(s.Name, 1, func(v *kmstest.Version) { v.Disabled = true })
		}, "ca.authority.key: "},
		"deleted":   {func(_ *testing.T, s *kmstest.StandIn) { s.Remove(s.Name) }, "ca.authority.key: "},
		"denied":    {func(_ *testing.T, s *kmstest.StandIn) { s.Always(s.Codes["denied"], s.Sign) }, "trial signature: "},
		"corrupted": {func(_ *testing.T, s *kmstest.StandIn) { s.Always(kmstest.Fault{Corrupt: true}, s.Sign) }, "doesn't verify under the key"},
		"down":      {func(_ *testing.T, s *kmstest.StandIn) { s.Down() }, "connect: "},
		"half a login": {func(_ *testing.T, s *kmstest.StandIn) {
			s.Options.Access.Credential, s.Options.Getenv = kms.CredentialEnv, kmstest.Environment("AWS_ACCESS_KEY_ID", "AKIA", "AZURE_TENANT_ID", "t")
		}, "set"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachKMS(t, func(t *testing.T, vendor string) {
				r := &rig{dir: filepath.Join(t.TempDir(), "ca"), lines: &catest.Lines{}, issuer: startIssuer(t)}
				c := r.configuration(t)
				s := kmstest.Vendors[vendor](t, issuingKey(t, r.dir))
				tt.spoil(t, s)
				c.CA.Authority.Key, c.CA.Authority.Access = setting.KeyRef(s.Ref), s.Options.Access
				_, err := Load(t.Context(), c, Dependencies{Now: time.Now, getenv: s.Options.Getenv, Logger: r.logger()})
				if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), kmstest.Secret) {
					t.Errorf("%v; want %q in it", err, tt.want)
				}
			})
		})
	}
}
