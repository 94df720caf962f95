package audit

import (
	"bytes"
	"compress/gzip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSearch: records are found by every kind of condition, in compressed parts too.
func TestSearch(t *testing.T) {
	t.Parallel()
	r := newTrail(t)
	index := uint64(1<<60 + 1)
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	var b []byte
	for _, e := range []Event{
		{Type: Intent, Time: noon, Serial: "0a", SAN: "alice@example.com", RequestID: "R1"},
		{Type: Issued, Time: noon.Add(time.Second), Serial: "0a", SAN: "alice@example.com", RequestID: "R1", Fingerprint: "f1", SCT: SCT{LogIndex: &index}, FurtherSCTs: []SCT{{LogID: "second"}}},
		{Type: Issued, Time: noon.Add(time.Hour), Serial: "0b", SAN: `é"<b>`, Message: "alice@example.com"},
	} {
		b = r.envelope.event(b, &e)
	}
	if _, err := w.Write(b); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	r.write(t, r.part(1)+compressed, z.Bytes())
	r.write(t, r.path, slices.Concat([]byte("no record with alice in it\n"), r.envelope.event(nil, &Event{Type: Admin, Time: noon.Add(2 * time.Hour), Act: "log rotate", By: "alice (uid 0)"})))
	for _, tt := range []struct {
		filters      string
		since, until time.Time
		want         string // the ids
	}{
		{"", time.Time{}, time.Time{}, "run-1 run-2 run-3 fault run-4"},
		{"", noon.Add(time.Second), noon.Add(time.Hour), "run-2 fault"},
		{"serial=0a", time.Time{}, time.Time{}, "run-1 run-2"},
		{"san=alice@example.com type=issued", time.Time{}, time.Time{}, "run-2"},
		{"san=alice*", time.Time{}, time.Time{}, "run-1 run-2"},
		{"san=ali", time.Time{}, time.Time{}, ""},
		{`san=é"<*`, time.Time{}, time.Time{}, "run-3"},
		{"certificate_fingerprint=f1", time.Time{}, time.Time{}, "run-2"},
		{"index=1152921504606846977", time.Time{}, time.Time{}, "run-2"},
		{"log=second", time.Time{}, time.Time{}, "run-2"},
		{"by=alice* act=log*", time.Time{}, time.Time{}, "run-4"},
		{"type=adm*", time.Time{}, time.Time{}, "run-4"},
		{"type=iss*", time.Time{}, time.Time{}, "run-2 run-3"},
		{"request_id=R1 serial=0b", time.Time{}, time.Time{}, ""},
	} {
		q := Query{Since: tt.since, Until: tt.until}
		for word := range strings.FieldsSeq(tt.filters) {
			f, err := ParseFilter(word)
			if err != nil {
				t.Fatal(err)
			}
			q.Filters = append(q.Filters, f)
		}
		var got []string
		q.Search(r.path, func(r Record, line []byte, err error) bool {
			if err != nil {
				r.ID = "fault"
			} else if !bytes.Contains(line, []byte(r.ID)) {
				t.Errorf("the line of %s is %s", r.ID, line)
			}
			got = append(got, r.ID)
			return true
		})
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: found %q, want %q", tt.filters, got, tt.want)
		}
	}
	for _, reference := range []string{"0a", "R1", "f1", "run-2"} {
		found := 0
		Query{Filters: []Filter{Refers(reference)}}.Search(r.path, func(Record, []byte, error) bool { found++; return true })
		if found == 0 {
			t.Errorf("nothing refers to %s", reference)
		}
	}
	for _, wrong := range []string{"", "alice", "sam=alice"} {
		if f, err := ParseFilter(wrong); err == nil {
			t.Errorf("%q is taken for %+v", wrong, f)
		}
	}
}

// TestResume: reading goes on where it was, in a part that was rotated and compressed
// meanwhile, and begins anew where that part is gone.
func TestResume(t *testing.T) {
	t.Parallel()
	r := newTrail(t)
	r.write(t, r.path, r.lines("1", "2"))
	f := Follow(r.path, time.Time{}, "")
	for range 3 {
		for line, err := range f.Lines() {
			if err != nil {
				t.Fatal(err)
			}
			if line.Number == 3 {
				break
			}
		}
		if f.Position().Offset > 0 {
			break
		}
	}
	at := f.Position()
	f.Close()
	rest := func() (found bool, serials []string) {
		f := Follow(r.path, time.Time{}, "")
		defer f.Close()
		found, err := f.Resume(at)
		if err != nil {
			t.Fatal(err)
		}
		return found, unread(t, f)
	}
	if found, got := rest(); !found || !slices.Equal(got, []string{"2"}) {
		t.Errorf("%v, %q", found, got)
	}
	b, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(b); err != nil || w.Close() != nil || os.Remove(r.path) != nil {
		t.Fatal(err)
	}
	r.write(t, r.part(1), r.lines("0"))
	r.write(t, r.part(2)+compressed, z.Bytes())
	r.write(t, r.path, r.lines("3"))
	if found, got := rest(); !found || !slices.Equal(got, []string{"2", "3", "3"}) {
		t.Errorf("%v, %q", found, got)
	}
	if err := os.Remove(r.part(2) + compressed); err != nil {
		t.Fatal(err)
	}
	if found, got := rest(); found || !slices.Equal(got, []string{"0", "0", "3", "3"}) {
		t.Errorf("%v, %q", found, got)
	}
}

// TestLastRefusals reads the end of the record of refusals, the newest first.
func TestLastRefusals(t *testing.T) {
	t.Parallel()
	r := newTrail(t)
	if all, err := LastRefusals(r.path, 1<<20); len(all) > 0 || err != nil {
		t.Errorf("before there is a record: %v, %v", all, err)
	}
	var b []byte
	for _, who := range []string{"first", "second", "third"} {
		b = r.envelope.event(b, &Event{Type: Denied, Time: noon, SAN: who, Message: "no"})
	}
	line := len(b) / 3
	r.write(t, Files(r.path)[1].Path, slices.Concat(b, []byte("no record\n"), r.envelope.event(nil, &Event{Type: Failed, SAN: "fourth"})))
	for most, want := range map[int]string{1 << 20: "fourth third second first ", 2*line + line/2: "fourth third ", 10: ""} {
		all, err := LastRefusals(r.path, int64(most))
		got := ""
		for _, e := range all {
			got += e.SAN + " "
		}
		if got != want || err != nil {
			t.Errorf("of %d bytes: %q, %v; want %q", most, got, err, want)
		}
	}
}
