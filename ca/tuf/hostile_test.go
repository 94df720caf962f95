package tuf

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	rootpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
)

// object is a JSON object as whoever carries a draft may change it.
type object = map[string]any

func at(o object, path ...string) object {
	for _, name := range path {
		o = o[name].(object)
	}
	return o
}

// edited is a draft's file after an edit of all, with the documents' own edit and the
// sums of targets made right again.
func (r *rig) edited(d *Draft, edit func(draft, trusted, signing object)) []byte {
	r.Helper()
	b, err := d.Format()
	r.must(err)
	var all, trusted, signing object
	r.must(json.Unmarshal(b, &all))
	files := at(all, "files")
	r.must(json.Unmarshal([]byte(files[TrustedRoot].(string)), &trusted))
	r.must(json.Unmarshal([]byte(files[SigningConfig].(string)), &signing))
	edit(all, trusted, signing)
	was := d.files
	for name, o := range map[string]object{TrustedRoot: trusted, SigningConfig: signing} {
		text, err := json.Marshal(o)
		r.must(err)
		var same object
		r.must(json.Unmarshal([]byte(was[name]), &same))
		if plain, _ := json.Marshal(same); string(plain) == string(text) {
			continue
		}
		files[name] = r.asWritten(name, text)
		target, err := metadata.TargetFile().FromBytes(name, []byte(files[name].(string)), "sha256")
		r.must(err)
		at(all, "targets", "signed", "targets")[name] = target
	}
	b, err = json.Marshal(all)
	r.must(err)
	return b
}

// asWritten is a document to the byte as Mayfly writes it, but for what it says.
func (r *rig) asWritten(name string, text []byte) string {
	r.Helper()
	if name == TrustedRoot {
		h, err := trustroot.Parse(text)
		r.must(err)
		d, err := trustroot.Render(*h)
		r.must(err)
		return string(d.TrustedRoot)
	}
	var doc rootpb.SigningConfig
	r.must(protojson.Unmarshal(text, &doc))
	loose, err := protojson.Marshal(&doc)
	r.must(err)
	var b bytes.Buffer
	r.must(json.Compact(&b, loose))
	return b.String() + "\n"
}

// doubled has a list begin with its first entry once more, in a wide window.
func doubled(o object, list string) {
	all := o[list].([]any)
	wide := maps.Clone(all[0].(object))
	wide["validFor"] = object{"start": "1971-01-01T00:00:00Z"}
	o[list] = append([]any{wide}, all...)
}

