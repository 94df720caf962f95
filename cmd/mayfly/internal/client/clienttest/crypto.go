package clienttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"

	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/tls"
	"github.com/google/certificate-transparency-go/x509util"

	"github.com/mayfly-ca/mayfly/internal/catest"
)

// CheckProof verifies a proof of possession as the API defines it for the key's type.
func CheckProof(public crypto.PublicKey, challenge, proof []byte) error {
	algorithm := x509.PureEd25519
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		algorithm = map[elliptic.Curve]x509.SignatureAlgorithm{
			elliptic.P256(): x509.ECDSAWithSHA256, elliptic.P384(): x509.ECDSAWithSHA384, elliptic.P521(): x509.ECDSAWithSHA512,
		}[key.Curve]
	case *rsa.PublicKey:
		algorithm = x509.SHA256WithRSA // PKCS #1 v1.5
	}
	return (&x509.Certificate{PublicKey: public}).CheckSignature(algorithm, challenge, proof)
}

// sctList is the value of the SCT extension for the TBS without it: an OCTET STRING
// with one SCT (RFC 6962 §3.3), as certificate-transparency-go writes it.
func (c *CA) sctList(tbs []byte) []byte {
	log, at := c.log, c.Start
	if c.Knobs.UnknownLog {
		log = catest.Key(c.t)
	}
	if !c.Knobs.SCTTime.IsZero() {
		at = c.Knobs.SCTTime
	}
	issuer := sha256.Sum256(c.chain[0].RawSubjectPublicKeyInfo)
	if c.Knobs.BadSCT {
		issuer[0] ^= 1
	}
	sct := ct.SignedCertificateTimestamp{
		LogID:      ct.LogID{KeyID: sha256.Sum256(catest.SPKI(c.t, log.Public()))},
		Timestamp:  uint64(at.UnixMilli()),                  // #nosec G115 -- after 1970
		Extensions: ct.CTExtensions{0, 0, 5, 0, 0, 0, 1, 2}, // static-ct: leaf index 258
	}
	signed, err1 := ct.SerializeSCTSignatureInput(sct, ct.LogEntry{Leaf: ct.MerkleTreeLeaf{TimestampedEntry: &ct.TimestampedEntry{
		EntryType: ct.PrecertLogEntryType, PrecertEntry: &ct.PreCert{IssuerKeyHash: issuer, TBSCertificate: tbs},
	}}})
	signature, err2 := tls.CreateSignature(*log, tls.SHA256, signed)
	sct.Signature = ct.DigitallySigned(signature)
	list, err3 := x509util.MarshalSCTsIntoSCTList([]*ct.SignedCertificateTimestamp{&sct})
	c.must(errors.Join(err1, err2, err3))
	encoded, err1 := tls.Marshal(*list)
	value, err2 := asn1.Marshal(encoded)
	c.must(errors.Join(err1, err2))
	return value
}
