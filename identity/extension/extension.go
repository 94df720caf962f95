// Package extension holds the certificate extensions that carry an identity's
// provenance: Sigstore's OIDs 1.3.6.1.4.1.57264.1.N, which verifiers match
// against a policy. One table says each extension's number, names and encoding.
package extension

import (
	"crypto/x509/pkix"
	"fmt"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/internal/tbs"
)

// Set is the values of all extensions of one certificate. An empty value is
// left out of the certificate. The comment of each field is its number.
type Set struct {
	Issuer                     string // 1 (raw) and 8 (UTF8String), always written
	GitHubTrigger              string // 2
	GitHubSHA                  string // 3
	GitHubWorkflow             string // 4
	GitHubRepository           string // 5
	GitHubRef                  string // 6
	BuildSignerURI             string // 9
	BuildSignerDigest          string // 10
	RunnerEnvironment          string // 11
	SourceRepositoryURI        string // 12
	SourceRepositoryDigest     string // 13
	SourceRepositoryRef        string // 14
	SourceRepositoryID         string // 15
	SourceRepositoryOwnerURI   string // 16
	SourceRepositoryOwnerID    string // 17
	BuildConfigURI             string // 18
	BuildConfigDigest          string // 19
	BuildTrigger               string // 20
	RunInvocationURI           string // 21
	SourceRepositoryVisibility string // 22
	DeploymentEnvironment      string // 23
	TokenSubject               string // 24, always written
}

// maxValue is the longest value that is written, in bytes: its length fits the
// two-byte form of DER (X.690 §8.1.3.5).
const maxValue = 0xffff

// Extensions encodes s in the table's order, none critical. It fails when the
// issuer or the token's subject is empty, or a value is not UTF-8 or is longer
// than 65,535 bytes. The extensions share the table's OIDs: don't change them.
func (s Set) Extensions() ([]pkix.Extension, error) {
	// One buffer holds the values, since this runs once a certificate.
	buf, out := make([]byte, 0, 1<<10), make([]pkix.Extension, 0, len(table))
	for i := range table {
		r := &table[i]
		v := *r.value(&s)
		switch {
		case v == "" && r.required:
			return nil, fmt.Errorf("extension %d (%s) has no value and is always written", r.arc, r.name)
		case v == "":
			continue
		case len(v) > maxValue:
			return nil, fmt.Errorf("extension %d (%s) is %d bytes long; at most %d are written", r.arc, r.name, len(v), maxValue)
		case !utf8.ValidString(v):
			return nil, fmt.Errorf("extension %d (%s) is not valid UTF-8", r.arc, r.name)
		}
		start := len(buf)
		if buf = append(buf, v...); !r.raw {
			buf = tbs.Wrap(buf, start, cryptobyteasn1.UTF8String)
		}
		out = append(out, pkix.Extension{Id: r.oid, Value: buf[start:len(buf):len(buf)]})
	}
	return out, nil
}

// Named is one extension in words.
type Named struct {
	Number int    // the last arc of the OID
	Name   string // for people, such as "Source Repository URI"
	Value  string
}

// Named lists the values that aren't empty in words, in the table's order.
func (s Set) Named() []Named {
	out := make([]Named, 0, len(table))
	for i := range table {
		if v := *table[i].value(&s); v != "" {
			out = append(out, Named{Number: table[i].arc, Name: table[i].name, Value: v})
		}
	}
	return out
}

// Parse reads back what [Set.Extensions] wrote out of all extensions of a
// certificate. Others, and numbers that the table doesn't hold, are passed
// over. It fails on a repeated or critical extension of ours, on a value that
// is empty or not in its encoding, and when the two issuers differ. A missing
// extension is no error: other authorities write fewer.
func Parse(extensions []pkix.Extension) (s Set, err error) {
	var seen [32]bool // by the last arc
	for _, e := range extensions {
		r, v, err := one(e)
		if r == nil {
			continue
		}
		place := r.value(&s)
		switch {
		case seen[r.arc]:
			return Set{}, fmt.Errorf("extension %d (%s) occurs twice", r.arc, r.name)
		case err != nil:
			return Set{}, err
		case *place != "" && *place != v:
			return Set{}, fmt.Errorf("extension %d (%s) contradicts another one with the same meaning", r.arc, r.name)
		}
		*place, seen[r.arc] = v, true
	}
	return s, nil
}

// one reads one extension: its row, or nil where it is none of the table's, and its
// value, which is never empty without an error.
func one(e pkix.Extension) (*row, string, error) {
	r := rowFor(e.Id)
	if r == nil {
		return nil, "", nil
	}
	text := cryptobyte.String(e.Value)
	outer := text
	switch {
	case e.Critical:
		return r, "", fmt.Errorf("extension %d (%s) is critical and must not be", r.arc, r.name)
	case !r.raw && (!outer.ReadASN1(&text, cryptobyteasn1.UTF8String) || !outer.Empty()):
		return r, "", fmt.Errorf("extension %d (%s) is not one DER UTF8String", r.arc, r.name)
	case len(text) == 0:
		return r, "", fmt.Errorf("extension %d (%s) is empty", r.arc, r.name)
	case !utf8.Valid(text):
		return r, "", fmt.Errorf("extension %d (%s) is not valid UTF-8", r.arc, r.name)
	}
	return r, string(text), nil
}

// Map is the values of s that aren't empty, by the names of [Fields], with the
// issuer as issuer and the token's subject as token_subject.
func (s Set) Map() map[string]string {
	m := map[string]string{}
	for i := range table {
		if v := *table[i].value(&s); v != "" {
			m[table[i].field] = v
		}
	}
	return m
}
