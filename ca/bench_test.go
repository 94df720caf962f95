package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// maxAllocations bounds what one Issue may allocate over its two signatures, its
// check's verification, which take 128 of them. It is a bound against
// accidents (a pattern compiled or a key parsed for each request), not a target.
const maxAllocations = 275

// fixedLog answers with one SCT, made beforehand: the log's cost isn't ca's.
type fixedLog struct{ scts []ctlog.SCT }

func (l fixedLog) Submit(context.Context, ctlog.Chain) ([]ctlog.SCT, error) { return l.scts, nil }

func (l fixedLog) Accepts(context.Context, ctlog.Chain) error { return nil }

type deafAuditor struct{}

func (deafAuditor) Record(context.Context, audit.Event) error { return nil }

func benchRig(tb testing.TB) *rig {
	tb.Helper()
	log := newTestLog(tb)
	sct, err := log.Submit(tb.Context(), ctlog.Chain{})
	if err != nil {
		tb.Fatal(err)
	}
	return newRig(tb, kms.ECDSAP256, func(_ *Config, o *Options) {
		o.Log, o.Auditor = fixedLog{[]ctlog.SCT{sct}}, deafAuditor{}
	})
}

// BenchmarkIssue is all of ca for one certificate under a P-256 authority.
func BenchmarkIssue(b *testing.B) {
	r := benchRig(b)
	who, key := alice(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.issuer.Issue(b.Context(), who, key); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBareSignatures is what Issue can't do without: two signatures, and
// one verification of what leaves.
func BenchmarkBareSignatures(b *testing.B) {
	r := benchRig(b)
	digest := sha256.Sum256([]byte("a text of no importance"))
	b.ReportAllocs()
	for b.Loop() {
		var sig []byte
		for range 2 {
			var err error
			if sig, err = r.signer.Signer.Sign(b.Context(), digest[:], crypto.SHA256); err != nil {
				b.Fatal(err)
			}
		}
		if err := pubkey.Verify(r.signer.Public(), crypto.SHA256, digest[:], sig); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStages splits what Issue adds.
func BenchmarkStages(b *testing.B) {
	r := benchRig(b)
	who, key := alice(b)
	l, err := r.issuer.profile(r.authority, who, key)
	if err != nil {
		b.Fatal(err)
	}
	tbs, err := l.tbs(r.authority, poisonDER)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := r.issuer.Issue(b.Context(), who, key)
	if err != nil {
		b.Fatal(err)
	}
	for name, run := range map[string]func() error{
		"profile": func() error { _, err := r.issuer.profile(r.authority, who, key); return err },
		"tbs":     func() error { _, err := l.tbs(r.authority, poisonDER); return err },
		"lint":    func() error { return lint(tbs, l, r.authority, DefaultLifetime) },
		"replace": func() error { _, err := replaceExtension(tbs, ctlog.OIDPoison, nil); return err },
		"parse":   func() error { _, err := x509.ParseCertificate(cert.Leaf); return err },
		"event":   func() error { _ = event(b.Context(), r.authority, l, who, key); return nil },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestIssueAllocations holds Issue to its bound.
func TestIssueAllocations(t *testing.T) {
	r := benchRig(t)
	who, key := alice(t)
	got := testing.AllocsPerRun(100, func() {
		if _, err := r.issuer.Issue(t.Context(), who, key); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%.0f allocations", got)
	if got > maxAllocations {
		t.Errorf("%.0f allocations; at most %d", got, maxAllocations)
	}
}
