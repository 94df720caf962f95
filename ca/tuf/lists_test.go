package tuf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
)

// list is what a client gets for an authority's list, with the memory of a folder.
func (r *rig) list(o *Online, authority, cache string, now time.Time) (string, error) {
	r.Helper()
	c, err := config.New(base, r.load().FirstRoot())
	r.must(err)
	c.Fetcher, c.LocalMetadataDir, c.LocalTargetsDir = fetch(o.read), cache, filepath.Join(cache, "targets")
	client, err := updater.New(c)
	r.must(err)
	client.UnsafeSetRefTime(now)
	r.must(client.Refresh())
	info, err := client.GetTargetInfo(ListPath(authority))
	if err != nil {
		return "", err
	}
	_, b, err := client.DownloadTarget(info, "", "")
	return string(b), err
}

// TestLists: a client has each list as soon as it is published, by every replica, over
// the days, and never an older one.
func TestLists(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.begin(noon)
	clock := noon
	now := func() time.Time { return clock }
	replicas := []*Online{r.serve(now, ""), r.serve(now, "")}
	cache := t.TempDir()
	publish := func(number int64, files map[string][]byte) {
		t.Helper()
		for _, o := range replicas {
			r.must(o.PublishLists(t.Context(), Lists{number, files}))
		}
		if a, b := get(replicas[0], "timestamp.json").Body.String(), get(replicas[1], "timestamp.json").Body.String(); a != b {
			t.Errorf("replicas differ: %s\n%s", a, b)
		}
	}
	want := func(authority, text string) {
		t.Helper()
		for _, o := range replicas {
			for _, known := range []string{cache, t.TempDir()} {
				if got, err := r.list(o, authority, known, clock); err != nil || got != text {
					t.Errorf("%s: %q, %v, want %q", authority, got, err, text)
				}
			}
		}
	}
	if _, err := r.list(replicas[0], "aa", cache, clock); err == nil {
		t.Error("a list before there is one")
	}
	publish(0, map[string][]byte{"aa": []byte("aa 0")}) // an empty list, under the version of none
	if got, err := r.list(replicas[0], "aa", t.TempDir(), clock); err != nil || got != "aa 0" {
		t.Errorf("the first list: %q, %v", got, err)
	}
	publish(1, map[string][]byte{"aa": []byte("aa 1"), "bb": []byte("bb 1")})
	want("aa", "aa 1")
	want("bb", "bb 1")
	publish(20_001, map[string][]byte{"aa": []byte("aa 20001"), "bb": []byte("bb 20001")}) // more than a day's step
	want("bb", "bb 20001")
	publish(2, map[string][]byte{"aa": []byte("aa 2")})
	want("aa", "aa 20001")
	publish(20_001, map[string][]byte{"aa": []byte("again"), "bb": []byte("bb again")})
	want("aa", "aa 20001") // until the next day
	for _, step := range []time.Duration{12*time.Hour - 5*time.Minute, 10 * time.Minute} {
		clock = clock.Add(step)
		for _, o := range replicas {
			o.refresh(t.Context())
		}
	}
	want("aa", "again")

	// Shortly before midnight the next day's files are there; lists that come then aren't lost.
	clock = clock.Add(24*time.Hour - 10*time.Minute)
	for _, o := range replicas {
		o.refresh(t.Context())
	}
	publish(20_002, map[string][]byte{"aa": []byte("late"), "bb": []byte("bb late")})
	clock = clock.Add(20 * time.Minute)
	for _, o := range replicas {
		o.refresh(t.Context())
	}
	want("aa", "late")

	// Another publication keeps them.
	r.publish(r.signed(r.stage(clock), r.people[0], r.people[1]), clock)
	for _, o := range replicas {
		r.take(o)
	}
	want("aa", "late")
}

// TestListsAreTriedAgain: where the key fails, what was served stays, and the next look
// at the clock signs; lists from before the first publication go out with it.
func TestListsAreTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	key := &failingKey{Signer: r.online}
	options := r.options(func() time.Time { return noon }, "")
	options.Key = key
	o, err := NewOnline(options)
	r.must(err)
	r.must(o.PublishLists(t.Context(), Lists{3, map[string][]byte{"aa": []byte("early")}}))
	r.begin(noon)
	r.take(o)
	key.broken.Store(true)
	if err := o.PublishLists(t.Context(), Lists{4, map[string][]byte{"aa": []byte("later")}}); err == nil || !strings.Contains(err.Error(), "tried again") {
		t.Errorf("the key fails: %v", err)
	}
	if got, err := r.list(o, "aa", t.TempDir(), noon); err != nil || got != "early" {
		t.Errorf("%q, %v", got, err)
	}
	key.broken.Store(false)
	o.refresh(t.Context())
	if got, err := r.list(o, "aa", t.TempDir(), noon); err != nil || got != "later" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestExciseIsStaged: a gap is no loss where it is meant, is shown to who signs, and
// isn't forgotten by the next draft.
func TestExciseIsStaged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(os.MkdirAll(r.dir, 0o700))
	r.begin(noon)
	whole := r.input
	gap := []trustroot.Gap{{From: noon.Add(-3 * time.Hour), To: noon.Add(-2 * time.Hour)}}
	r.input = whole.Excise(gap)
	later := noon.Add(time.Hour)
	if _, err := Stage(r.load(), r.documents(), false, nil, later); err == nil || !strings.Contains(err.Error(), "nothing signed in between can be verified") {
		t.Errorf("a gap that nobody meant: %v", err)
	}
	d, err := Stage(r.load(), r.documents(), false, gap, later)
	r.must(err)
	changes, err := d.Changes()
	r.must(err)
	var lines []string
	for _, c := range changes {
		lines = append(lines, string(c.Sign)+c.Line)
	}
	shown := strings.Join(lines, "\n")
	for _, line := range []string{"~certificate authority CN=first,O=Example", "until 2026-11-29T08:59:59Z", "+certificate authority CN=first,O=Example", "from 2026-11-29T10:00:01Z"} {
		if !strings.Contains(shown, line) {
			t.Errorf("who signs doesn't see %q in\n%s", line, shown)
		}
	}
	r.publish(r.signed(d, r.people[0], r.people[1]), later)
	r.stage(later) // nothing is lost any more

	r.input = whole
	if _, err := Stage(r.load(), r.documents(), false, nil, later); err == nil || !strings.Contains(err.Error(), "from 2026-11-29T09:00:00Z on was excised and would count again") {
		t.Errorf("the gap is forgotten: %v", err)
	}
	_, err = Stage(r.load(), r.documents(), true, nil, later)
	r.must(err)

	r.input.Authorities = append(whole.Authorities, whole.Authorities[0]) // twice, without a gap
	if _, err := Stage(r.load(), r.documents(), true, nil, later); err == nil || !strings.Contains(err.Error(), "is listed twice") {
		t.Errorf("listed twice without a gap: %v", err)
	}
}
