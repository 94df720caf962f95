package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/certificate-transparency-go/ctutil"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	ctx509util "github.com/google/certificate-transparency-go/x509util"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// presigned makes a rig's authority one that wants a precertificate signer.
func presigned(choice authority.SignerChoice) rigOption {
	return func(c *Config, _ *Options) { c.Authority.PrecertificateSigner = choice }
}

// signerInForce is the precertificate signer of a rig's authority.
func signerInForce(r *rig) *authority.PrecertificateSigner {
	return r.authority.PrecertificateSigner(r.authority.LeafValidity(r.now(), authority.Life{Lifetime: DefaultLifetime}))
}

// mustIssue issues so many certificates and gives the last.
func mustIssue(t *testing.T, r *rig, n int) *Certificate {
	t.Helper()
	who, key := alice(t)
	var cert *Certificate
	for range n {
		var err error
		if cert, err = r.issuer.Issue(t.Context(), who, key); err != nil {
			t.Fatalf("Issue: %v", err)
		}
	}
	return cert
}

// TestPrecertificateSigner: with a precertificate signing certificate a certificate costs one
// signature of the authority's key, whatever its algorithm, and every reader that
// knows the issuing certificate alone verifies certificate and SCT.
func TestPrecertificateSigner(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.ECDSAP521, kms.RSA2048} {
		t.Run(string(algorithm), func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewPedanticRegistry()
			r := newRig(t, algorithm, presigned(authority.SignerOn), func(_ *Config, o *Options) { o.Metrics = registry })
			if err := r.issuer.CheckPrecertificateSigner(t.Context(), r.issuer.Authorities().Active); err != nil {
				t.Fatalf("CheckPrecertificateSigner: %v", err)
			}
			if got := r.signer.calls.Load(); got != 1 {
				t.Errorf("%d signatures for the precertificate signing certificate, want 1", got)
			}
			const certificates = 3
			cert := mustIssue(t, r, certificates)
			if got := r.signer.calls.Load(); got != 1+certificates {
				t.Errorf("%d signatures for %d certificates, want one each", got-1, certificates)
			}
			checkSigner(t, r)
			entries := r.log.entries()
			checkPromise(t, r, cert, entries[len(entries)-1])
			want := []audit.Type{audit.Intent, audit.Issued, audit.Intent, audit.Probed}
			if got := r.audit.types()[:4]; !slices.Equal(got, want) {
				t.Errorf("records %v, want %v first", got, want)
			}
			if got := gauge(t, registry, "mayfly_ca_signatures_per_certificate"); got != 1 {
				t.Errorf("signatures a certificate, as the metric has it: %v", got)
			}
			if form := r.issuer.SigningForm(); !strings.HasPrefix(form, "1: ") {
				t.Errorf("form %q", form)
			}
		})
	}
}

// checkSigner holds the rig's precertificate signer to RFC 6962 §3.1.
func checkSigner(t *testing.T, r *rig) {
	t.Helper()
	c := signerInForce(r).Certificate
	if !c.IsCA || !c.BasicConstraintsValid || !c.MaxPathLenZero || len(c.ExtKeyUsage) != 0 || len(c.UnknownExtKeyUsage) != 1 ||
		!c.UnknownExtKeyUsage[0].Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 4}) || c.KeyUsage != x509.KeyUsageCertSign {
		t.Errorf("not a precertificate signing certificate alone: %+v", c)
	}
	if err := c.CheckSignatureFrom(r.authority.Certificate); err != nil {
		t.Error(err)
	}
	if _, end := r.authority.Validity(); c.NotAfter.Sub(c.NotBefore) > 4*24*time.Hour || c.NotAfter.After(end) {
		t.Errorf("valid from %v to %v", c.NotBefore, c.NotAfter)
	}
	if !slices.Equal(c.Subject.Organization, r.authority.Certificate.Subject.Organization) || bytes.Equal(c.RawSubject, c.RawIssuer) {
		t.Errorf("subject %s", c.Subject)
	}
}

