package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestIssue(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Metrics = registry })
	who, key := alice(t)
	cert, err := r.issuer.Issue(requestid.With(t.Context(), "request-1"), who, key)
	if err != nil {
		t.Fatal(err)
	}

	if got := r.signer.calls.Load(); got != 2 {
		t.Errorf("%d signatures were made; a certificate costs 2", got)
	}
	begin := noon.Truncate(time.Second)
	if !cert.NotBefore.Equal(begin) || !cert.NotAfter.Equal(begin.Add(10*time.Minute-time.Second)) {
		t.Errorf("valid from %v to %v", cert.NotBefore, cert.NotAfter)
	}
	if len(cert.SCTs) != 1 || len(cert.Chain) != 2 {
		t.Errorf("%d SCTs, %d certificates in the chain", len(cert.SCTs), len(cert.Chain))
	}
	checkPEM(t, cert)
	checkRecords(t, r, cert)

	if n, err := testutil.GatherAndCount(registry, "mayfly_ca_issuance_seconds"); err != nil || n != int(stages) {
		t.Errorf("%d series of mayfly_ca_issuance_seconds, %v; want one a stage", n, err)
	}
	_, notAfter := r.authority.Validity()
	if got := gauge(t, registry, "mayfly_ca_authority_expiry_timestamp_seconds"); got != float64(notAfter.Unix()) {
		t.Errorf("expiry %v; want %v", got, notAfter.Unix())
	}
}

func checkPEM(t *testing.T, cert *Certificate) {
	t.Helper()
	all := cert.PEM()
	want := append([][]byte{cert.Leaf}, cert.Chain...)
	if len(all) != len(want) {
		t.Fatalf("%d PEM certificates; want %d", len(all), len(want))
	}
	for i, p := range all {
		block, rest := pem.Decode([]byte(p))
		if block == nil || len(rest) > 0 || string(block.Bytes) != string(want[i]) || !strings.HasSuffix(p, "-----END CERTIFICATE-----\n") {
			t.Errorf("PEM %d isn't certificate %d with a final new line:\n%s", i, i, p)
		}
	}
}

func checkRecords(t *testing.T, r *rig, cert *Certificate) {
	t.Helper()
	if got := r.audit.types(); !slices.Equal(got, []audit.Type{audit.Intent, audit.Issued}) {
		t.Fatalf("records %v; want intent, issued", got)
	}
	intent, done := r.audit.events[0], r.audit.events[1]
	if intent.Fingerprint != "" || intent.LogID != "" {
		t.Error("the intent speaks of what isn't yet")
	}
	fingerprint := sha256.Sum256(cert.Leaf)
	for what, pair := range map[string][2]string{
		"request id":  {done.RequestID, "request-1"},
		"serial":      {done.Serial, cert.Serial.Text(16)},
		"fingerprint": {done.Fingerprint, hex.EncodeToString(fingerprint[:])},
		"SAN":         {done.SANType + " " + done.SAN, "email alice@example.com"},
		"subject":     {done.Subject, "alice"},
		"key":         {done.KeyAlgorithm, "ECDSA-P256"},
		"authority":   {done.Authority, "CN=Example intermediate,O=Example"},
		"log":         {done.LogID, hex.EncodeToString(r.log.about.ID[:])},
	} {
		if pair[0] != pair[1] {
			t.Errorf("the record's %s is %q; want %q", what, pair[0], pair[1])
		}
	}
	if done.LogIndex == nil || *done.LogIndex != 0 || done.SCTTimestamp.UnixMilli() != noon.UnixMilli() {
		t.Errorf("log index %v, SCT time %v", done.LogIndex, done.SCTTimestamp)
	}
}

// TestSeveralSCTs: a certificate of several logs carries all their SCTs, and its
// record has what it takes to find it in each.
func TestSeveralSCTs(t *testing.T) {
	t.Parallel()
	logs := []*testLog{newTestLog(t), newTestLog(t), newTestLog(t)}
	r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) {
		p, err := ctlog.NewPolicy([]ctlog.Log{logs[0], logs[1], logs[2]}, ctlog.Options{SCTs: 3, Now: clock})
		if err != nil {
			t.Fatal(err)
		}
		o.Log = p
	})
	who, key := alice(t)
	cert, err := r.issuer.Issue(t.Context(), who, key)
	if err != nil {
		t.Fatal(err)
	}
	list, err := sctListExtension(cert.SCTs)
	if err != nil || len(cert.SCTs) != 3 || !bytes.Contains(cert.Leaf, list) {
		t.Fatalf("%d SCTs, %v; want 3, all in the certificate", len(cert.SCTs), err)
	}
	done := r.audit.events[1]
	recorded := done.SCTs()
	if len(recorded) != 3 {
		t.Fatalf("%d SCTs are on record", len(recorded))
	}
	for i, l := range logs {
		leaf, err := l.entries()[0].LeafHash(cert.SCTs[i])
		if err != nil {
			t.Fatal(err)
		}
		if got := recorded[i]; got.LogID != hex.EncodeToString(l.about.ID[:]) || got.LeafHash != hex.EncodeToString(leaf[:]) || got.LogIndex == nil || got.SCTTimestamp.UnixMilli() != noon.UnixMilli() {
			t.Errorf("SCT %d is on record as %+v", i, got)
		}
	}
}

