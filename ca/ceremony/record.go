package ceremony

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// Output is where a certificate and the record of its ceremony go.
type Output struct{ Certificate, Record string }

// Beside is the output into a file: root.pem has its record in root.record.txt.
func Beside(certificate string) Output {
	return Output{certificate, strings.TrimSuffix(certificate, filepath.Ext(certificate)) + ".record.txt"}
}

// Free is nil when a file of that name could be written and none is there.
func Free(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w, and nothing is overwritten: name another file, or move this one away", path, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".mayfly-*")
	if err != nil {
		if at, ok := errors.AsType[*fs.PathError](err); ok { // of a file whose name says nothing to anybody
			err = fmt.Errorf("its folder %s: %w", filepath.Dir(path), at.Err)
		}
		return fmt.Errorf("%s can't be written: %w", path, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Write writes the record, and then the certificate: none leaves unrecorded.
// Nothing is overwritten. Its error is a *[cacert.SignedError], since the key was used.
func (m *Certificate) Write(o Output) error {
	if err := durable.WriteNew(o.Record, m.Record(filepath.Base(o.Certificate)), 0o644); err != nil {
		return m.Failed(fmt.Errorf("writing the record: %w", err), "nothing is written: make it anew, and keep this message with the record")
	}
	if err := durable.WriteNew(o.Certificate, chain.PEM(m.Chain), 0o644); err != nil {
		return m.Failed(fmt.Errorf("writing the certificate: %w", err), "its record is in "+o.Record+", the certificate is nowhere: make it anew, and keep that record too")
	}
	return nil
}

// field is a line of a description: a label, and values below one another.
type field struct {
	label  string
	values []string
}

// line is a field of what there is of values.
func line(label string, values ...string) field {
	return field{label, slices.DeleteFunc(values, func(v string) bool { return v == "" })}
}

// printFields writes in two columns. Values are from outside and escaped.
func printFields(w io.Writer, fields []field) {
	for _, f := range fields {
		label := f.label
		for _, v := range f.values {
			fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  %-22s%s", label, terminal.Line(v)), " "))
			label = ""
		}
	}
}

// Record is the ceremony in words, for those who weren't there. file is the
// certificate's.
func (m *Certificate) Record(file string) []byte {
	var b strings.Builder
	c := m.ceremony
	kind, _ := c.Kind()
	if !c.Template.IsCA {
		kind += "'s"
	}
	title := "Record of a key ceremony: " + kind + " certificate"
	fmt.Fprintf(&b, "%s\n%s\n\n", title, strings.Repeat("=", len(title)))
	printFields(&b, []field{
		line("date", chain.Stamp(c.Now)),
		line("host", c.at.Host),
		line("made with", c.at.Tool),
		{"witnesses", c.at.Witnesses},
		line("file", file),
	})
	b.WriteString("\nThe certificate\n\n")
	printFields(&b, certificateFields(m.Chain[0]))
	b.WriteString("\nThe keys\n\n")
	printFields(&b, []field{{"certified", []string{c.keyRef}}, {"signed by", []string{m.signedBy}}})
	c.printRequest(&b)
	b.WriteString("\nThe chain, from the certificate to the root\n\n")
	for i, link := range m.Chain {
		printFields(&b, []field{{fmt.Sprintf("%d", i+1), []string{chain.Subject(link), "until " + chain.Stamp(link.NotAfter), "SHA-256 " + chain.Fingerprint(link.Raw)}}})
	}
	b.WriteString("\nChecked after signing\n\n")
	for _, statement := range m.Checks {
		fmt.Fprintf(&b, "  - %s\n", statement)
	}
	if len(c.Notes) > 0 {
		b.WriteString("\nNotes\n\n")
		for _, n := range c.Notes {
			fmt.Fprintf(&b, "  - %s\n", terminal.Line(n))
		}
	}
	return []byte(b.String())
}

// Print shows what is about to be signed, and what of a request was ignored.
func (c *Ceremony) Print(w io.Writer) {
	t := c.Template
	fmt.Fprintf(w, "To be signed by %s:\n\n", terminal.Line(c.Issuer().Subject.String()))
	fields := []field{
		line("subject", t.Subject.String()),
		line("validity", validity(t.NotBefore, t.NotAfter)),
		line("path length", pathLength(t)),
		line("extended key usage", strings.Join(extension.ExtKeyUsages(t), ", ")),
	}
	if t.RawSubjectPublicKeyInfo != nil {
		fields = append(fields, keyFields(t)...)
	}
	printFields(w, fields)
	c.printRequest(w)
	for _, n := range c.Notes {
		fmt.Fprintf(w, "  note: %s\n", terminal.Line(n))
	}
}

func (c *Ceremony) printRequest(w io.Writer) {
	if c.request != nil {
		fmt.Fprint(w, "\nThe certificate request\n\n")
		c.request.Print(w)
	}
}

// Print says what is in a request, and what of it doesn't count.
func (r *Request) Print(w io.Writer) {
	printFields(w, []field{
		line("SHA-256 of request", hex.EncodeToString(r.SHA256[:])),
		line("key", r.key.Algorithm()),
		line("SHA-256 of key", chain.Fingerprint(r.key.SPKI())),
		line("signature", "verified: whoever made the request has the key"),
		{"ignored of it", append([]string{"subject " + orNone(r.Subject)}, r.Asks...)},
	})
}

// Print says what is in a CA certificate.
func Print(w io.Writer, c *x509.Certificate) { printFields(w, certificateFields(c)) }

func certificateFields(c *x509.Certificate) []field {
	fields := []field{
		line("subject", chain.Subject(c)),
		line("issuer", orNone(c.Issuer.String())),
		line("serial", serial(c)),
		line("validity", validity(c.NotBefore, c.NotAfter)),
	}
	fields = append(fields, keyFields(c)...)
	fields = append(fields,
		line("signature", c.SignatureAlgorithm.String()),
		line("path length", pathLength(c)),
		line("key usage", strings.Join(extension.KeyUsages(c), ", ")),
		line("extended key usage", strings.Join(extension.ExtKeyUsages(c), ", ")),
		line("subject key id", hex.EncodeToString(c.SubjectKeyId)),
		line("authority key id", hex.EncodeToString(c.AuthorityKeyId)),
	)
	var others []string
	for _, e := range c.Extensions {
		if id := e.Id.String(); slices.Contains([]string{"2.5.29.14", "2.5.29.15", "2.5.29.19", "2.5.29.35", "2.5.29.37"}, id) {
			continue
		}
		name := named(e.Id)
		if e.Critical {
			name += " (critical)"
		}
		others = append(others, name)
	}
	return append(fields, field{"other extensions", others}, line("SHA-256", chain.Fingerprint(c.Raw)))
}

func keyFields(c *x509.Certificate) []field {
	return []field{{"key", []string{keyName(c)}}, {"SHA-256 of key", []string{chain.Fingerprint(c.RawSubjectPublicKeyInfo)}}}
}

func validity(from, to time.Time) string {
	days := int(to.Add(time.Second).Sub(from) / cacert.Day)
	return fmt.Sprintf("%s to %s (%d days)", chain.Stamp(from), chain.Stamp(to), days)
}

func orNone(s string) string { return cmp.Or(s, "none") }

func serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// keyName is a certificate's kind of key in words.
func keyName(c *x509.Certificate) string {
	a, err := kms.AlgorithmOf(c.PublicKey)
	if err != nil {
		return err.Error()
	}
	return string(a)
}

func pathLength(c *x509.Certificate) string {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return "not a CA certificate"
	case c.MaxPathLen > 0 || c.MaxPathLenZero:
		return fmt.Sprint(c.MaxPathLen)
	default:
		return "unlimited"
	}
}

// NewRequest makes a certificate request (RFC 2986) in PEM: proof that whoever
// asks has the key. The name is for the person who reads it.
//
// Where the issuer's certificate is given, all of its name but the common name is
// taken over, byte for byte: `openssl ca` with a policy of `match` compares the
// kinds of strings too. Otherwise strings are UTF-8, as OpenSSL writes them.
func NewRequest(key cacert.Key, organization, commonName string, issuer *x509.Certificate) ([]byte, error) {
	if _, err := cacert.CheckKey(key.Public()); err != nil {
		return nil, err
	}
	faults := cacert.CheckName("the common name", commonName)
	if organization != "" {
		faults = errors.Join(faults, cacert.CheckName("the organization", organization))
	}
	if faults != nil {
		return nil, faults
	}
	name, err := requestName(organization, commonName, issuer)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: name}, key)
	if err != nil {
		return nil, fmt.Errorf("signing the request with %s: %w", key.Ref, err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	if _, err := ParseRequest(text); err != nil { // what couldn't be used isn't carried over
		return nil, fmt.Errorf("the request that %s signed isn't good: %w", key.Ref, err)
	}
	return text, nil
}

// The types of names' attributes (RFC 5280 appendix A.1).
var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidOrganization = asn1.ObjectIdentifier{2, 5, 4, 10}
)

// requestName is the name of a request, in DER: the issuer's without its common name, then
// what is given.
func requestName(organization, commonName string, issuer *x509.Certificate) ([]byte, error) {
	var name []asn1.RawValue
	if issuer != nil {
		if _, err := asn1.Unmarshal(issuer.RawSubject, &name); err != nil {
			return nil, fmt.Errorf("the issuer's name can't be read: %w", err)
		}
		name = slices.DeleteFunc(name, isCommonName)
	}
	for _, part := range []struct {
		id    asn1.ObjectIdentifier
		value string
	}{{oidOrganization, organization}, {oidCommonName, commonName}} {
		if part.value == "" {
			continue
		}
		text := asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(part.value)}
		der, err := asn1.Marshal(pkix.RelativeDistinguishedNameSET{{Type: part.id, Value: text}})
		if err != nil {
			return nil, fmt.Errorf("the request's name: %w", err)
		}
		name = append(name, asn1.RawValue{FullBytes: der})
	}
	return asn1.Marshal(name)
}

