package ceremony

import (
	"cmp"
	"crypto/x509"
	"encoding/hex"
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
	"github.com/mayfly-ca/mayfly/internal/durable"
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
	kind := "root"
	if len(c.Parent) > 0 {
		if kind = "intermediate"; !c.Template.IsCA {
			kind = "timestamp authority's"
		}
	}
	title := "Record of a key ceremony: " + kind + " certificate"
	fmt.Fprintf(&b, "%s\n%s\n\n", title, strings.Repeat("=", len(title)))
	printFields(&b, []field{
		{"date", []string{chain.Stamp(c.Now)}},
		{"host", present(c.at.Host)},
		{"made with", present(c.at.Tool)},
		{"witnesses", c.at.Witnesses},
		{"file", []string{file}},
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

func present(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// Print shows what is about to be signed, and what of a request was ignored.
func (c *Ceremony) Print(w io.Writer) {
	t := c.Template
	issuer := t
	if len(c.Parent) > 0 {
		issuer = c.Parent[0]
	}
	fmt.Fprintf(w, "To be signed by %s:\n\n", terminal.Line(issuer.Subject.String()))
	fields := []field{
		{"subject", []string{t.Subject.String()}},
		{"validity", []string{validity(t.NotBefore, t.NotAfter)}},
		{"path length", []string{pathLength(t)}},
		{"extended key usage", present(strings.Join(usages(t), ", "))},
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
		{"SHA-256 of request", []string{hex.EncodeToString(r.SHA256[:])}},
		{"key", []string{r.algorithm}},
		{"SHA-256 of key", []string{chain.Fingerprint(r.spki)}},
		{"signature", []string{"verified: whoever made the request has the key"}},
		{"ignored of it", append([]string{"subject " + orNone(r.Subject)}, r.Asks...)},
	})
}

// Print says what is in a CA certificate.
func Print(w io.Writer, c *x509.Certificate) { printFields(w, certificateFields(c)) }

func certificateFields(c *x509.Certificate) []field {
	fields := []field{
		{"subject", []string{chain.Subject(c)}},
		{"issuer", []string{orNone(c.Issuer.String())}},
		{"serial", []string{serial(c)}},
		{"validity", []string{validity(c.NotBefore, c.NotAfter)}},
	}
	fields = append(fields, keyFields(c)...)
	fields = append(fields,
		field{"signature", []string{c.SignatureAlgorithm.String()}},
		field{"path length", []string{pathLength(c)}},
		field{"key usage", present(strings.Join(keyUsages(c.KeyUsage), ", "))},
		field{"extended key usage", present(strings.Join(usages(c), ", "))},
		field{"subject key id", present(hex.EncodeToString(c.SubjectKeyId))},
		field{"authority key id", present(hex.EncodeToString(c.AuthorityKeyId))},
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
	return append(fields, field{"other extensions", others}, field{"SHA-256", []string{chain.Fingerprint(c.Raw)}})
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

func keyUsages(u x509.KeyUsage) (words []string) {
	for bit := x509.KeyUsageDigitalSignature; bit <= x509.KeyUsageDecipherOnly; bit <<= 1 { // RFC 5280 §4.2.1.3
		if u&bit != 0 {
			words = append(words, bit.String())
		}
	}
	return words
}

func usages(c *x509.Certificate) (words []string) {
	for _, u := range c.ExtKeyUsage {
		words = append(words, u.String())
	}
	for _, id := range c.UnknownExtKeyUsage {
		words = append(words, id.String())
	}
	return words
}