// checkPromise verifies the last certificate as those do who see only it and its
// issuer: certificate-transparency-go and crypto/x509.
func checkPromise(t *testing.T, r *rig, cert *Certificate, logged ctlog.Chain) {
	t.Helper()
	derived, err := ctlog.NewChain(logged.Precertificate, logged.Issuers)
	if err != nil || !bytes.Equal(derived.TBS, logged.TBS) || derived.IssuerKeyHash != logged.IssuerKeyHash {
		t.Errorf("a log derives another entry than was promised on (%v)", err)
	}
	if got := sha256.Sum256(r.authority.Certificate.RawSubjectPublicKeyInfo); logged.IssuerKeyHash != got {
		t.Error("the issuer key hash isn't the issuing certificate's")
	}
	precertificate, err := x509.ParseCertificate(logged.Precertificate)
	if err != nil {
		t.Fatal(err)
	}
	signer := signerInForce(r).Certificate
	if err := precertificate.CheckSignatureFrom(signer); err != nil || !bytes.Equal(precertificate.AuthorityKeyId, signer.SubjectKeyId) {
		t.Errorf("the precertificate isn't the precertificate signer's: %v", err)
	}
	if len(cert.Chain) != 2 || bytes.Equal(cert.Chain[0], signer.Raw) {
		t.Error("the client is shown the precertificate signing certificate")
	}
	path := make([]*ctx509.Certificate, 2)
	for i, der := range [][]byte{cert.Leaf, cert.Chain[0]} {
		if path[i], err = ctx509.ParseCertificate(der); path[i] == nil || ctx509.IsFatal(err) {
			t.Fatal(err)
		}
	}
	scts, err := ctx509util.ParseSCTsFromCertificate(cert.Leaf)
	if err != nil || len(scts) != 1 {
		t.Fatalf("%d SCTs, %v", len(scts), err)
	}
	if err := ctutil.VerifySCT(&r.log.key.PublicKey, path, scts[0], true); err != nil {
		t.Errorf("certificate-transparency-go: %v", err)
	}
}

func gauge(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// ofSigner reports whether a chain was signed by a precertificate signing certificate.
func ofSigner(c ctlog.Chain) bool {
	signer, err := x509.ParseCertificate(c.Issuers[0])
	return err == nil && ctlog.SignsPrecertificates(signer)
}

// TestFallbackToTheAuthoritysKey: where a log refuses the form or can't be asked, where the
// key or the audit trail fails, a certificate costs two signatures and is issued all the same;
// only a log that refuses stops the start of a service that insists.
func TestFallbackToTheAuthoritysKey(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	refusing := func(r *rig) { r.log.take = refuse(broken) }
	for name, tt := range map[string]struct {
		choice  authority.SignerChoice
		breaks  func(*rig)
		mends   func(*rig)
		refused bool // CheckPrecertificateSigner fails
		form    string
		calls   int64 // of the key, in CheckPrecertificateSigner
	}{
		"auto, a log that refuses": {breaks: refusing, form: "2: a log refuses", calls: 1},
		"on, a log that refuses":   {choice: authority.SignerOn, breaks: refusing, refused: true, form: "2: a log refuses", calls: 1},
		"auto, a log that is down": {breaks: func(r *rig) { r.log.take = refuse(fault.New(fault.LogUnavailable, "down")) }, form: "2: the logs or the key", calls: 1},
		"on, a log that is down":   {choice: authority.SignerOn, breaks: func(r *rig) { r.log.take = refuse(fault.New(fault.LogUnavailable, "down")) }, form: "2: the logs or the key", calls: 1},
		"auto, a log that promises else": {breaks: func(r *rig) {
			r.log.wrong = func(_ context.Context, s *ctlog.SCT) error { s.Signature[9] ^= 1; return nil }
		}, mends: func(r *rig) { r.log.wrong = nil }, form: "2: a log refuses", calls: 1},
		"on, a key that is out of reach": {choice: authority.SignerOn, breaks: func(r *rig) {
			r.signer.answer = func(context.Context, int64, func() ([]byte, error)) ([]byte, error) { return nil, broken }
		}, mends: func(r *rig) { r.signer.answer = nil }, form: "2: the logs or the key", calls: 1},
		"on, no audit": {choice: authority.SignerOn, breaks: func(r *rig) { r.audit.fail = func(audit.Event) error { return broken } },
			mends: func(r *rig) { r.audit.fail = nil }, form: "2: the logs or the key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, kms.ECDSAP256, presigned(tt.choice))
			tt.breaks(r)
			if err := r.issuer.CheckPrecertificateSigner(t.Context(), r.issuer.Authorities().Active); (err != nil) != tt.refused {
				t.Errorf("CheckPrecertificateSigner: %v; want an error: %t", err, tt.refused)
			}
			if got := r.signer.calls.Load(); got != tt.calls {
				t.Errorf("%d signatures in CheckPrecertificateSigner, want %d", got, tt.calls)
			}
			if form := r.issuer.SigningForm(); !strings.HasPrefix(form, tt.form) {
				t.Errorf("form %q, want %q", form, tt.form)
			}
			if tt.mends != nil {
				tt.mends(r)
			}
			before := r.signer.calls.Load()
			mustIssue(t, r, 1)
			if got := r.signer.calls.Load() - before; got != 2 {
				t.Errorf("%d signatures for the certificate, want 2", got)
			}
		})
	}
}

