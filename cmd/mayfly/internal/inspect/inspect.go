// Package inspect puts a certificate into words: for a person, and as JSON. It
// takes any X.509 input and vouches for nothing that it hasn't verified.
package inspect

import (
	"cmp"
	"crypto/sha1" // #nosec G505 -- a fingerprint that people compare, nothing relies on it
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// Description is what there is to say about the first certificate of a file and
// the chain that follows it. Values are exact; only printing escapes them.
type Description struct {
	Identity       []extension.SAN    `json:"sans"`       // the SAN entries, in their order
	RecordedIssuer string             `json:"issuer"`     // who vouched for the identity; "" when none is recorded
	Extensions     []extension.Listed `json:"extensions"` // 1.3.6.1.4.1.57264.1.N, in their order
	Serial         string             `json:"serial"`     // hexadecimal
	NotBefore      time.Time          `json:"not_before"`
	NotAfter       time.Time          `json:"not_after"` // inclusive
	Key            Key                `json:"key"`
	Subject        string             `json:"subject"`   // RFC 4514; empty in what Mayfly issues
	Issuer         string             `json:"signed_by"` // RFC 4514: the certificate that signed it
	Signature      string             `json:"signature_algorithm"`
	Authority      string             `json:"authority"` // the key identifier of who signed it
	CA             bool               `json:"ca"`
	Usages         []string           `json:"usages"`
	Others         []extension.Other  `json:"other_extensions"`
	SHA256         string             `json:"certificate_fingerprint,omitempty"`
	SHA1           string             `json:"certificate_fingerprint_sha1,omitempty"`
	SCTs           []SCT              `json:"scts"`
	SCTFault       string             `json:"sct_fault,omitempty"` // the SCT list is there and can't be read
	Chain          []Link             `json:"chain"`               // what follows in the file, as it came
	Verified       bool               `json:"verified"`            // the chain, for code signing, at notBefore
	Why            string             `json:"why,omitempty"`       // why it is not verified
}

// Key is the public key.
type Key struct {
	Algorithm string `json:"algorithm"`
	SHA256    string `json:"key_fingerprint"` // of the SubjectPublicKeyInfo
}

// SCT is one signed certificate timestamp.
type SCT struct {
	Log       string     `json:"log"`    // its id as mayfly search has it, hexadecimal
	LogID     string     `json:"log_id"` // base64, as in a trusted root
	LogURL    string     `json:"log_url,omitempty"`
	Time      *time.Time `json:"logged,omitempty"` // nil when out of range
	LeafIndex *uint64    `json:"index,omitempty"`
	Verified  bool       `json:"verified"`
	Why       string     `json:"why,omitempty"` // why it is not verified
}

// Link is a certificate of the chain.
type Link struct {
	Subject  string    `json:"subject"`
	Issuer   string    `json:"signed_by"`
	NotAfter time.Time `json:"not_after"`
	SHA256   string    `json:"certificate_fingerprint"`
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
		Key:     Key{Algorithm: cmp.Or(pubkey.Name(cert.PublicKey), cert.PublicKeyAlgorithm.String()), SHA256: chain.Fingerprint(cert.RawSubjectPublicKeyInfo)},
		Subject: cert.Subject.String(), Issuer: cert.Issuer.String(),
		Signature: cert.SignatureAlgorithm.String(), CA: cert.IsCA, Usages: extension.Usages(cert),
		SHA256: chain.Fingerprint(cert.Raw), Authority: hex.EncodeToString(cert.AuthorityKeyId),
		SHA1: fmt.Sprintf("%x", sha1.Sum(cert.Raw)), // #nosec G401 -- as above
		SCTs: []SCT{}, Chain: []Link{},
	}
	d.Extensions, d.Others = extension.List(cert)
	if set, err := extension.Parse(cert.Extensions); err == nil {
		d.RecordedIssuer = set.Issuer
	}
	for _, c := range certs[1:] {
		d.Chain = append(d.Chain, Link{Subject: c.Subject.String(), Issuer: c.Issuer.String(), NotAfter: c.NotAfter.UTC(), SHA256: chain.Fingerprint(c.Raw)})
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
		verified, err := trust.VerifyChain(cert)
		if err == nil {
			results, err := trust.VerifySCTs(cert, verified[1])
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
	s := SCT{Log: hex.EncodeToString(r.SCT.LogID[:]), LogID: base64.StdEncoding.EncodeToString(r.SCT.LogID[:]), Verified: r.Err == nil}
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

// arc is the prefix of the identity extensions' OIDs.
const arc = "1.3.6.1.4.1.57264.1."

// Print writes the description for a person who reads it at the time now.
// Everything from the certificate is escaped for the terminal.
func (d Description) Print(w io.Writer, now time.Time) {
	field := func(label, value string) { fmt.Fprintf(w, "%-13s %s\n", label, value) }

	for _, n := range d.Identity {
		field("identity", fmt.Sprintf("%s (%s)", terminal.Escape(n.Value), n.Type))
	}
	if len(d.Identity) == 0 {
		field("identity", "none: the certificate has no subject alternative name")
	}
	if d.RecordedIssuer != "" {
		field("vouched by", terminal.Escape(d.RecordedIssuer))
	}
	if d.Subject != "" {
		field("subject", terminal.Line(d.Subject))
	}
	field("validity", Validity(d.NotBefore, d.NotAfter, now))
	field("key", d.Key.Algorithm+", SHA-256 "+d.Key.SHA256)
	field("usage", terminal.Escape(strings.Join(d.Usages, ", ")))
	if d.CA {
		field("", "a CA certificate")
	}
	field("serial", d.Serial)
	field("signed by", terminal.Line(d.Issuer)+" ("+d.Signature+")")
	field("fingerprint", "SHA-256 "+d.SHA256)
	field("", "SHA-1   "+d.SHA1)
	d.printExtensions(w)
	d.printSCTs(w)
	d.printChain(w)
}

func (d Description) printExtensions(w io.Writer) {
	if len(d.Extensions) > 0 {
		fmt.Fprint(w, "\nidentity extensions ("+arc+"N)\n")
	}
	for _, e := range d.Extensions {
		value := terminal.Escape(e.Value)
		if e.Fault != "" {
			value = "[" + terminal.Escape(e.Fault) + "]"
		}
		fmt.Fprintf(w, "  %3s  %-39s %s\n", strings.TrimPrefix(e.OID, arc), e.Name, value)
	}
	if len(d.Others) > 0 {
		fmt.Fprint(w, "\nother extensions\n")
	}
	for _, o := range d.Others {
		critical := ""
		if o.Critical {
			critical = " (critical)"
		}
		fmt.Fprintf(w, "  %-24s %s%s\n", o.OID, o.Name, critical)
	}
}

func (d Description) printSCTs(w io.Writer) {
	fmt.Fprint(w, "\nsigned certificate timestamps\n")
	for _, s := range d.SCTs {
		at := "a time out of range"
		if s.Time != nil {
			at = s.Time.Format("2006-01-02 15:04:05.000 UTC")
		}
		fmt.Fprintf(w, "  %s\n    log id      %s\n", s.result(), s.LogID)
		if s.LogURL != "" {
			fmt.Fprintf(w, "    log         %s\n", terminal.Escape(s.LogURL))
		}
		fmt.Fprintf(w, "    time        %s\n", at)
		if s.LeafIndex != nil {
			fmt.Fprintf(w, "    leaf index  %d\n", *s.LeafIndex)
		}
	}
	switch {
	case d.SCTFault != "":
		fmt.Fprintf(w, "  [%s]\n", terminal.Line(d.SCTFault))
	case len(d.SCTs) == 0:
		fmt.Fprint(w, "  none\n")
	}
}

func (d Description) printChain(w io.Writer) {
	fmt.Fprint(w, "\nchain\n")
	if d.Verified {
		fmt.Fprint(w, "  verified for code signing, at the start of the certificate's validity\n")
	} else {
		for i, line := range strings.Split(d.Why, "\n") {
			if i == 0 {
				line = "not verified: " + line
			}
			fmt.Fprintf(w, "  %s\n", terminal.Line(line))
		}
	}
	for i, l := range d.Chain {
		subject := cmp.Or(l.Subject, "(no subject)")
		fmt.Fprintf(w, "  %d  %s\n     until %s, SHA-256 %s\n", i+1, terminal.Line(subject), stamp(l.NotAfter), l.SHA256)
	}
}

func (s SCT) result() string {
	if s.Verified {
		return "verified"
	}
	return "not verified: " + terminal.Line(s.Why)
}

// String is the SCT in one line.
func (s SCT) String() string {
	text := s.result() + ", log " + s.LogID
	if s.LeafIndex != nil {
		text += fmt.Sprintf(", leaf %d", *s.LeafIndex)
	}
	return text
}

// Validity puts a certificate's validity into words: both ends, the span, and
// where now lies.
func Validity(notBefore, notAfter, now time.Time) string {
	// RFC 5280 §4.1.2.5: the second that notAfter names is part of the validity.
	end := notAfter.Add(time.Second)
	span := "a negative time"
	if !notAfter.Before(notBefore) {
		span = humanize.RelTime(notBefore, end, "", "")
	}
	text := fmt.Sprintf("%s to %s (%s)", stamp(notBefore), stamp(notAfter), span)
	away := func(t time.Time) string { return humanize.RelTime(t, now, "ago", "from now") }
	switch {
	case now.Before(notBefore):
		return text + ", starts " + away(notBefore)
	case now.Before(end):
		return text + ", ends " + away(end)
	default:
		return text + ", ended " + away(end)
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