// TestHostileDraft: what isn't rebuilt from what people are shown is no draft, so that
// nobody signs what nobody saw.
func TestHostileDraft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.begin(noon)
	stranger, strangerID, err := newKey(newSigner(t).Public())
	r.must(err)
	rotated, err := Rotate(r.load(), r.keys(), noon)
	r.must(err)
	signed := func(o object) object { return at(o, "targets", "signed") }
	once, rotatedOnce := r.signed(r.stage(noon), r.people[0]), r.signed(rotated, r.people[0])
	first, err := KeyID(r.people[0].Public())
	r.must(err)
	again := func(draft object, role string) {
		list := at(draft, role)["signatures"].([]any)
		at(draft, role)["signatures"] = append(list, list[0])
	}
	for name, c := range map[string]struct {
		from *Draft
		edit func(draft, trusted, signing object)
		want string
	}{
		"an authority twice": {r.stage(noon), func(_, trusted, _ object) { doubled(trusted, "certificateAuthorities") }, "is listed twice"},
		"a service twice":    {r.stage(noon), func(_, _, signing object) { doubled(signing, "caUrls") }, "is listed twice"},
		"a selector":         {r.stage(noon), func(_, _, signing object) { signing["tsaConfig"] = object{"selector": "ALL"} }, "isn't as this Mayfly writes it"},
		"a usage": {r.stage(noon), func(d, _, _ object) {
			for name, one := range at(signed(d), "targets") {
				if strings.HasPrefix(name, "ctfe-") {
					at(one.(object), "custom", "sigstore")["usage"] = "Fulcio"
				}
			}
		}, "targets 2 isn't what this Mayfly makes"},
		"a delegation": {r.stage(noon), func(d, _, _ object) {
			g := at(signed(d), "delegations")
			at(g, "keys")[strangerID] = stranger
			g["roles"] = append([]any{object{"name": "more", "keyids": []string{strangerID}, "threshold": 1, "terminating": false, "paths": []string{"*", "*/*"}}}, g["roles"].([]any)...)
		}, "targets 2 isn't what this Mayfly makes"},
		"no delegation":  {r.stage(noon), func(d, _, _ object) { delete(signed(d), "delegations") }, "targets 2 isn't what this Mayfly makes"},
		"a member":       {r.stage(noon), func(d, _, _ object) { signed(d)["more\u001b[2J"] = "x" }, "targets 2 isn't what this Mayfly makes"},
		"another hash":   {r.stage(noon), func(d, _, _ object) { at(signed(d), "targets", TrustedRoot, "hashes")["sha512"] = "00" }, "trusted_root.json isn't the file"},
		"a custom":       {r.stage(noon), func(d, _, _ object) { at(signed(d), "targets", TrustedRoot)["custom"] = object{"x": 1} }, "targets 2 isn't what this Mayfly makes"},
		"half a second":  {r.stage(noon), func(d, _, _ object) { signed(d)["expires"] = "2027-01-01T00:00:00.5Z" }, "targets 2 isn't what this Mayfly makes"},
		"a root's more":  {rotated, func(d, _, _ object) { at(d, "root", "signed")["more"] = "x" }, "root 2 isn't what this Mayfly makes"},
		"a key's more":   {rotated, func(d, _, _ object) { at(d, "root", "signed", "keys")[strangerID] = stranger }, "root 2 isn't what this Mayfly makes"},
		"a role's share": {rotated, func(d, _, _ object) { at(d, "root", "signed", "roles", "targets")["threshold"] = 1 }, "root 2 isn't what this Mayfly makes"},
		"signed twice":   {once, func(d, _, _ object) { again(d, "targets") }, "has targets that can't be used: isn't TUF metadata of its role: value error: multiple signatures found for key ID " + first},
		"a root's twice": {rotatedOnce, func(d, _, _ object) { again(d, "root") }, "has a root that can't be used: isn't TUF metadata of its role: value error: multiple signatures found for key ID " + first},
		"no snapshots":   {rotated, func(d, _, _ object) { at(d, "root", "signed")["consistent_snapshot"] = false }, "no consistent snapshots"},
	} {
		d, err := ParseDraft(r.edited(c.from, c.edit))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
			if d != nil {
				t.Log(d.Changes())
			}
		}
	}
	if _, err := ParseDraft(r.edited(r.stage(noon), func(_, _, _ object) {})); err != nil {
		t.Errorf("without an edit: %v", err)
	}
	for text, want := range map[string]string{
		`{"tuf_draft":1,"targets":{},"files":{},"in_force":{"roots":[{}],"targets":{},"files":{}}}`: "is a draft of version 1; this Mayfly knows 2",
		`{"targets":{},"files":{}}`:                        "is a draft of version 0",
		`{"tuf_draft":2,"targets":{},"files":{},"more":1}`: "isn't a draft as",
		`{"tuf_draft":2,"targets":{},"files":{},"in_force":{"root":9000000000000,"targets":1,"files":{}}}`: "targets that can't be used",
	} {
		if _, err := ParseDraft([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for name, edit := range map[string]func(inForce object){
		"no root":       func(o object) { o["root"] = 0 },
		"many roots":    func(o object) { o["root"] = int64(1) << 60 },
		"other targets": func(o object) { o["targets"] = 2 },
		"a file less":   func(o object) { delete(at(o, "files"), "1.targets.json") },
		"a changed file": func(o object) {
			for path, text := range at(o, "files") {
				if strings.HasPrefix(path, "targets/") {
					at(o, "files")[path] = text.(string) + "\n"
				}
			}
		},
	} {
		if _, err := ParseDraft(r.edited(r.stage(noon), func(d, _, _ object) { edit(at(d, "in_force")) })); err == nil || !strings.HasPrefix(err.Error(), "follows a repository that can't be used: ") {
			t.Errorf("in force, %s: %v", name, err)
		}
	}
	// In memory, where nothing was read: neither signed nor published.
	d := r.signed(r.stage(noon), r.people[0])
	d.targets.Signed.UnrecognizedFields = map[string]any{"more": "x"}
	if _, err := d.Sign(t.Context(), r.people[1]); err == nil || !strings.Contains(err.Error(), "targets 2 isn't what this Mayfly makes") {
		t.Errorf("signed: %v", err)
	}
}

// TestEveryDifferenceIsSaid: with any change of what clients get there is a line.
func TestEveryDifferenceIsSaid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.input.Authorities = append(r.input.Authorities, newAuthority(t, "other", r.input.Authorities[0].Start))
	r.begin(noon)
	was := r.input
	for name, c := range map[string]struct {
		edit func()
		want []string
	}{
		"nothing":           {func() {}, nil},
		"an operator":       {func() { r.input.Authorities[1].Operator = "them" }, []string{"~ CA https://ca.example, version 1, by them, from "}},
		"a URL":             {func() { r.input.Authorities[0].URL = "https://evil.example" }, []string{"+ CA https://evil.example, ", ", at https://evil.example, from "}},
		"an order":          {func() { slices.Reverse(r.input.Authorities) }, []string{"~ the order in which clients find what stays"}},
		"a URL with commas": {func() { r.input.CTLogs[0].URL = "https://log.example/1, from 1971" }, []string{`~ CT log https://log.example/1, from 1971, SHA-256 `}},
	} {
		r.input = was
		r.input.Authorities, r.input.CTLogs = slices.Clone(was.Authorities), slices.Clone(was.CTLogs)
		c.edit()
		d, err := Stage(r.load(), r.documents(), true, nil, noon)
		r.must(err)
		changes, err := r.carried(d).Changes()
		r.must(err)
		var text []string
		for _, change := range changes {
			text = append(text, string(change.Sign)+" "+change.Line)
		}
		for _, want := range c.want {
			if !strings.Contains(strings.Join(text, "\n"), want) {
				t.Errorf("%s: no %q in %q", name, want, text)
			}
		}
		if (len(c.want) == 0) != (len(text) == 0) {
			t.Errorf("%s: %q", name, text)
		}
	}
	r.input = was
	before := r.people[2]
	r.people[2] = newSigner(t)
	k := r.keys()
	k.Threshold = 3
	d, err := Rotate(r.load(), k, noon)
	r.must(err)
	changes, err := d.Changes()
	r.must(err)
	var text []string
	for _, change := range changes {
		text = append(text, string(change.Sign)+" "+change.Line)
	}
	gone, _ := KeyID(before.Public())
	is, _ := KeyID(r.people[2].Public())
	if want := []string{
		"+ key " + is + " signs root", "- key " + gone + " signs root", "+ key " + is + " signs targets", "- key " + gone + " signs targets",
		"~ root needs 3 signatures", "~ targets needs 3 signatures",
	}; !slices.Equal(slices.Sorted(slices.Values(text)), slices.Sorted(slices.Values(want))) {
		t.Errorf("a rotation says %q", text)
	}
}

// TestForeignDraft: a draft says which repository it follows, from the first root on,
// and one of another, or of a beginning that somebody made up, isn't published.
func TestForeignDraft(t *testing.T) {
	t.Parallel()
	ours, theirs := newRig(t), newRig(t)
	for _, r := range []*rig{ours, theirs} {
		r.must(os.MkdirAll(r.dir, 0o700))
	}
	theirs.people[0] = ours.people[0] // somebody signs for both
	repo := ours.begin(noon)
	theirs.begin(noon)
	d, err := Rotate(repo, ours.keys(), noon)
	ours.must(err)
	ours.publish(ours.signed(d, ours.people[0], ours.people[1]), noon)
	good, other := ours.carried(ours.stage(noon)), theirs.carried(theirs.stage(noon))
	if got := good.Follows(); got != sum(repo.FirstRoot()) || other.Follows() == got {
		t.Errorf("it follows %x", got)
	}
	if first, _ := Init(ours.keys(), ours.documents(), noon); first.Follows() != [32]byte{} {
		t.Error("a beginning follows something")
	}
	if _, err := Publish(t.Context(), ours.dir, theirs.signed(other, theirs.people[0], theirs.people[1]), ours.online, noon); err == nil || !strings.Contains(err.Error(), "of another beginning") {
		t.Errorf("another repository's: %v", err)
	}
	if _, err := Merge([]*Draft{good, other}); err == nil {
		t.Error("drafts of two repositories are one")
	}
	// A root in force that the roots before haven't signed.
	forged := theirs.edited(theirs.stage(noon), func(draft, _, _ object) {
		var made object
		b, err := good.Format()
		theirs.must(err)
		theirs.must(json.Unmarshal(b, &made))
		at(draft, "in_force")["root"] = 2
		files := at(draft, "in_force", "files")
		files["2.root.json"], files["1.root.json"] = files["1.root.json"], at(made, "in_force", "files")["1.root.json"]
	})
	if _, err := ParseDraft(forged); err == nil || !strings.Contains(err.Error(), "follows a repository that can't be used: ") {
		t.Errorf("a made-up beginning: %v", err)
	}
	// Other targets in force under the same root: whoever signed saw another difference.
	aside := *ours.load()
	later, err := Stage(&aside, ours.documents(), false, nil, noon.Add(time.Hour))
	ours.must(err)
	twin := ours.signed(later, ours.people[0], ours.people[1])
	twin.targets.Signed.Version = 2 // as what is in force
	twin.targets.Signatures = nil
	for _, key := range ours.people[:2] {
		ours.must(sign(t.Context(), twin.targets, key))
	}
	aside.targets, aside.paths = twin.targets, maps.Clone(aside.paths)
	aside.paths["2.targets.json"], err = encode(twin.targets)
	ours.must(err)
	unseen, err := Stage(&aside, ours.documents(), false, nil, noon)
	ours.must(err)
	if _, err := Publish(t.Context(), ours.dir, ours.signed(unseen, ours.people[0], ours.people[1]), ours.online, noon); err == nil || !strings.Contains(err.Error(), "stage it anew") {
		t.Errorf("after other targets: %v", err)
	}
}

// TestMergeForged: a signature that doesn't count keeps none out that does, and what
// nobody signed isn't carried on.
func TestMergeForged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.begin(noon)
	d := r.stage(noon)
	good := r.signed(d, r.people[0], r.people[1])
	bad := r.carried(good)
	for i := range bad.targets.Signatures {
		bad.targets.Signatures[i].Signature = []byte("none")
	}
	bad.targets.Signatures = append(bad.targets.Signatures, metadata.Signature{KeyID: "more", Signature: []byte("x")})
	bad.targets.UnrecognizedFields = map[string]any{"more": "x"}
	merged, err := Merge([]*Draft{r.carried(bad), good})
	r.must(err)
	if n := len(merged.targets.Signatures); n != 2 || len(merged.targets.UnrecognizedFields) > 0 {
		t.Errorf("%d signatures", n)
	}
	r.publish(merged, noon)
}