// TestPrecertificateOfAnother: what a precertificate signer signs is written anew, and no
// log is asked for a promise that isn't the final certificate's.
func TestPrecertificateOfAnother(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256, presigned(authority.SignerOn))
	a := r.issuer.Authorities().Active
	if err := r.issuer.CheckPrecertificateSigner(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	l, poisoned, plain, err := r.issuer.probeLeaf(a, a.Certificate.RawSubjectPublicKeyInfo)
	if err != nil {
		t.Fatal(err)
	}
	p := a.PrecertificateSigner(l.notBefore, l.notAfter)
	if _, err := precertify(t.Context(), a, p, l, poisoned, plain); err != nil {
		t.Errorf("its own: %v", err)
	}
	l.notAfter = l.notAfter.Add(-time.Second)
	if _, err := precertify(t.Context(), a, p, l, poisoned, plain); err == nil || !strings.Contains(err.Error(), "isn't that of the final certificate") {
		t.Errorf("another's: %v", err)
	}
}

// refuse is a log's answer to what a precertificate signer signed.
func refuse(err error) func(ctlog.Chain) error {
	return func(c ctlog.Chain) error {
		if ofSigner(c) {
			return err
		}
		return nil
	}
}

// moving is a clock that begins at noon and moves with the bubble's.
func moving() func() time.Time {
	begin := time.Now()
	return func() time.Time { return noon.Add(time.Since(begin)) }
}

