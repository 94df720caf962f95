package tuf

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

func sum(b []byte) [32]byte { return sha256.Sum256(b) }

// TestPublished: what two of three people signed is what a client gets from the
// folder, and a file for each key is there for older clients.
func TestPublished(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	if _, err := Load(r.dir); !errors.Is(err, ErrNothing) {
		t.Fatalf("an empty folder: %v", err)
	}
	r.begin(noon)
	loaded := r.load()
	d := r.documents()
	if loaded.files[TrustedRoot] != string(d.TrustedRoot) || loaded.files[SigningConfig] != string(d.SigningConfig) {
		t.Error("the targets aren't the documents")
	}
	var names []string
	for name, one := range loaded.targets.Signed.Targets {
		if one.Custom != nil {
			var plain bytes.Buffer
			r.must(json.Compact(&plain, *one.Custom))
			names = append(names, strings.SplitN(name, "-", 2)[0]+" "+plain.String())
		}
	}
	if len(names) != 3 || !strings.Contains(strings.Join(names, "\n"), `ctfe {"sigstore":{"status":"Active","uri":"https://log.example/1","usage":"CTFE"}}`) {
		t.Errorf("targets of older clients: %q", names)
	}
	if since, ok := loaded.Listed(r.input.CTLogs[0].ID); !ok || !since.IsZero() {
		t.Errorf("the log is listed since %v, %v", since, ok)
	}
	if roles := loaded.Roles(); len(roles) != 2 || !roles[0].Expires.Equal(noon.Add(RootLife)) || roles[1].Threshold != 2 || roles[1].Remains(noon.Add(TargetsLife/2)) != 50 {
		t.Errorf("roles: %+v", roles)
	}
}

