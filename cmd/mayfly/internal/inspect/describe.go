// Package inspect puts a certificate into words: for a person, and as JSON. It
// takes any X.509 input and vouches for nothing that it hasn't verified.
package inspect

import (
	"cmp"
	"crypto/sha1" // #nosec G505 -- a fingerprint that people compare, nothing relies on it
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// Description is what there is to say about the first certificate of a file and
// the chain that follows it. Values are exact; only printing escapes them.
type Description struct {
	Identity       []extension.SAN    `json:"identity"`       // the SAN entries, in their order
	RecordedIssuer string             `json:"recordedIssuer"` // who vouched for the identity; "" when none is recorded
	Extensions     []extension.Listed `json:"extensions"`     // 1.3.6.1.4.1.57264.1.N, in their order
	Serial         string             `json:"serial"`         // hexadecimal
	NotBefore      time.Time          `json:"notBefore"`
	NotAfter       time.Time          `json:"notAfter"` // inclusive
	Key            Key                `json:"key"`
	Subject        string             `json:"subject"` // RFC 4514; empty in what Mayfly issues
	Issuer         string             `json:"issuer"`  // RFC 4514: the certificate that signed it
	Signature      string             `json:"signatureAlgorithm"`
	CA             bool               `json:"ca"`
	Usages         []string           `json:"usages"`
	Others         []extension.Other  `json:"otherExtensions"`
	SHA256         string             `json:"sha256"`
	SHA1           string             `json:"sha1"`
	SCTs           []SCT              `json:"scts"`
	SCTFault       string             `json:"sctFault,omitempty"` // the SCT list is there and can't be read
	Chain          []Link             `json:"chain"`              // what follows in the file, as it came
	Verified       bool               `json:"verified"`           // the chain, for code signing, at notBefore
	Why            string             `json:"why,omitempty"`      // why it is not verified
}

// Key is the public key.
type Key struct {
	Algorithm string `json:"algorithm"`
	SHA256    string `json:"sha256"` // of the SubjectPublicKeyInfo
}

// SCT is one signed certificate timestamp.
type SCT struct {
	LogID     string     `json:"logId"` // base64, as in a trusted root
	LogURL    string     `json:"logUrl,omitempty"`
	Time      *time.Time `json:"time,omitempty"` // nil when out of range
	LeafIndex *uint64    `json:"leafIndex,omitempty"`
	Verified  bool       `json:"verified"`
	Why       string     `json:"why,omitempty"` // why it is not verified
}

// Link is a certificate of the chain.
type Link struct {
	Subject  string    `json:"subject"`
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"notAfter"`
	SHA256   string    `json:"sha256"`
}

// MaxBytes is how much of a file is worth reading.
const MaxBytes = 1 << 20

// maxCertificates bounds what is shown of a hostile file.
const maxCertificates = 64

// Parse reads certificates, see [pemfile.CertificatesAmong]. None is an error.
func Parse(data []byte) ([]*x509.Certificate, error) {
	certs, err := pemfile.CertificatesAmong(data)
	if err == nil && len(certs) > maxCertificates {
		return nil, fmt.Errorf("there are over %d certificates in it", maxCertificates)
	}
	return certs, err
}

// Describe describes the first certificate; the rest is its chain. trust may be
// nil: then nothing counts as verified.
func Describe(certs []*x509.Certificate, trust *client.Trust) Description {
	cert := certs[0]
	d := Description{
		Identity:  extension.SANs(cert),
		Serial:    cert.SerialNumber.Text(16),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
		Key:     Key{Algorithm: cmp.Or(pubkey.Name(cert.PublicKey), cert.PublicKeyAlgorithm.String()), SHA256: hex256(cert.RawSubjectPublicKeyInfo)},
		Subject: cert.Subject.String(), Issuer: cert.Issuer.String(),
		Signature: cert.SignatureAlgorithm.String(), CA: cert.IsCA, Usages: extension.Usages(cert),
		SHA256: hex256(cert.Raw),
		SHA1:   fmt.Sprintf("%x", sha1.Sum(cert.Raw)), // #nosec G401 -- as above
		SCTs:   []SCT{}, Chain: []Link{},
	}
	d.Extensions, d.Others = extension.List(cert)
	if set, err := extension.Parse(cert.Extensions); err == nil {
		d.RecordedIssuer = set.Issuer
	}
	for _, c := range certs[1:] {
		d.Chain = append(d.Chain, Link{Subject: c.Subject.String(), Issuer: c.Issuer.String(), NotAfter: c.NotAfter.UTC(), SHA256: hex256(c.Raw)})
	}
	d.verify(cert, trust)
	return d
}

// NoTrust is why nothing is verified without a trusted root.
const NoTrust = "no trusted root was given (--trusted-root FILE)"

// verify fills in the chain's and the SCTs' results.
func (d *Description) verify(cert *x509.Certificate, trust *client.Trust) {
	why := NoTrust
	if d.Why = why; trust != nil {
		chain, err := trust.VerifyChain(cert)
		if err == nil {
			results, err := trust.VerifySCTs(cert, chain[1])
			if err != nil {
				d.SCTFault = err.Error()
			}
			d.Verified, d.Why, d.SCTs = true, "", SCTs(results)
			return
		}
		d.Why, why = err.Error(), "the certificate's chain is not verified"
	}
	scts, err := client.EmbeddedSCTs(cert)
	if err != nil {
		d.SCTFault = err.Error()
	}
	for _, s := range scts {
		d.SCTs = append(d.SCTs, describeSCT(client.SCTResult{SCT: s, Err: errors.New(why)}))
	}
}

// SCTs describes verified results.
func SCTs(results []client.SCTResult) []SCT {
	list := make([]SCT, 0, len(results))
	for _, r := range results {
		list = append(list, describeSCT(r))
	}
	return list
}

func describeSCT(r client.SCTResult) SCT {
	s := SCT{LogID: base64.StdEncoding.EncodeToString(r.SCT.LogID[:]), Verified: r.Err == nil}
	if r.Err != nil {
		s.Why = r.Err.Error()
	}
	if r.Log != nil {
		s.LogURL = r.Log.URL
	}
	if at, ok := client.SCTTime(r.SCT); ok {
		s.Time = &at
	}
	if index, ok := r.SCT.LeafIndex(); ok {
		s.LeafIndex = &index
	}
	return s
}

func hex256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