// typed is what begins with an object identifier: an attribute of a name, or of a request.
type typed struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

// isCommonName reports whether a part of a name is the common name.
func isCommonName(part asn1.RawValue) bool {
	var set []typed
	_, err := asn1.UnmarshalWithParams(part.FullBytes, &set, "set")
	return err == nil && len(set) > 0 && set[0].ID.Equal(oidCommonName)
}

// Request is a certificate request whose signature verified: proof that whoever
// made it has the key. Nothing else in it counts.
type Request struct {
	SHA256  [sha256.Size]byte // of the request in DER
	Subject string            // the name that it asks for, in words
	Asks    []string          // what else it asks for, in words

	key proof.Key
}

// maxAsks bounds what is told about a request that asks for a lot.
const maxAsks = 32

// ParseRequest reads a request from outside, in PEM or DER. It refuses what isn't
// exactly one request, whose signature doesn't verify or isn't ECDSA with the
// curve's own hash or RSA PKCS #1 v1.5 with SHA-256, SHA-384 or SHA-512, and
// keys that are weak or that clients don't take. Its subject, extensions and
// attributes are told and not used.
func ParseRequest(text []byte) (*Request, error) {
	policy, err := proof.NewPolicy()
	if err != nil {
		return nil, err
	}
	der, err := pemfile.Request(text)
	if err != nil {
		return nil, err
	}
	key, err := policy.CSR(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	if err != nil {
		return nil, errors.New(fault.From(err).Public) // the refusal in words, without its reason
	}
	if _, err := kms.AlgorithmOf(key.Public()); err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("the certificate request can't be read whole, make it anew with `mayfly ca csr`: %w", err)
	}
	r := &Request{SHA256: sha256.Sum256(der), Subject: parsed.Subject.String(), key: key}
	for _, e := range parsed.Extensions {
		r.Asks = append(r.Asks, "extension "+named(e.Id))
	}
	for _, a := range attributes(parsed.RawTBSCertificateRequest) {
		if !a.ID.Equal(oidExtensionRequest) {
			r.Asks = append(r.Asks, "attribute "+named(a.ID))
		}
	}
	if len(r.Asks) > maxAsks {
		r.Asks = append(r.Asks[:maxAsks], "and more")
	}
	return r, nil
}

// oidExtensionRequest is the attribute that holds extensions (RFC 2985 §5.4.2).
var oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}

// attributes are a CertificationRequestInfo's (RFC 2986 §4.1), as far as they can be read.
func attributes(der []byte) (all []typed) {
	var info struct {
		Version      int
		Subject, Key asn1.RawValue
		Attributes   []asn1.RawValue `asn1:"set,tag:0"`
	}
	_, _ = asn1.Unmarshal(der, &info) // none where there aren't any
	for _, raw := range info.Attributes {
		var one typed
		if _, err := asn1.Unmarshal(raw.FullBytes, &one); err == nil {
			all = append(all, one)
		}
	}
	return all
}

// challengePassword is an attribute of requests (RFC 2985 §5.4.1).
const challengePassword = "1.2.840.113549.1.9.7"

func named(id asn1.ObjectIdentifier) string {
	oid := id.String()
	if oid == challengePassword {
		return "challenge password"
	}
	return cmp.Or(extension.Standard(oid), oid)
}
