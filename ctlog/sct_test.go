package ctlog_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509util"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
)

// TestSCTEncoding compares our encoder and decoder with certificate-transparency-go's.
func TestSCTEncoding(t *testing.T) {
	t.Parallel()
	ca, key := ctlogtest.NewCA(t), ctlogtest.NewSigner(t)
	index, err := ctlog.LeafIndexExtension(1<<40 - 1)
	if err != nil {
		t.Fatal(err)
	}
	var scts []ctlog.SCT
	for _, extensions := range [][]byte{nil, index} {
		sct := key.SCT(t, ca.Chain(t), time.Now(), extensions)
		scts = append(scts, sct)
		ours, err := sct.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		var theirs ct.SignedCertificateTimestamp
		if rest, err := tls.Unmarshal(ours, &theirs); err != nil || len(rest) > 0 {
			t.Fatalf("certificate-transparency-go can't read our SCT: %v", err)
		}
		back, err := tls.Marshal(theirs)
		if err != nil || !bytes.Equal(back, ours) {
			t.Errorf("another encoding: %x, ours %x (%v)", back, ours, err)
		}
		parsed, err := ctlog.ParseSCT(back)
		if err != nil || parsed.Timestamp != sct.Timestamp || parsed.LogID != sct.LogID ||
			!bytes.Equal(parsed.Extensions, sct.Extensions) || !bytes.Equal(parsed.Signature, sct.Signature) {
			t.Errorf("ParseSCT(Marshal(s)) = %+v, %v; want %+v", parsed, err, sct)
		}
	}
	list, err := ctlog.MarshalList(scts)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := x509util.MarshalSCTsIntoSCTList(theirSCTs(t, scts))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := tls.Marshal(*theirs)
	if err != nil || !bytes.Equal(raw, list) {
		t.Errorf("another list: %x, ours %x (%v)", raw, list, err)
	}
	if got, err := ctlog.ParseList(list); err != nil || len(got) != len(scts) {
		t.Errorf("ParseList: %d SCTs, %v", len(got), err)
	}
	if got, ok := scts[1].LeafIndex(); !ok || got != 1<<40-1 {
		t.Errorf("LeafIndex = %d, %v", got, ok)
	}
	if _, ok := scts[0].LeafIndex(); ok {
		t.Error("a leaf index out of nothing")
	}
}

func theirSCTs(t *testing.T, scts []ctlog.SCT) []*ct.SignedCertificateTimestamp {
	t.Helper()
	var out []*ct.SignedCertificateTimestamp
	for _, s := range scts {
		raw, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		one := new(ct.SignedCertificateTimestamp)
		if _, err := tls.Unmarshal(raw, one); err != nil {
			t.Fatal(err)
		}
		out = append(out, one)
	}
	return out
}

// TestVerifyAgainst: what we sign certificate-transparency-go verifies, and the TBS
// without poison is the one that it derives.
func TestVerifyAgainst(t *testing.T) {
	t.Parallel()
	ca, key := ctlogtest.NewCA(t), ctlogtest.NewSigner(t)
	chain := ca.Chain(t)
	sct := key.SCT(t, chain, time.Now(), nil)
	if err := sct.Verify(&key.Key.PublicKey, chain); err != nil {
		t.Errorf("Verify: %v", err)
	}
	leaf, err := ct.MerkleTreeLeafFromRawChain(
		[]ct.ASN1Cert{{Data: chain.Precertificate}, {Data: chain.Issuers[0]}, {Data: chain.Issuers[1]}}, ct.PrecertLogEntryType, sct.Timestamp)
	if err != nil {
		t.Fatal(err)
	}
	if got := leaf.TimestampedEntry.PrecertEntry; !bytes.Equal(got.TBSCertificate, chain.TBS) || got.IssuerKeyHash != chain.IssuerKeyHash {
		t.Error("certificate-transparency-go derives another TBS or issuer key hash")
	}
	verifier, err := ct.NewSignatureVerifier(&key.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifier.VerifySCTSignature(*theirSCTs(t, []ctlog.SCT{sct})[0], ct.LogEntry{Leaf: *leaf}); err != nil {
		t.Errorf("certificate-transparency-go: %v", err)
	}
	for name, change := range map[string]func(*ctlog.SCT, *ctlog.Chain){
		"timestamp":       func(s *ctlog.SCT, _ *ctlog.Chain) { s.Timestamp++ },
		"extensions":      func(s *ctlog.SCT, _ *ctlog.Chain) { s.Extensions = []byte{0} },
		"signature":       func(s *ctlog.SCT, _ *ctlog.Chain) { s.Signature = s.Signature[1:] },
		"empty signature": func(s *ctlog.SCT, _ *ctlog.Chain) { s.Signature = nil },
		"issuer":          func(_ *ctlog.SCT, c *ctlog.Chain) { c.IssuerKeyHash[0] ^= 1 },
		"tbs":             func(_ *ctlog.SCT, c *ctlog.Chain) { c.TBS = c.TBS[1:] },
	} {
		s, c := sct, chain
		change(&s, &c)
		if err := s.Verify(&key.Key.PublicKey, c); err == nil {
			t.Errorf("changed %s: still verifies", name)
		}
	}
	if err := sct.Verify(nil, chain); err == nil {
		t.Error("verified without a key")
	}
}

// TestPrecertificateTBS: only exactly one proper poison is taken out.
func TestPrecertificateTBS(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	precert := ca.Chain(t).Precertificate
	parsed, err := ctx509.ParseCertificate(precert)
	if parsed == nil || ctx509.IsFatal(err) {
		t.Fatal(err)
	}
	theirs, err := ctx509.RemoveCTPoison(parsed.RawTBSCertificate)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := ctlog.PrecertificateTBS(precert, ca.Intermediate)
	if err != nil || !bytes.Equal(ours, theirs) {
		t.Errorf("another TBS than certificate-transparency-go's (%v)", err)
	}
	for name, der := range map[string][]byte{
		"no poison":  ca.Certificate(t)[0],
		"uncritical": ca.Issue(t, true, func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }),
		"not null":   ca.Issue(t, true, func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{4, 0} }),
		"trailing":   append(bytes.Clone(precert), 0),
		"empty":      nil,
	} {
		if _, err := ctlog.PrecertificateTBS(der, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseList(f *testing.F) {
	s := ctlog.SCT{Timestamp: 1, Extensions: []byte{0, 0, 5, 0, 0, 0, 0, 9}, Signature: []byte{0x30, 0}}
	list, err := ctlog.MarshalList([]ctlog.SCT{s, s})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(list)
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		scts, err := ctlog.ParseList(data)
		if err != nil {
			return
		}
		back, err := ctlog.MarshalList(scts)
		if err != nil || !bytes.Equal(back, data) {
			t.Errorf("MarshalList(ParseList(x)) = %x, %v; want %x", back, err, data)
		}
		for _, s := range scts {
			if _, ok := s.LeafIndex(); ok && s.CheckExtensions() != nil {
				t.Error("a leaf index in malformed extensions")
			}
		}
	})
}

