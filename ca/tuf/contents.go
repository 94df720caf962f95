package tuf

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	rootpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog"
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
	history *trustroot.History
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
	for _, one := range parsed.history.LegacyTargets() {
		c[one.Name] = string(one.Text)
	}
	return c, nil
}

// parse reads the documents.
func (c contents) parse() (d documents, err error) {
	d.signing = new(rootpb.SigningConfig)
	if err := protojson.Unmarshal([]byte(c[SigningConfig]), d.signing); err != nil || d.signing.GetMediaType() != trustroot.SigningConfigMediaType {
		return d, fmt.Errorf("%s isn't a signing config as clients parse it strictly", SigningConfig)
	}
	d.history, err = trustroot.Parse([]byte(c[TrustedRoot]))
	return d, err
}

// check refuses what some client would: what was rendered has all rules of package
// trustroot, and what people signed may have another author.
func (c contents) check() error {
	d, err := c.parse()
	if err != nil {
		return err
	}
	again := *d.history
	again.TransparencyLogs = slices.Clone(again.TransparencyLogs)
	for i, l := range again.TransparencyLogs {
		if l.ID != sha256.Sum256(l.SPKI) { // which a trusted root doesn't say otherwise
			again.TransparencyLogs[i].APIVersion = 2
		}
	}
	rendered, err := trustroot.Render(again)
	if err != nil {
		return err
	}
	if string(rendered.TrustedRoot) != c[TrustedRoot] {
		return fmt.Errorf("%s isn't as this Mayfly writes it, and some client would refuse it: stage it anew", TrustedRoot)
	}
	legacy := d.history.LegacyTargets()
	for _, one := range legacy {
		if c[one.Name] != string(one.Text) {
			return fmt.Errorf("the target %s isn't of the trusted root beside it", one.Name)
		}
	}
	if len(c) != len(legacy)+2 {
		return errors.New("there are targets that don't belong to the trusted root")
	}
	return nil
}

// custom is what older clients find their targets by, by name.
func (d documents) custom() map[string]json.RawMessage {
	all := make(map[string]json.RawMessage)
	for _, one := range d.history.LegacyTargets() {
		all[one.Name], _ = json.Marshal(one.Custom) // text alone, which always encodes
	}
	return all
}

// entry is one line of what clients are told.
type entry struct {
	words  string
	sha256 string // of the certificate or key that clients verify by; "" for a service
}

// entries are all lines of the documents, by what they are of.
func (d documents) entries() map[string]entry {
	all := make(map[string]entry)
	add := func(kind, name string, der []byte, start, end time.Time) {
		e := entry{words: kind + " " + name}
		id := name
		if der != nil {
			sum := sha256.Sum256(der)
			id = hex.EncodeToString(sum[:])
			e.words, e.sha256 = e.words+", SHA-256 "+id, id
		}
		if e.words += ", from " + stamp(start); !end.IsZero() {
			e.words += ", until " + stamp(end)
		}
		all[kind+id] = e
	}
	authorities := func(kind string, list []trustroot.Authority) {
		for _, a := range list {
			add(kind, a.Chain[0].Subject.String(), a.Chain[0].Raw, a.Start, a.End)
		}
	}
	authorities("certificate authority", d.history.Authorities)
	authorities("timestamp authority", d.history.TimestampAuthorities)
	log := func(kind string, l ctlog.Description) { add(kind, l.URL, l.SPKI, l.Start, l.End) }
	for _, l := range d.history.CTLogs {
		log("CT log", l)
	}
	for _, l := range d.history.TransparencyLogs {
		log("Rekor log", l.Description)
	}
	for kind, list := range map[string][]*rootpb.Service{
		"CA": d.signing.GetCaUrls(), "issuer": d.signing.GetOidcUrls(), "use of Rekor": d.signing.GetRekorTlogUrls(), "timestamps of": d.signing.GetTsaUrls(),
	} {
		for _, s := range list {
			var end time.Time
			if s.GetValidFor().GetEnd() != nil {
				end = s.GetValidFor().GetEnd().AsTime()
			}
			add(kind, s.GetUrl(), nil, s.GetValidFor().GetStart().AsTime(), end)
		}
	}
	return all
}

// Change is one line of a difference.
type Change struct {
	Sign byte   // '+' new, '-' gone, '~' changed
	Line string // what it is now, or was
}

// difference is what changes for clients. No contents before are those of a beginning.
func difference(before, after contents) ([]Change, error) {
	was := map[string]entry{}
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
	is := d.entries()
	var all []Change
	for key, e := range is {
		switch old, known := was[key]; {
		case !known:
			all = append(all, Change{'+', e.words})
		case old != e:
			all = append(all, Change{'~', e.words})
		}
	}
	for key, e := range was {
		if _, still := is[key]; !still {
			all = append(all, Change{'-', e.words})
		}
	}
	slices.SortFunc(all, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Sign, b.Sign))
	})
	return all, nil
}

// lost is nil when all that was signed under what is published can be verified after.
func lost(before, after contents, now time.Time) error {
	was, err := before.parse()
	if err != nil {
		return fmt.Errorf("what was published: %w", err)
	}
	is, err := after.parse()
	if err != nil {
		return err
	}
	var errs []error
	for _, words := range was.history.Lost(*is.history, now) {
		errs = append(errs, errors.New(words))
	}
	return errors.Join(errs...)
}

// sums are the SHA-256 of all that clients verify by, in order.
func (d documents) sums() (all []string) {
	for e := range maps.Values(d.entries()) {
		if e.sha256 != "" {
			all = append(all, e.sha256)
		}
	}
	slices.Sort(all)
	return all
}