// TestPrecertificateSignerIsRenewed: in twelve days of issuing, the precertificate signer is replaced each
// day and every certificate lies within the one that it was issued under. While it
// can't be replaced the old one serves to its end; after that the authority's key
// signs twice, and nothing fails.
func TestPrecertificateSignerIsRenewed(t *testing.T) {
	t.Parallel()
	who, key := alice(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, kms.ECDSAP256, presigned(authority.SignerAuto), func(_ *Config, o *Options) { o.Now = moving() })
		var stuck atomic.Bool
		r.audit.fail = func(e audit.Event) error {
			if stuck.Load() && e.Purpose == audit.PurposePrecertificateSigner {
				return errors.New("stuck")
			}
			return nil
		}
		if err := r.issuer.CheckPrecertificateSigner(t.Context(), r.issuer.Authorities().Active); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.issuer.Run(ctx) }()
		pass(t, time.Hour/2) // between the hours at which Run has something to do
		const hours = 12*24 - 1
		costs := make([]int64, hours)
		for hour := range hours {
			stuck.Store(hour >= 4*24-1 && hour < 9*24)
			before := r.signer.calls.Load()
			if _, err := r.issuer.Issue(t.Context(), who, key); err != nil {
				t.Fatalf("hour %d: %v", hour, err)
			}
			costs[hour] = r.signer.calls.Load() - before
			pass(t, time.Hour)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		// Replaced last at hour 72, which serves to hour 144; mended after hour 216.
		for hour, cost := range costs {
			want := int64(1)
			if hour >= 144 && hour <= 216 {
				want = 2
			}
			if cost != want {
				t.Errorf("hour %d: %d signatures, want %d", hour, cost, want)
			}
		}
		signers := make(map[string]bool)
		for _, c := range r.log.entries() {
			if !ofSigner(c) {
				continue
			}
			signers[string(c.Issuers[0])] = true
			checkWithin(t, c)
		}
		if len(signers) != 7 { // at 0, 24, 48, 72, then 216, 240, 264 hours
			t.Errorf("%d signers in twelve days with five of trouble, want 7", len(signers))
		}
	})
}

// checkWithin wants a precertificate within its signer's validity.
func checkWithin(t *testing.T, c ctlog.Chain) {
	t.Helper()
	signer, err := x509.ParseCertificate(c.Issuers[0])
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(c.Precertificate)
	if err != nil {
		t.Fatal(err)
	}
	if leaf.NotBefore.Before(signer.NotBefore) || leaf.NotAfter.After(signer.NotAfter) {
		t.Errorf("a precertificate to %v of a signer to %v", leaf.NotAfter, signer.NotAfter)
	}
}

// TestALogThatRefusesLater: a log that stops taking the form costs the requests of
// a moment; the one that takes it again gets it again.
func TestALogThatRefusesLater(t *testing.T) {
	t.Parallel()
	who, key := alice(t)
	synctest.Test(t, func(t *testing.T) {
		var refuses atomic.Bool
		r := newRig(t, kms.ECDSAP256, presigned(authority.SignerOn), func(_ *Config, o *Options) { o.Now = moving() })
		r.log.take = func(c ctlog.Chain) error {
			if refuses.Load() {
				return refuse(errors.New("not any more"))(c)
			}
			return nil
		}
		if err := r.issuer.CheckPrecertificateSigner(t.Context(), r.issuer.Authorities().Active); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.issuer.Run(ctx) }()
		refuses.Store(true)
		if _, err := r.issuer.Issue(t.Context(), who, key); fault.From(err).Kind() != fault.Internal {
			t.Errorf("Issue at a log that refuses: %v", err)
		}
		pass(t, 2*time.Minute)
		before := r.signer.calls.Load()
		if _, err := r.issuer.Issue(t.Context(), who, key); err != nil {
			t.Errorf("Issue after the fallback: %v", err)
		}
		if got := r.signer.calls.Load() - before; got != 2 {
			t.Errorf("%d signatures, want 2", got)
		}
		refuses.Store(false)
		pass(t, 48*time.Hour)
		before = r.signer.calls.Load()
		if _, err := r.issuer.Issue(t.Context(), who, key); err != nil {
			t.Error(err)
		}
		if got := r.signer.calls.Load() - before; got != 1 {
			t.Errorf("%d signatures after the log takes the form again, want 1", got)
		}
		cancel()
		<-done
	})
}