// TestIssueFails is the table of what goes wrong at each step, and what must not
// have happened by then.
func TestIssueFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("the dependency's own words")
	flip := func(sig []byte) []byte {
		sig[len(sig)-1] ^= 1
		return sig
	}
	_, other := newChain(t, kms.ECDSAP256, 0)
	failOn := func(kind audit.Type) func(*rig) {
		return func(r *rig) {
			r.audit.fail = func(e audit.Event) error {
				if e.Type == kind {
					return broken
				}
				return nil
			}
		}
	}
	signer := func(answer func(ctx context.Context, call int64, sign func() ([]byte, error)) ([]byte, error)) func(*rig) {
		return func(r *rig) { r.signer.answer = answer }
	}
	wrongSCT := func(wrong func(*ctlog.SCT)) func(*rig) {
		return func(r *rig) {
			r.log.wrong = func(_ context.Context, s *ctlog.SCT) error { wrong(s); return nil }
		}
	}
	for _, tt := range []struct {
		name    string
		breaks  func(*rig)
		reason  fault.Reason
		signed  int64 // signatures made
		logged  int   // chains submitted
		records []audit.Type
	}{
		{"the intent can't be recorded", failOn(audit.Intent), fault.AuditUnavailable, 0, 0, nil},
		{"the outcome can't be recorded", failOn(audit.Issued), fault.AuditUnavailable, 2, 1, []audit.Type{audit.Intent, audit.Failed}},
		{"the signer is down", signer(func(context.Context, int64, func() ([]byte, error)) ([]byte, error) { return nil, broken }),
			fault.SignerUnavailable, 1, 0, []audit.Type{audit.Intent, audit.Failed}},
		{"the signer fails after the log took the entry", signer(func(_ context.Context, call int64, sign func() ([]byte, error)) ([]byte, error) {
			if call == 2 {
				return nil, broken
			}
			return sign()
		}), fault.SignerUnavailable, 2, 1, []audit.Type{audit.Intent, audit.Failed}},
		{"the signature is corrupted", signer(func(_ context.Context, call int64, sign func() ([]byte, error)) ([]byte, error) {
			sig, err := sign()
			if call == 2 {
				sig = flip(sig)
			}
			return sig, err
		}), fault.ReasonInternal, 2, 1, []audit.Type{audit.Intent, audit.Failed}},
		{"another key signs", signer(func(ctx context.Context, _ int64, _ func() ([]byte, error)) ([]byte, error) {
			return other.Sign(ctx, make([]byte, 32), crypto.SHA256)
		}), fault.ReasonInternal, 2, 1, []audit.Type{audit.Intent, audit.Failed}},
		{"the signature is empty", signer(func(context.Context, int64, func() ([]byte, error)) ([]byte, error) { return nil, nil }),
			fault.ReasonInternal, 2, 1, []audit.Type{audit.Intent, audit.Failed}},
		{"the log is down", func(r *rig) {
			r.log.wrong = func(context.Context, *ctlog.SCT) error { return fault.New(fault.LogUnavailable, "down") }
		}, fault.LogUnavailable, 1, 1, []audit.Type{audit.Intent, audit.Failed}},
		{"another log's id", wrongSCT(func(s *ctlog.SCT) { s.LogID[0] ^= 1 }), fault.ReasonInternal, 1, 1, []audit.Type{audit.Intent, audit.Failed}},
		{"a wrong signature", wrongSCT(func(s *ctlog.SCT) { s.Signature = flip(s.Signature) }), fault.ReasonInternal, 1, 1, []audit.Type{audit.Intent, audit.Failed}},
		{"an hour off", wrongSCT(func(s *ctlog.SCT) { s.Timestamp -= 3_600_000 }), fault.ReasonInternal, 1, 1, []audit.Type{audit.Intent, audit.Failed}},
		{"the log answers with nothing", func(r *rig) { r.issuer.log = silentLog{} }, fault.ReasonInternal, 1, 0, []audit.Type{audit.Intent, audit.Failed}},
		{"the random source is broken", func(r *rig) { r.issuer.random = strings.NewReader("short") }, fault.ReasonInternal, 0, 0, []audit.Type{audit.Failed}},
		{"the random source is stuck", func(r *rig) { r.issuer.random = stuck{} }, fault.ReasonInternal, 0, 0, []audit.Type{audit.Failed}},
		{"the authority ends too soon", func(r *rig) { _, end := r.authority.Validity(); r.now = at(end.Add(-5 * time.Minute)) }, fault.SignerUnavailable, 0, 0, []audit.Type{audit.Failed}},
		{"the authority hasn't begun", func(r *rig) { begin, _ := r.authority.Validity(); r.now = at(begin.Add(-time.Minute)) }, fault.SignerUnavailable, 0, 0, []audit.Type{audit.Failed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, kms.ECDSAP256)
			who, key := alice(t)
			tt.breaks(r)
			cert, err := r.issuer.Issue(t.Context(), who, key)
			if cert != nil || err == nil {
				t.Fatalf("a certificate left: %v, %v", cert, err)
			}
			f := fault.From(err)
			if f.Reason != tt.reason {
				t.Errorf("reason %s; want %s (%v)", f.Reason, tt.reason, err)
			}
			if strings.Contains(f.Public, broken.Error()) {
				t.Errorf("the public text repeats the dependency's: %q", f.Public)
			}
			if got := r.signer.calls.Load(); got != tt.signed {
				t.Errorf("%d signatures were asked for; want %d", got, tt.signed)
			}
			if got := len(r.log.entries()); got != tt.logged {
				t.Errorf("%d submissions; want %d", got, tt.logged)
			}
			if got := r.audit.types(); !slices.Equal(got, tt.records) {
				t.Errorf("records %v; want %v", got, tt.records)
			}
		})
	}
}

