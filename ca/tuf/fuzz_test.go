package tuf

import (
	"os"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// FuzzParseDraft: whatever a file holds, it is a draft that can be written and read
// again, or an error.
func FuzzParseDraft(f *testing.F) {
	r := newRig(f)
	d, err := Init(r.keys(), r.documents(), noon)
	r.must(err)
	first, err := r.signed(d, r.people[0]).Format()
	r.must(err)
	f.Add(first)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.begin(noon)
	next, err := r.stage(noon).Format()
	r.must(err)
	f.Add(next)
	f.Add([]byte(`{"tuf_draft":2,"root":{"signed":{"_type":"root","roles":{"root":null}}},"targets":null,"files":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDraft(b)
		if err != nil {
			return
		}
		_ = d.Standings()
		if _, err := d.Changes(); err != nil {
			t.Errorf("a draft without a difference: %v", err)
		}
		again, err := d.Format()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseDraft(again); err != nil {
			t.Errorf("what was written can't be read: %v", err)
		}
	})
}

// FuzzMetadata: metadata of every role is read, or refused, and thresholds are counted.
func FuzzMetadata(f *testing.F) {
	r := newRig(f)
	r.must(os.MkdirAll(r.dir, 0o700))
	repo := r.begin(noon)
	for _, path := range []string{"1.root.json", "1.targets.json"} {
		f.Add(repo.paths[path])
	}
	f.Add([]byte(`{"signed":{"_type":"targets","version":1,"targets":{"x":null}},"signatures":[]}`))
	f.Add([]byte(`{"signed":{"_type":"root","version":1,"keys":{"x":null},"roles":{}},"signatures":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if root, err := decodeRoot(b); err == nil {
			for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
				signers(root, role, repo.targets)
			}
			_ = checkThreshold(root, metadata.ROOT, "root", root)
		}
		if targets, err := decodeTargets(b); err == nil {
			_ = checkThreshold(repo.root, metadata.TARGETS, "targets", targets)
			_ = repo.files.belongTo(targets)
		}
	})
}