// TestALogThatRefusesAtTheEnd: in an authority's last hours no other precertificate
// signer is made; one that a log begins to refuse then gives way to the authority's
// own key.
func TestALogThatRefusesAtTheEnd(t *testing.T) {
	t.Parallel()
	certs, signer := newChain(t, kms.ECDSAP256, 31*24*time.Hour) // begun a month before noon
	watched := &watchedSigner{Signer: signer}
	a := newAuthority(t, certs, watched, authority.Config{PrecertificateSigner: authority.SignerOn})
	r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Authorities = authority.Single(a) })
	r.signer = watched
	if err := r.issuer.CheckPrecertificateSigner(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	_, end := a.Validity()
	r.now = at(end.Add(-MaxLifetime))
	r.log.take = refuse(errors.New("not any more"))
	who, key := alice(t)
	if _, err := r.issuer.Issue(t.Context(), who, key); fault.From(err).Kind() != fault.Internal {
		t.Errorf("Issue at a log that refuses: %v", err)
	}
	if err := r.issuer.CheckPrecertificateSigner(t.Context(), a); err != nil {
		t.Error(err)
	}
	before := r.signer.calls.Load()
	r.log.take = nil
	mustIssue(t, r, 1)
	if got := r.signer.calls.Load() - before; got != 2 {
		t.Errorf("%d signatures, want 2", got)
	}
}

// TestAnotherAuthorityAnotherSigner: with another authority comes another precertificate signer, without a
// moment in which nothing is issued, and none signs for another's authority.
func TestAnotherAuthorityAnotherSigner(t *testing.T) {
	t.Parallel()
	who, key := alice(t)
	certs, signer := newChain(t, kms.ECDSAP384, 0)
	next := newAuthority(t, certs, &watchedSigner{Signer: signer}, authority.Config{})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, kms.ECDSAP256, presigned(authority.SignerOn), func(_ *Config, o *Options) { o.Now = moving() })
		if err := r.issuer.CheckPrecertificateSigner(t.Context(), r.issuer.Authorities().Active); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.issuer.Run(ctx) }()
		issue := func() {
			if _, err := r.issuer.Issue(t.Context(), who, key); err != nil {
				t.Error(err)
			}
		}
		issue()
		r.issuer.Use(authority.Single(next))
		issue() // by whichever form: Run may not have been there yet
		pass(t, time.Minute)
		if form := r.issuer.SigningForm(); !strings.HasPrefix(form, "1: ") {
			t.Errorf("a minute after the rotation: %s", form)
		}
		issue()
		for n, c := range r.log.entries() {
			if derived, err := ctlog.NewChain(c.Precertificate, c.Issuers); err != nil || derived.IssuerKeyHash != c.IssuerKeyHash {
				t.Errorf("entry %d isn't its issuer's: %v", n, err)
			}
		}
		if last := r.log.entries()[len(r.log.entries())-1]; !ofSigner(last) || last.IssuerKeyHash != next.KeyHash {
			t.Error("the last precertificate isn't of the new authority's precertificate signer")
		}
		cancel()
		<-done
	})
}

// TestProbeNamesNoPerson: what the logs are shown names nobody, and no certificate follows it.
func TestProbeNamesNoPerson(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256, presigned(authority.SignerOn))
	if err := r.issuer.CheckPrecertificateSigner(t.Context(), r.issuer.Authorities().Active); err != nil {
		t.Fatal(err)
	}
	entries := r.log.entries()
	if len(entries) != 1 {
		t.Fatalf("%d entries, want 1", len(entries))
	}
	c, err := x509.ParseCertificate(entries[0].Precertificate)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.URIs) != 1 || c.URIs[0].String() != probeNames[0].Value || len(c.EmailAddresses) != 0 {
		t.Errorf("the probe names %v", c.URIs)
	}
	for _, e := range c.Extensions {
		if strings.HasPrefix(e.Id.String(), "1.3.6.1.4.1.57264.") {
			t.Errorf("the probe has the identity extension %v", e.Id)
		}
	}
	var purposes []string
	for _, e := range r.audit.events {
		purposes = append(purposes, string(e.Type)+" "+e.Purpose)
	}
	want := []string{"intent precertificate_signer", "issued precertificate_signer", "intent probe", "probed probe"}
	if !slices.Equal(purposes, want) {
		t.Errorf("records %v, want %v", purposes, want)
	}
}
