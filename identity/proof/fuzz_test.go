package proof

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// FuzzSPKI: no input panics; what parses is what the standard library reads,
// in its canonical encoding.
func FuzzSPKI(f *testing.F) {
	policy := newPolicy(f)
	for _, k := range acceptedKeys() {
		der := spkiOf(f, k.signer.Public())
		f.Add(der)
		f.Add(toPEM("PUBLIC KEY", der))
		f.Add(toPEM("PRIVATE KEY", der))
	}
	f.Add(ecSPKI(f, pubkey.Curves[0].OID, []byte{0}))
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		der, err := decodeKey(in)
		if err != nil {
			wantFault(t, err, fault.KeyMalformed)
			return
		}
		agree(t, policy, der)
	})
}

// FuzzCSR: no input panics; a request that is accepted has a key that the
// standard library finds in it too, when it can read the request at all: it
// reads the extensions, which we don't.
func FuzzCSR(f *testing.F) {
	policy := newPolicy(f)
	for _, k := range acceptedKeys() {
		f.Add(makeCSR(f, k.signer, &x509.CertificateRequest{DNSNames: []string{"a.example"}}))
	}
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		if len(der) > MaxCSRBytes/2 {
			return // over the limit in PEM
		}
		key, err := policy.CSR(pem.EncodeToMemory(&pem.Block{Type: labelCSR, Bytes: der}))
		if err != nil {
			wantFault(t, err, fault.From(err).Reason)
			return
		}
		theirs, err := x509.ParseCertificateRequest(der)
		if err != nil {
			return
		}
		if string(theirs.RawSubjectPublicKeyInfo) != string(key.SPKI()) {
			t.Fatalf("found %x, the standard library %x", key.SPKI(), theirs.RawSubjectPublicKeyInfo)
		}
		if err := theirs.CheckSignature(); err != nil {
			t.Fatalf("accepted a signature that the standard library refuses: %v", err)
		}
	})
}

// FuzzProof: no signature panics, and none but the key's own verifies.
func FuzzProof(f *testing.F) {
	policy := newPolicy(f)
	keys := acceptedKeys()
	for i, k := range keys {
		f.Add(uint8(i), prove(f, k.signer, "mallory"))
		f.Add(uint8(i), []byte{0x30, 6, 2, 1, 0, 2, 1, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, sig []byte) {
		k := keys[int(which)%len(keys)]
		_, err := policy.signature(spkiOf(t, k.signer.Public()), sig, []string{email})
		switch {
		case len(sig) == 0:
			wantFault(t, err, fault.ProofMissing)
		case len(sig) > MaxProofBytes:
			wantFault(t, err, fault.ProofTooLarge)
		default:
			wantFault(t, err, fault.ProofInvalid)
		}
	})
}

// The parts of a proof's cost: the whole, by kind of key, beside the bare
// verification of the standard library.
func BenchmarkSignature(b *testing.B) {
	policy := newPolicy(b)
	for _, k := range acceptedKeys() {
		spki, sig := toPEM("PUBLIC KEY", spkiOf(b, k.signer.Public())), prove(b, k.signer, email)
		b.Run(k.algorithm, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := policy.signature(spki, sig, challenges); err != nil {
					b.Fatal(err)
				}
			}
		})
		bare := publicKey{public: k.signer.Public(), hash: hashOf(b, k.signer.Public())}
		b.Run(k.algorithm+"-bare", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !bare.signed([]byte(email), sig, bare.hash) {
					b.Fatal("doesn't verify")
				}
			}
		})
	}
}

func BenchmarkCSR(b *testing.B) {
	policy := newPolicy(b)
	for _, algorithm := range []string{"ECDSA-P256", "RSA-2048"} {
		csr := toPEM("CERTIFICATE REQUEST", makeCSR(b, acceptedKey(b, algorithm), &x509.CertificateRequest{}))
		b.Run(algorithm, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := policy.CSR(csr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStrength is what the weak-key checks add to an RSA key.
func BenchmarkStrength(b *testing.B) {
	policy := newPolicy(b)
	for _, algorithm := range []string{"RSA-2048", "RSA-3072", "RSA-4096"} {
		public := acceptedKey(b, algorithm).Public().(*rsa.PublicKey)
		b.Run(algorithm, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := policy.strong(public); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