// TestTBSUnderAPrecertificateSigningCertificate: of a precertificate that a precertificate signing certificate
// signed, the TBS is that of the final certificate, byte for byte, and
// certificate-transparency-go derives the same (RFC 6962 §3.2).
func TestTBSUnderAPrecertificateSigningCertificate(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	chain, final := ca.ChainOfSigner(t)
	certificate, err := ctx509.ParseCertificate(final(ctlog.SCT{}))
	if certificate == nil || ctx509.IsFatal(err) {
		t.Fatal(err)
	}
	want, err := ctx509.RemoveSCTList(certificate.RawTBSCertificate)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(chain.TBS, want) {
		t.Error("the TBS that the log signs is not the final certificate's")
	}
	precert, err := ctx509.ParseCertificate(chain.Precertificate)
	if precert == nil || ctx509.IsFatal(err) {
		t.Fatal(err)
	}
	signer, err := ctx509.ParseCertificate(ca.PrecertificateSigner.Raw)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ctx509.BuildPrecertTBS(precert.RawTBSCertificate, signer)
	if err != nil || !bytes.Equal(chain.TBS, theirs) {
		t.Errorf("another TBS than certificate-transparency-go's (%v)", err)
	}
	if chain.IssuerKeyHash != sha256.Sum256(ca.Intermediate.RawSubjectPublicKeyInfo) {
		t.Error("the issuer key hash is not the final issuer's")
	}
	keyless := *ca.PrecertificateSigner
	keyless.Extensions = nil
	for name, try := range map[string]func() error{
		"without its issuer": func() error {
			_, err := ctlog.NewChain(chain.Precertificate, [][]byte{ca.PrecertificateSigner.Raw})
			return err
		},
		"with another issuer": func() error {
			_, err := ctlog.NewChain(chain.Precertificate, [][]byte{ca.PrecertificateSigner.Raw, ca.Root.Raw})
			return err
		},
		"of another signer": func() error {
			_, err := ctlog.PrecertificateTBS(ca.Chain(t).Precertificate, ca.PrecertificateSigner)
			return err
		},
		"a signer without an authority key identifier": func() error {
			_, err := ctlog.PrecertificateTBS(chain.Precertificate, &keyless)
			return err
		},
	} {
		if try() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzPrecertificateTBS(f *testing.F) {
	f.Add([]byte{0x30, 0})
	ca := ctlogtest.NewCA(f)
	presigned, _ := ca.ChainOfSigner(f)
	f.Add(ca.Chain(f).Precertificate)
	f.Add(presigned.Precertificate)
	f.Add(ca.Certificate(f)[0])
	signer, err := ctx509.ParseCertificate(ca.PrecertificateSigner.Raw)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		tbs, err := ctlog.PrecertificateTBS(der, nil)
		if err == nil && len(tbs) >= len(der) {
			t.Error("the TBS without poison is longer than the certificate")
		}
		// Where both readers take it, they derive the same.
		tbs, err = ctlog.PrecertificateTBS(der, ca.PrecertificateSigner)
		parsed, _ := ctx509.ParseCertificate(der)
		if err != nil || parsed == nil {
			return
		}
		if theirs, err := ctx509.BuildPrecertTBS(parsed.RawTBSCertificate, signer); err == nil && !bytes.Equal(tbs, theirs) {
			t.Errorf("another TBS than certificate-transparency-go's: %x, want %x", tbs, theirs)
		}
	})
}
