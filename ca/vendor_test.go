package ca

import (
	"crypto"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// vendorAuthority loads an authority whose issuing key is the stand-in's.
func vendorAuthority(t *testing.T, s *kmstest.StandIn, key crypto.PublicKey, choice authority.SignerChoice) *authority.Authority {
	t.Helper()
	a, err := authority.Load(t.Context(), authority.Config{
		Chain: writeChain(t, chainFor(t, key, cacert.Profile{})), Key: setting.KeyRef(s.Ref), PrecertificateSigner: choice, Access: s.Options.Access,
	}, authority.LoadOptions{Now: noon, KMS: s.Options})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// TestSignaturesOfTheKMS: the KMS itself counts one signature a certificate with a
// precertificate signing certificate, which is the default there, and two without;
// beside them one at the start to try the key, and one for the signing certificate.
func TestSignaturesOfTheKMS(t *testing.T) {
	t.Parallel()
	for vendor, start := range kmstest.Vendors {
		for _, tt := range []struct {
			choice      authority.SignerChoice
			once, every int
		}{{"", 2, 1}, {authority.SignerAuto, 2, 1}, {authority.SignerOn, 2, 1}, {authority.SignerOff, 1, 2}} {
			for _, algorithm := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.RSA3072} {
				if (tt.choice == "" || tt.choice == authority.SignerOn) && algorithm != kms.ECDSAP256 {
					continue
				}
				t.Run(vendor+" "+string(tt.choice)+" "+string(algorithm), func(t *testing.T) {
					t.Parallel()
					key := kmstest.Key(t, algorithm)
					s := start(t, key)
					a := vendorAuthority(t, s, key.Public(), tt.choice)
					r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) { o.Authorities = authority.Single(a) })
					if err := r.issuer.CheckPrecertificateSigner(t.Context(), r.issuer.Authorities().Active); err != nil {
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