func at(now time.Time) func() time.Time { return func() time.Time { return now } }

type silentLog struct{}

func (silentLog) Submit(context.Context, ctlog.Chain) ([]ctlog.SCT, error) { return nil, nil }

func (silentLog) Accepts(context.Context, ctlog.Chain) error { return nil }

type stuck struct{}

func (stuck) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestASignatureThatNeverComes: the request's own deadline ends a signature that never comes.
func TestASignatureThatNeverComes(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]int64{"the precertificate's": 1, "the certificate's": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, kms.ECDSAP256)
			who, key := alice(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			r.signer.answer = func(ctx context.Context, got int64, sign func() ([]byte, error)) ([]byte, error) {
				if got < call {
					return sign()
				}
				cancel(context.DeadlineExceeded)
				<-ctx.Done()
				return nil, ctx.Err()
			}
			_, err := r.issuer.Issue(deadline{ctx}, who, key)
			if f := fault.From(err); f.Reason != fault.DeadlineReached {
				t.Fatalf("reason %s, %v", f.Reason, err)
			}
			if got := r.audit.types(); !slices.Equal(got, []audit.Type{audit.Intent, audit.Failed}) {
				t.Errorf("records %v: the outcome is written though the request's time is over", got)
			}
		})
	}
}

// deadline is a context whose end reads as an elapsed deadline, without a clock.
type deadline struct{ context.Context }

func (d deadline) Err() error {
	if d.Context.Err() == nil {
		return nil
	}
	return context.DeadlineExceeded
}

func TestClientGone(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256)
	who, key := alice(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.log.wrong = func(context.Context, *ctlog.SCT) error { cancel(); return nil } // the SCT is good, the client isn't there
	_, err := r.issuer.Issue(ctx, who, key)
	if f := fault.From(err); f.Reason != fault.ClientGone {
		t.Fatalf("reason %s, %v", f.Reason, err)
	}
}

