package tuf

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	rootpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"

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
	entries := d.entries()
	for i, e := range entries {
		if slices.ContainsFunc(entries[:i], func(o entry) bool { return o.id == e.id }) {
			return fmt.Errorf("%s is listed twice: give it one window", e.words)
		}
	}
	if rendered.SigningConfig, err = trustroot.RenderAgain(d.signing); err != nil {
		return err
	}
	want, err := newContents(rendered)
	if err != nil {
		return err
	}
	for name, text := range want {
		if c[name] != text {
			return fmt.Errorf("%s isn't as this Mayfly writes it, and some client would refuse it: stage it anew", name)
		}
	}
	if len(c) != len(want) {
		return errors.New("there are targets that don't belong to the trusted root")
	}
	return nil
}

// entry is one line of what clients are told, and says all of it.
type entry struct {
	id     string // what it is of
	words  string
	sha256 string // of the certificate or key that clients verify by; "" for a service
}

// entries are all lines of the documents, as they are ordered there.
func (d documents) entries() (all []entry) {
	add := func(e entry, start, end time.Time) {
		if e.words += ", from " + stamp(start); !end.IsZero() {
			e.words += ", until " + stamp(end)
		}
		all = append(all, e)
	}
	listed := d.history.Entries()
	for i, e := range listed {
		is := fmt.Sprintf("%x", sha256.Sum256(e.Verifies))
		one := entry{id: e.ID, words: e.Name + ", SHA-256 " + is + e.More, sha256: is}
		for _, before := range listed[:i] { // what is excised lies in between
			if before.ID == e.ID && !before.End.IsZero() && before.End.Before(e.Start) {
				one.id += " again"
			}
		}
		add(one, e.Start, e.End)
	}
	services := func(kind string, list []*rootpb.Service) {
		for _, s := range list {
			var end time.Time
			if s.GetValidFor().GetEnd() != nil {
				end = s.GetValidFor().GetEnd().AsTime()
			}
			id := fmt.Sprintf("%s %s, version %d", kind, s.GetUrl(), s.GetMajorApiVersion())
			add(entry{id: id, words: id + ", by " + s.GetOperator()}, s.GetValidFor().GetStart().AsTime(), end)
		}
	}
	services("CA", d.signing.GetCaUrls())
	services("issuer", d.signing.GetOidcUrls())
	services("use of Rekor", d.signing.GetRekorTlogUrls())
	services("timestamps of", d.signing.GetTsaUrls())
	return all
}

// Change is one line of a difference.
type Change struct {
	Sign byte   // '+' new, '-' gone, '~' changed
	Line string // what it is now, or was
}

// difference is what changes for clients, and in any case something where the files
// aren't the same. No contents before are those of a beginning.
func difference(before, after contents) ([]Change, error) {
	var was []entry
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
	all := changed(was, d.entries())
	if len(all) == 0 && !maps.Equal(before, after) {
		all = []Change{{'~', "the documents are written in another way"}}
	}
	return all, nil
}

// changed is how one list differs from another, its order included.
func changed(was, is []entry) (all []Change) {
	var stay []entry
	find := func(list []entry, e entry) int {
		return slices.IndexFunc(list, func(o entry) bool { return o.id == e.id })
	}
	for _, e := range is {
		switch i := find(was, e); {
		case i < 0:
			all = append(all, Change{'+', e.words})
		case was[i] != e:
			all = append(all, Change{'~', e.words})
		default:
			stay = append(stay, e)
		}
	}
	for _, e := range was {
		if find(is, e) < 0 {
			all = append(all, Change{'-', e.words})
		}
	}
	if stayed := slices.DeleteFunc(slices.Clone(was), func(e entry) bool { return !slices.Contains(stay, e) }); !slices.Equal(stayed, stay) {
		all = append(all, Change{'~', "the order in which clients find what stays"})
	}
	slices.SortFunc(all, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Sign, b.Sign))
	})
	return all
}

// lost is nil when all that was signed under what is published can be verified after,
// but for what was signed in the gap, and nothing that was excised before.
func lost(before, after contents, gap []trustroot.Gap, now time.Time) error {
	was, err := before.parse()
	if err != nil {
		return fmt.Errorf("what was published: %w", err)
	}
	is, err := after.parse()
	if err != nil {
		return err
	}
	var errs []error
	for _, words := range append(was.history.Excise(gap).Lost(*is.history, now), was.history.Regained(*is.history)...) {
		errs = append(errs, errors.New(words))
	}
	return errors.Join(errs...)
}

// sums are the SHA-256 of all that clients verify by, in order.
func (d documents) sums() (all []string) {
	for _, e := range d.entries() {
		if e.sha256 != "" {
			all = append(all, e.sha256)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
