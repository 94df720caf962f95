package guard_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/mayfly-ca/mayfly/ca/revocation"
	"github.com/mayfly-ca/mayfly/ca/revocation/guard"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

// signed is when the certificates begin.
var signed = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// authorities are a trusted root.
type authorities struct {
	*root.BaseTrustedMaterial
	list []root.CertificateAuthority
}

func (a authorities) FulcioCertificateAuthorities() []root.CertificateAuthority { return a.list }

// newInstance has an authority, listed twice as after an excision, a list of it with the
// serial 2, and certificates with the serials 1 and 2.
func newInstance(t testing.TB) (trusted root.TrustedMaterial, list *revocation.List, good, bad *x509.Certificate) {
	t.Helper()
	key, rootKey := catest.Key(t), catest.Key(t)
	top := catest.Sign(t, catest.Authority("Example", "root", signed.AddDate(-1, 0, 0), signed.AddDate(9, 0, 0)), nil, rootKey.Public(), rootKey)
	issuing := catest.Sign(t, catest.Authority("Example", "issuing", signed.AddDate(-1, 0, 0), signed.AddDate(9, 0, 0)), top, key.Public(), rootKey)
	leaf := func(serial int64) *x509.Certificate {
		return catest.Sign(t, &x509.Certificate{
			SerialNumber: big.NewInt(serial), NotBefore: signed, NotAfter: signed.Add(10 * time.Minute),
			EmailAddresses: []string{"alice@example.com"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		}, issuing, catest.Key(t).Public(), key)
	}
	since, err := asn1.MarshalWithParams(signed.AddDate(-1, 0, 0), "generalized")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: signed.AddDate(0, 1, -1), NextUpdate: signed.AddDate(0, 1, 6),
		ExtraExtensions:           []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 60}, Value: since}},
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(2), RevocationTime: signed.AddDate(0, 0, 20)}},
	}, issuing, key)
	if err != nil {
		t.Fatal(err)
	}
	if list, err = revocation.Parse(der); err != nil {
		t.Fatal(err)
	}
	ca := &root.FulcioCertificateAuthority{Root: top, Intermediates: []*x509.Certificate{issuing}, ValidityPeriodStart: signed.AddDate(-1, 0, 0)}
	return authorities{new(root.BaseTrustedMaterial), []root.CertificateAuthority{ca, ca}}, list, leaf(1), leaf(2)
}

// TestVerifierRefuses: sigstore-go's verifier takes what isn't listed and refuses what
// is, at each time in the certificate's life, and the reason isn't lost. The list's
// freshness goes by our time, not the signature's.
func TestVerifierRefuses(t *testing.T) {
	t.Parallel()
	trusted, list, good, bad := newInstance(t)
	later := signed.AddDate(0, 1, 0)
	for _, at := range []time.Duration{0, 5 * time.Minute, 10 * time.Minute} {
		for name, test := range map[string]struct {
			certificate *x509.Certificate
			source      revocation.Source
			now         time.Time
			kind        revocation.Kind
		}{
			"good":         {good, revocation.From(list), later, ""},
			"revoked":      {bad, revocation.From(list), later, revocation.Revoked},
			"stale":        {good, revocation.From(list), later.AddDate(1, 0, 0), revocation.Stale},
			"without list": {good, revocation.From(), later, revocation.Missing},
		} {
			t.Run(fmt.Sprintf("%s at %v", name, at), func(t *testing.T) {
				m := guard.New(trusted, test.source, revocation.Terms{Now: test.now})
				chains, err := verify.VerifyLeafCertificate(signed.Add(at), test.certificate, m)
				if (err == nil) != (test.kind == "") || (len(chains) > 0) != (test.kind == "") {
					t.Errorf("sigstore-go says %v", err)
				}
				if refusal := m.Refusal(); test.kind == "" && refusal != nil || test.kind != "" && !errors.Is(refusal, &revocation.Refusal{Kind: test.kind}) {
					t.Errorf("refused for %v, want %q", refusal, test.kind)
				}
			})
		}
	}
	m := guard.New(trusted, revocation.From(list), revocation.Terms{Now: later})
	if _, err := verify.VerifyLeafCertificate(signed.Add(time.Hour), bad, m); err == nil || m.Refusal() != nil {
		t.Errorf("outside of its life the list isn't asked: %v, %v", err, m.Refusal())
	}
}

// Example has a verifier refuse what was signed with a revoked certificate.
func Example() {
	trusted, list, _, certificate := newInstance(new(testing.T)) // of root.NewTrustedRootFromPath, revocation.Parse, …

	guarded := guard.New(trusted, revocation.From(list), revocation.Terms{Now: signed.AddDate(0, 1, 0)}) // time.Now()
	if _, err := verify.NewVerifier(guarded, verify.WithSignedTimestamps(1)); err != nil {               // and its Verify
		fmt.Println(err)
	}
	_, err := verify.VerifyLeafCertificate(signed, certificate, guarded)

	refusal := new(revocation.Refusal)
	if err != nil && errors.As(guarded.Refusal(), &refusal) {
		fmt.Println(refusal.Kind, "-", refusal)
	}
	// Output: revoked - the certificate 2 is revoked (reason code 0): nothing that was ever signed with it counts
}
