package tuf

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rootpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
)

// The targets that clients look for, cosign v3 among them.
const (
	TrustedRoot   = "trusted_root.json"
	SigningConfig = "signing_config.v0.2.json"
)

// contents are the targets of a repository, by name.
type contents map[string]string

// documents are the parsed ones of contents.
type documents struct {
	root    *rootpb.TrustedRoot
	signing *rootpb.SigningConfig
}

// newContents are the targets of the documents that clients are given, with those
// that older clients want beside them.
func newContents(d trustroot.Documents) (contents, error) {
	c := contents{TrustedRoot: string(d.TrustedRoot), SigningConfig: string(d.SigningConfig)}
	parsed, err := c.parse()
	if err != nil {
		return nil, err
	}
	for name, one := range legacyTargets(parsed.root) {
		c[name] = one.text
	}
	return c, nil
}

// parse reads the documents, and refuses what some client would: see trustroot for
// the rules. What was rendered has them; what people signed may have another author.
func (c contents) parse() (documents, error) {
	d := documents{new(rootpb.TrustedRoot), new(rootpb.SigningConfig)}
	for name, into := range map[string]proto.Message{TrustedRoot: d.root, SigningConfig: d.signing} {
		text := c[name]
		if err := protojson.Unmarshal([]byte(text), into); err != nil { // unknown fields too: sigstore-go parses strictly
			return d, fmt.Errorf("%s isn't what clients parse strictly", name)
		}
		if strings.Index(text, "\n") != len(text)-1 {
			return d, fmt.Errorf("%s isn't one line with a final new line: gh reads nothing else", name)
		}
	}
	if _, err := trustroot.Parse([]byte(c[TrustedRoot])); err != nil {
		return d, err
	}
	if m := d.root.GetMediaType(); m != trustroot.TrustedRootMediaType {
		return d, fmt.Errorf("%s has media type %q: %q is the one that every client takes", TrustedRoot, m, trustroot.TrustedRootMediaType)
	}
	if m := d.signing.GetMediaType(); m != trustroot.SigningConfigMediaType {
		return d, fmt.Errorf("%s has media type %q: %q is expected", SigningConfig, m, trustroot.SigningConfigMediaType)
	}
	var last time.Time
	for _, ca := range d.root.GetCertificateAuthorities() {
		if start := ca.GetValidFor().GetStart().AsTime(); start.Before(last) {
			return d, fmt.Errorf("%s: the certificate authorities aren't in the order of their start", TrustedRoot)
		} else {
			last = start
		}
		if err := oneOrganization(ca); err != nil {
			return d, fmt.Errorf("%s: %w", TrustedRoot, err)
		}
	}
	for _, l := range d.root.GetCtlogs() {
		if l.GetCheckpointKeyId() != nil {
			return d, fmt.Errorf("%s: the log %s has a checkpointKeyId: sigstore-js then refuses every SCT", TrustedRoot, l.GetBaseUrl())
		}
	}
	return d, nil
}

// oneOrganization wants it in all certificates of an authority: gh picks the verifier by it.
func oneOrganization(ca *rootpb.CertificateAuthority) error {
	var first []string
	for i, raw := range ca.GetCertChain().GetCertificates() {
		c, err := x509.ParseCertificate(raw.GetRawBytes())
		if err != nil {
			return errors.New("a certificate can't be read")
		}
		if i > 0 && !slices.Equal(first, c.Subject.Organization) {
			return fmt.Errorf("the chain of %s names two Organizations", ca.GetUri())
		}
		first = c.Subject.Organization
	}
	return nil
}

// legacy is a target for clients that want one file for each key: cosign v2, gitsign.
type legacy struct {
	text   string
	custom json.RawMessage
}

// legacyTargets are the keys and certificates of a trusted root, one a file, with
// what says what they are for.
func legacyTargets(root *rootpb.TrustedRoot) map[string]legacy {
	all := make(map[string]legacy)
	add := func(usage, uri, kind string, der []byte) {
		sum := sha256.Sum256(der)
		name := fmt.Sprintf("%s-%s.%s.pem", strings.ToLower(usage), hex.EncodeToString(sum[:6]), map[string]string{"CERTIFICATE": "crt", "PUBLIC KEY": "pub"}[kind])
		// An ended one is Active too: it verifies what was signed in its time, and the
		// clients warn of every other status at each use.
		custom, _ := json.Marshal(map[string]any{"sigstore": map[string]string{"usage": usage, "status": "Active", "uri": uri}}) // strings always encode
		all[name] = legacy{string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})), custom}
	}
	for _, ca := range root.GetCertificateAuthorities() {
		for _, c := range ca.GetCertChain().GetCertificates() {
			add("Fulcio", ca.GetUri(), "CERTIFICATE", c.GetRawBytes())
		}
	}
	for _, tsa := range root.GetTimestampAuthorities() {
		for _, c := range tsa.GetCertChain().GetCertificates() {
			add("TSA", tsa.GetUri(), "CERTIFICATE", c.GetRawBytes())
		}
	}
	for usage, logs := range map[string][]*rootpb.TransparencyLogInstance{"CTFE": root.GetCtlogs(), "Rekor": root.GetTlogs()} {
		for _, l := range logs {
			add(usage, l.GetBaseUrl(), "PUBLIC KEY", l.GetPublicKey().GetRawBytes())
		}
	}
	return all
}

