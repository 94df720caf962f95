package index

import (
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/identity/extension"
)

// ofRun are the extensions that nearly every certificate of a CI system has a value of
// its own for; they are in its row. All others are in its subject's.
var ofRun = []string{"github_sha", "build_signer_digest", "source_repository_digest", "build_config_digest", "run_invocation_uri"}

// ofNames are the columns of a subject that decode makes: the log, and what is made of the
// certificate's names.
var ofNames = []string{"log", "authority", "san", "san_type", "domain", "identity", "workflow", "issuer", "token_subject"}

// ofSubject are all columns of a subject: the other ones are extensions.
var ofSubject = slices.Concat(ofNames,
	slices.DeleteFunc(extension.Fields(), func(name string) bool { return slices.Contains(ofRun, name) }))

// Unreadable is the san_type of an entry whose certificate can't be read: it is kept,
// so that the index has every entry.
const Unreadable = "unreadable"

// columns are the names of a certificate's values: its subject's, then those of its row.
// places say where a Set has those that are extensions.
var (
	columns = slices.Concat(ofSubject, ofRun, []string{"serial", "key_fingerprint"})
	places  = func() (all []func(*extension.Set) *string) {
		for _, name := range slices.Concat(ofSubject[len(ofNames):], ofRun) {
			all = append(all, extension.Place(name))
		}
		return all
	}()
)

// decode reads an entry of a log. It never fails: logs take what their CAs signed. The values
// go into a slice, since a map took as much CPU as the reading.
func decode(log string, e follow.Entry) *Certificate {
	c := &Certificate{Index: e.Index, Logged: e.Timestamp, NotBefore: e.Timestamp, NotAfter: e.Timestamp}
	cert, set, name := x509.Certificate{}, extension.Set{}, extension.SAN{Type: Unreadable}
	var authority, serial, key string
	if read(e, &cert) {
		set, _ = extension.Parse(cert.Extensions) // what can't be read isn't found
		c.NotBefore, c.NotAfter = cert.NotBefore, cert.NotAfter
		authority, serial, key = hex.EncodeToString(cert.AuthorityKeyId), cert.SerialNumber.Text(16), chain.Fingerprint(cert.RawSubjectPublicKeyInfo)
		name = extension.SAN{}
		if names := extension.SANs(&cert); len(names) > 0 {
			name = names[0]
		}
	}
	domain, identity, workflow := derive(name, set)
	c.values = append(make([]string, 0, len(columns)), log, authority, name.Value, name.Type, domain, identity, workflow, set.Issuer, set.TokenSubject)
	for _, place := range places {
		c.values = append(c.values, *place(&set))
	}
	c.values = append(c.values, serial, key)
	for i, value := range c.values {
		c.values[i] = clip(value)
	}
	return c
}

// value is the value of one of columns.
func (c *Certificate) value(name string) string { return c.values[slices.Index(columns, name)] }

// read is what the index keeps of a certificate (RFC 5280 §4.1). crypto/x509 reads all of it,
// which takes three times as long, and refuses what logs take.
func read(e follow.Entry, c *x509.Certificate) bool {
	c.SerialNumber, c.Extensions = new(big.Int), make([]pkix.Extension, 0, 32)
	input := cryptobyte.String(e.Certificate)
	var tbs, validity, list, one cryptobyte.String
	date := func(t *time.Time) bool {
		return validity.PeekASN1Tag(asn1.UTCTime) && validity.ReadASN1UTCTime(t) || validity.ReadASN1GeneralizedTime(t)
	}
	ok := (e.Precert || input.ReadASN1(&input, asn1.SEQUENCE)) && input.ReadASN1(&tbs, asn1.SEQUENCE) && tbs.SkipOptionalASN1(asn1.Tag(0).Constructed().ContextSpecific()) && // version
		tbs.ReadASN1Integer(c.SerialNumber) && tbs.SkipASN1(asn1.SEQUENCE) && tbs.SkipASN1(asn1.SEQUENCE) && // algorithm, issuer
		tbs.ReadASN1(&validity, asn1.SEQUENCE) && date(&c.NotBefore) && date(&c.NotAfter) && tbs.SkipASN1(asn1.SEQUENCE) && // subject
		tbs.ReadASN1Element((*cryptobyte.String)(&c.RawSubjectPublicKeyInfo), asn1.SEQUENCE) && tbs.SkipOptionalASN1(asn1.Tag(1).ContextSpecific()) && tbs.SkipOptionalASN1(asn1.Tag(2).ContextSpecific()) &&
		tbs.ReadOptionalASN1(&list, nil, asn1.Tag(3).Constructed().ContextSpecific()) && (list.Empty() || list.ReadASN1(&list, asn1.SEQUENCE))
	for ok && !list.Empty() {
		var x pkix.Extension
		ok = list.ReadASN1(&one, asn1.SEQUENCE) && one.ReadASN1ObjectIdentifier(&x.Id) && one.SkipOptionalASN1(asn1.BOOLEAN) && one.ReadASN1((*cryptobyte.String)(&x.Value), asn1.OCTET_STRING)
		if c.Extensions = append(c.Extensions, x); slices.Equal(x.Id, []int{2, 5, 29, 35}) { // the issuer's key
			one = x.Value
			_ = one.ReadASN1(&one, asn1.SEQUENCE) && one.ReadOptionalASN1((*cryptobyte.String)(&c.AuthorityKeyId), nil, asn1.Tag(0).ContextSpecific())
		}
	}
	return ok
}

// derive is what isn't in the certificate in so many words: the domain of the address
// or the host of the URI; whom it counts for, the repository or else the name; and its
// workflow, whichever branch or tag it ran for.
func derive(name extension.SAN, set extension.Set) (domain, identity, workflow string) {
	if at := strings.LastIndexByte(name.Value, '@'); name.Type == "email" && at >= 0 {
		domain = strings.ToLower(name.Value[at+1:])
	} else if name.Type == "uri" {
		if u, err := url.Parse(name.Value); err == nil {
			domain = strings.ToLower(u.Hostname())
		}
	}
	if set.SourceRepositoryURI == "" {
		return domain, name.Value, ""
	}
	workflow, _, _ = strings.Cut(cmp.Or(set.BuildConfigURI, name.Value), "@")
	return domain, set.SourceRepositoryURI, workflow
}

// maxValue is how much of a value is kept, in bytes: two of them are a row of PostgreSQL's indexes, of 2704 at most.
const maxValue = 1300

// clip makes text of a value that PostgreSQL takes: no NUL, valid, and not too long.
func clip(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > maxValue {
		s = strings.ToValidUTF8(s[:maxValue], "")
	}
	return s
}