func TestIssueRefusesTheUnverified(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256)
	who, key := alice(t)
	for name, pair := range map[string]struct {
		who identity.Principal
		key proof.Key
	}{"nobody": {identity.Principal{}, key}, "no key": {who, proof.Key{}}, "neither": {}} {
		_, err := r.issuer.Issue(t.Context(), pair.who, pair.key)
		if fault.From(err).Kind() != fault.Internal || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r.signer.calls.Load() != 0 || len(r.audit.types()) != 0 {
		t.Error("something was signed or recorded")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	a, log, good := testAuthority(t, kms.ECDSAP256), silentLog{}, DefaultConfig()
	good.Authority = authority.Config{Chain: "c", Key: "file:k"}
	taken := prometheus.NewRegistry()
	if _, err := New(good, Options{Authorities: authority.Single(a), Log: log, Auditor: &recorder{}, Metrics: taken}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		c    Config
		o    Options
		want string
	}{
		{"zero config", Config{}, Options{Authorities: authority.Single(a), Log: log, Auditor: &recorder{}}, "ca.lifetime: 0s is out of bounds"},
		{"no authority", good, Options{Log: log, Auditor: &recorder{}}, "no authority"},
		{"no auditor", good, Options{Authorities: authority.Single(a), Log: log}, "no auditor"},
		{"no log", good, Options{Authorities: authority.Single(a), Auditor: &recorder{}}, "accept_unlogged: true"},
		{"log and unlogged", good, Options{Authorities: authority.Single(a), Log: log, AcceptUnlogged: true, Auditor: &recorder{}}, "contradict"},
		{"metrics taken", good, Options{Authorities: authority.Single(a), Log: log, Auditor: &recorder{}, Metrics: taken}, "registering metrics"},
	} {
		if _, err := New(tt.c, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
	}
}

// TestUnlogged: what the operator asked for by name has no SCT list, and costs
// one signature.
func TestUnlogged(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Log, o.AcceptUnlogged = nil, true })
	who, key := alice(t)
	cert, err := r.issuer.Issue(t.Context(), who, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(cert.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range c.Extensions {
		if e.Id.Equal(ctlog.OIDPoison) || e.Id.Equal(ctlog.OIDSCTList) {
			t.Errorf("extension %v", e.Id)
		}
	}
	if r.signer.calls.Load() != 1 || len(cert.SCTs) != 0 || len(r.log.entries()) != 0 {
		t.Errorf("%d signatures, %d SCTs, %d submissions", r.signer.calls.Load(), len(cert.SCTs), len(r.log.entries()))
	}
}

// TestConcurrentIssuance: serial numbers differ, and an authority that is
// exchanged meanwhile is never mixed with the one before.
func TestConcurrentIssuance(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256)
	next := testAuthority(t, kms.ECDSAP384)
	who, key := alice(t)
	const callers, each = 8, 4
	certs := make(chan *Certificate, callers*each)
	var wait sync.WaitGroup
	for range callers {
		wait.Go(func() {
			for n := range each {
				if n == each/2 {
					r.issuer.Use(authority.Single(next))
				}
				cert, err := r.issuer.Issue(t.Context(), who, key)
				if err != nil {
					t.Error(err)
					return
				}
				certs <- cert
			}
		})
	}
	wait.Wait()
	close(certs)
	serials := make(map[string]bool)
	for cert := range certs {
		serials[cert.Serial.String()] = true
		leaf, err := x509.ParseCertificate(cert.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		issuer, err := x509.ParseCertificate(cert.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := leaf.CheckSignatureFrom(issuer); err != nil {
			t.Error(err)
		}
	}
	if len(serials) != callers*each {
		t.Errorf("%d serial numbers for %d certificates", len(serials), callers*each)
	}
	if got := r.issuer.Chains(); len(got) != 1 || string(got[0][0]) != string(next.Chain[0]) {
		t.Error("the trust bundle isn't the active authority's")
	}
}

// TestFailedAttemptNeverReusesASerial: a retry draws its own.
func TestFailedAttemptNeverReusesASerial(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256)
	who, key := alice(t)
	r.log.wrong = func(context.Context, *ctlog.SCT) error { return fault.New(fault.LogUnavailable, "down") }
	for range 3 {
		if _, err := r.issuer.Issue(t.Context(), who, key); err == nil {
			t.Fatal("a certificate without a log")
		}
	}
	serials := make(map[string]bool)
	for _, c := range r.log.entries() {
		cert, err := x509.ParseCertificate(c.Precertificate)
		if err != nil {
			t.Fatal(err)
		}
		serials[cert.SerialNumber.String()] = true
	}
	if len(serials) != 3 {
		t.Errorf("%d serial numbers in 3 attempts", len(serials))
	}
}

func TestNothingSecretIsLogged(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Logger = logger })
	r.signer.answer = func(context.Context, int64, func() ([]byte, error)) ([]byte, error) { return []byte("bad"), nil }
	who, key := alice(t)
	if _, err := r.issuer.Issue(t.Context(), who, key); err == nil {
		t.Fatal("a bad signature left")
	}
	if !strings.Contains(out.String(), "was not released") || strings.Contains(out.String(), "alice") {
		t.Errorf("log: %s", out.String())
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256)
	if err := r.issuer.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	r.signer.answer = func(context.Context, int64, func() ([]byte, error)) ([]byte, error) { return []byte("bad"), nil }
	if err := r.issuer.Ready(t.Context()); fault.From(err).Reason != fault.SignerUnavailable {
		t.Errorf("a signer with bad signatures is ready: %v", err)
	}
	r.signer.answer = nil
	_, end := r.authority.Validity()
	r.now = at(end)
	if err := r.issuer.Ready(t.Context()); fault.From(err).Reason != fault.SignerUnavailable {
		t.Errorf("an expired authority is ready: %v", err)
	}
}

func TestSerialNumbers(t *testing.T) {
	t.Parallel()
	ones, err := cacert.NewSerial(strings.NewReader(strings.Repeat("\xff", 20)))
	if err != nil {
		t.Fatal(err)
	}
	if want := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 159), big.NewInt(1)); ones.Cmp(want) != 0 {
		t.Errorf("20 octets of ones give %x; want 159 bits", ones)
	}
}