// entry is one line of what a trust root says.
type entry struct {
	line    string
	trusted bool // clients verify by it, which a service of the signing config isn't
	id      string
}

// entries are all lines of the documents, by what they are of.
func (d documents) entries() map[string]entry {
	all := make(map[string]entry)
	add := func(trusted bool, kind, name string, der []byte, of *commonpb.TimeRange) {
		id := name
		if der != nil {
			sum := sha256.Sum256(der)
			id = hex.EncodeToString(sum[:])
			name += ", SHA-256 " + id
		}
		all[kind+id] = entry{strings.TrimSpace(kind + " " + name + window(of)), trusted, id}
	}
	for kind, list := range map[string][]*rootpb.CertificateAuthority{
		"certificate authority": d.root.GetCertificateAuthorities(), "timestamp authority": d.root.GetTimestampAuthorities(),
	} {
		for _, ca := range list {
			if chain := ca.GetCertChain().GetCertificates(); len(chain) > 0 {
				add(true, kind, subject(chain[0].GetRawBytes()), chain[0].GetRawBytes(), ca.GetValidFor())
			}
		}
	}
	for kind, list := range map[string][]*rootpb.TransparencyLogInstance{"certificate log": d.root.GetCtlogs(), "signature log": d.root.GetTlogs()} {
		for _, l := range list {
			add(true, kind, l.GetBaseUrl(), l.GetPublicKey().GetRawBytes(), l.GetPublicKey().GetValidFor())
		}
	}
	for kind, list := range map[string][]*rootpb.Service{
		"CA": d.signing.GetCaUrls(), "issuer": d.signing.GetOidcUrls(), "signature log to use": d.signing.GetRekorTlogUrls(), "timestamps from": d.signing.GetTsaUrls(),
	} {
		for _, s := range list {
			add(false, kind, s.GetUrl(), nil, s.GetValidFor())
		}
	}
	return all
}

func subject(der []byte) string {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return "unreadable certificate"
	}
	return c.Subject.String()
}

func window(r *commonpb.TimeRange) string {
	text := ""
	if r.GetStart() != nil {
		text += ", from " + r.GetStart().AsTime().Format(time.RFC3339)
	}
	if r.GetEnd() != nil {
		text += ", until " + r.GetEnd().AsTime().Format(time.RFC3339)
	}
	return text
}

// Change is one line of a difference.
type Change struct {
	Sign byte   // '+' new, '-' gone, '~' changed
	Line string // what it is now, or was
	Lost bool   // clients can't verify any more what was signed under it
}

// difference is what changes for clients. No contents before are those of a beginning.
func difference(before, after contents) ([]Change, error) {
	was, is := map[string]entry{}, map[string]entry{}
	if len(before) > 0 {
		d, err := before.parse()
		if err != nil {
			return nil, fmt.Errorf("what was published: %w", err)
		}
		was = d.entries()
	}
	d, err := after.parse()
	if err != nil {
		return nil, err
	}
	is = d.entries()
	var all []Change
	for key, e := range is {
		switch old, known := was[key]; {
		case !known:
			all = append(all, Change{'+', e.line, false})
		case old.line != e.line:
			all = append(all, Change{'~', e.line, false})
		}
	}
	for key, e := range was {
		if _, still := is[key]; !still {
			all = append(all, Change{'-', e.line, e.trusted})
		}
	}
	slices.SortFunc(all, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Sign, b.Sign))
	})
	return all, nil
}

// lost is nil when all that clients verify by is still there.
func lost(changes []Change) error {
	var errs []error
	for _, c := range changes {
		if c.Lost {
			errs = append(errs, fmt.Errorf("%s was published and is gone: clients would refuse what was signed under it", c.Line))
		}
	}
	return errors.Join(errs...)
}

// sameLegacy is nil when the targets beside the documents are those that belong to them.
func (c contents) sameLegacy(d documents) error {
	want := legacyTargets(d.root)
	for _, name := range slices.Sorted(maps.Keys(c)) {
		one, known := want[name]
		if name != TrustedRoot && name != SigningConfig && (!known || !bytes.Equal([]byte(one.text), []byte(c[name]))) {
			return fmt.Errorf("the target %s isn't of the trusted root beside it", name)
		}
	}
	if len(c) != len(want)+2 {
		return errors.New("a target for older clients is missing")
	}
	return nil
}