// TestHostileServer: what a repository's server says is one bounded line, and sends a
// client nowhere else.
func TestHostileServer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	repo := r.begin(noon)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the client went elsewhere") }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch {
		case strings.HasPrefix(q.URL.Path, "/moved"):
			http.Redirect(w, q, elsewhere.URL, http.StatusFound)
		case strings.HasPrefix(q.URL.Path, "/large"):
			_, _ = w.Write(make([]byte, maxBytes+1))
		default:
			http.Error(w, "\x1b[2Jgood\nfix: run this"+strings.Repeat("x", 4096), http.StatusTeapot)
		}
	}))
	defer server.Close()
	for path, want := range map[string]string{"/moved": "answers 302", "/large": "more than", "/words": "\ufffd[2Jgood fix: run this"} {
		_, err := Verify(t.Context(), server.URL+path, repo.FirstRoot(), noon)
		if err == nil || !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 600 {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestRanges: many ranges cost no more than the file.
func TestRanges(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	repo := r.begin(noon)
	o := r.serve(func() time.Time { return noon }, "")
	for ranges, want := range map[string]int{"bytes=0-0" + strings.Repeat(",0-0", 499): len(repo.FirstRoot()), "bytes=1-3": 3} {
		q := httptest.NewRequest(http.MethodGet, Prefix+"1.root.json", nil)
		q.Header.Set("Range", ranges)
		w := httptest.NewRecorder()
		o.ServeHTTP(w, q)
		if w.Body.Len() != want || q.Header.Get("Range") != ranges {
			t.Errorf("%.20s: %d, %d bytes; want %d", ranges, w.Code, w.Body.Len(), want)
		}
	}
}