// TestNothingIsPublished: each draft that isn't good enough is refused in words, and the
// folder stays as it is.
func TestNothingIsPublished(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.begin(noon)
	before, err := os.ReadFile(filepath.Join(r.dir, stateName))
	r.must(err)
	foreign := newSigner(t)
	twice := r.signed(r.stage(noon), r.people[0])
	twice.targets.Signatures = append(twice.targets.Signatures, twice.targets.Signatures[0])
	twice.targets.Signatures[1].KeyID = r.load().root.Signed.Roles["targets"].KeyIDs[1] // as another's
	again := r.signed(r.stage(noon), r.people[0])
	r.must(sign(r.Context(), again.targets, r.people[0]))
	again.targets.Signatures = append(again.targets.Signatures, again.targets.Signatures[0]) // in memory, where no reader stops it
	signer, err := KeyID(r.people[0].Public())
	r.must(err)
	forged := r.signed(r.stage(noon), r.people[0], r.people[1])
	forged.targets.Signed.Expires = forged.targets.Signed.Expires.Add(time.Hour)
	changed := r.signed(r.stage(noon), r.people[0], r.people[1])
	changed.files[TrustedRoot] = strings.Replace(changed.files[TrustedRoot], "https://log.example", "https://lag.example", 1)
	rotated, err := Rotate(r.load(), Keys{Root: public(foreign, newSigner(t)), Targets: public(foreign), Threshold: 1, Online: r.online.Public()}, noon)
	r.must(err)
	for name, c := range map[string]struct {
		draft *Draft
		at    time.Time
		want  string
	}{
		"one of two keys":       {r.signed(r.stage(noon), r.people[1]), noon, "targets 2 has 1 of 2 signatures that count"},
		"one key twice":         {again, noon, "targets 2 has 1 of 2 signatures that count (keys " + short(signer) + ")"},
		"one key as two":        {twice, noon, "targets 2 has 1 of 2 signatures that count"},
		"changed after signing": {forged, noon, "targets 2 has 0 of 2 signatures that count"},
		"another file":          {changed, noon, "trusted_root.json isn't the file that targets 2 lists"},
		"new keys alone":        {r.signed(rotated, foreign), noon, "root 2 by the keys of root 1 has 0 of 2 signatures that count"},
		"old keys alone":        {r.signed(rotated, r.people[0], r.people[1]), noon, "root 2 has 0 of 1 signatures that count"},
		"one old key":           {r.signed(rotated, foreign, r.people[0]), noon, "root 2 by the keys of root 1 has 1 of 2 signatures that count"},
		"an expired root":       {r.signed(r.stage(noon.Add(RootLife)), r.people[0], r.people[1]), noon.Add(RootLife), "root 1 has expired"},
		"expired targets":       {r.signed(r.stage(noon), r.people[0], r.people[1]), noon.Add(TargetsLife), "targets 2 has expired"},
	} {
		_, err := Publish(t.Context(), r.dir, c.draft, r.online, c.at)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, key := range append(r.people, r.online, foreign)[3:] {
		_, err := r.stage(noon).Sign(t.Context(), key)
		if err == nil || !strings.Contains(err.Error(), "is for [timestamp snapshot] and signs nothing") && !strings.Contains(err.Error(), "is none of those that sign this draft") {
			t.Errorf("a key of another role: %v", err)
		}
	}
	if _, err := Publish(t.Context(), r.dir, r.signed(r.stage(noon), r.people[0], r.people[1]), foreign, noon); err == nil || !strings.Contains(err.Error(), "a TUF client refuses the result") {
		t.Errorf("another online key: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(r.dir, stateName))
	r.must(err)
	if string(before) != string(after) {
		t.Error("something was published")
	}
	if _, err := os.Stat(filepath.Join(r.dir, "2.targets.json")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was left")
	}
}

// TestFollow: targets and roots follow one another; an entry that vanished has to be
// said, and a draft that was staged after another beginning isn't taken.
func TestFollow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.begin(noon)
	old := r.signed(r.stage(noon), r.people[0], r.people[1])
	first := r.input.Authorities[0]
	r.input.Authorities = append(r.input.Authorities, newAuthority(t, "second", noon))
	later := noon.Add(48 * time.Hour)
	d := r.stage(later)
	changes, err := d.Changes()
	r.must(err)
	if len(changes) != 1 || changes[0].Sign != '+' || !strings.HasPrefix(changes[0].Line, "certificate authority CN=second,O=Example, SHA-256 ") {
		t.Errorf("the difference: %+v", changes)
	}
	one, other := r.signed(d, r.people[0]), r.signed(d, r.people[2]) // at the same time, on copies
	merged, err := Merge([]*Draft{one, other})
	r.must(err)
	r.publish(merged, later)
	if _, err := Publish(t.Context(), r.dir, old, r.online, later); err == nil || !strings.Contains(err.Error(), "stage it anew") {
		t.Errorf("a draft from before: %v", err)
	}
	for i, want := range []time.Time{{}, later} {
		if since, ok := r.load().Listed(sum(r.input.Authorities[i].Chain[0].Raw)); !ok || !since.Equal(want) {
			t.Errorf("authority %d is listed since %v, %v", i, since, ok)
		}
	}
	r.input.Authorities = r.input.Authorities[1:]
	if _, err := Stage(r.load(), r.documents(), false, nil, later); err == nil || !strings.Contains(err.Error(), "the certificate authority CN=first,O=Example") || !strings.Contains(err.Error(), "nothing signed under it can be verified") {
		t.Errorf("an authority that vanished: %v", err)
	}
	gone, err := Stage(r.load(), r.documents(), true, nil, later)
	r.must(err)
	r.publish(r.signed(gone, r.people[1], r.people[2]), later)
	if _, ok := r.load().Listed(sum(first.Chain[0].Raw)); ok {
		t.Error("it is still listed")
	}
	before := r.people
	r.people = []kms.Signer{newSigner(t), newSigner(t), before[0]}
	for version := int64(2); version <= 3; version++ {
		d, err := Rotate(r.load(), r.keys(), later)
		r.must(err)
		signers := r.people
		if version == 2 {
			signers = append(r.people[:2:2], before[:2]...)
		}
		if got := r.publish(r.signed(d, signers...), later).state.Root; got != version {
			t.Errorf("root %d", got)
		}
	}
}
