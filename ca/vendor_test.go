package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// vendorAuthority loads an authority whose issuing key is the stand-in's.
func vendorAuthority(t *testing.T, s *kmstest.StandIn, key any, form Presign) *Authority {
	t.Helper()
	rootKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Example"}, CommonName: name},
			NotBefore: noon.AddDate(0, -1, 0), NotAfter: noon.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	rootTemplate, issuing := template("root"), template("issuing")
	issuing.MaxPathLenZero, issuing.ExtKeyUsage = true, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	var text string
	root := rootTemplate
	for _, c := range []struct {
		template, parent *x509.Certificate
		public           any
	}{{rootTemplate, rootTemplate, rootKey.Public()}, {issuing, rootTemplate, key}} {
		der, err := x509.CreateCertificate(rand.Reader, c.template, root, c.public, rootKey)
		if err != nil {
			t.Fatal(err)
		}
		if c.template == rootTemplate {
			if root, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
		}
		text = chain.Encode(der) + text
	}
	file := filepath.Join(t.TempDir(), "chain.pem")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := LoadAuthority(t.Context(), AuthorityConfig{
		Chain: setting.Path(file), Key: setting.KeyRef(s.Ref), PrecertificateSigner: form, Access: s.Options.Access,
	}, noon, s.Options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kms.Close(a.signer) })
	return a
}

// TestSignaturesOfTheKMS: the KMS itself counts one signature a certificate with a
// precertificate signing certificate, which is the default there, and two without;
// beside them one at the start to try the key, and one for the signing certificate.
func TestSignaturesOfTheKMS(t *testing.T) {
	t.Parallel()
	for vendor, start := range kmstest.Vendors {
		for _, tt := range []struct {
			form        Presign
			once, every int
		}{{"", 2, 1}, {PresignAuto, 2, 1}, {PresignOn, 2, 1}, {PresignOff, 1, 2}} {
			for _, algorithm := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.RSA3072} {
				if (tt.form == "" || tt.form == PresignOn) && algorithm != kms.ECDSAP256 {
					continue
				}
				t.Run(vendor+" "+string(tt.form)+" "+string(algorithm), func(t *testing.T) {
					t.Parallel()
					key := kmstest.Key(t, algorithm)
					s := start(t, key)
					a := vendorAuthority(t, s, key.Public(), tt.form)
					r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Authorities = One(a) })
					r.authority = a
					if err := r.issuer.Settle(t.Context(), r.issuer.Authorities().Active); err != nil {
						t.Fatal(err)
					}
					const certificates = 5
					mustIssue(t, r, certificates)
					for range 10 {
						if err := r.issuer.Ready(t.Context()); err != nil {
							t.Error(err)
						}
					}
					if got, want := s.Count(s.Sign), tt.once+certificates*tt.every; got != want {
						t.Errorf("the KMS counted %d signatures for %d certificates, want %d", got, certificates, want)
					}
				})
			}
		}
	}
}
