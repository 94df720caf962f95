package audit

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestEveryFieldIsReadBack: what the encoder writes of an event is what is read.
func TestEveryFieldIsReadBack(t *testing.T) {
	t.Parallel()
	e := full()
	e.Purpose, e.Rule, e.Act, e.By, e.What = "p", "r", "a", "b", "w"
	for i, v := 0, reflect.ValueOf(e); i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("the test says nothing of %s", v.Type().Field(i).Name)
		}
	}
	v := newEnvelope("mayfly", "run", fixed)
	for _, want := range []Event{e, {Type: Denied, Time: noon}} {
		var got Event
		if err := got.UnmarshalJSON(v.event(nil, &want)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read back %+v, %v; want %+v", got, err, want)
		}
	}
	var mark Event
	if err := mark.UnmarshalJSON(v.mark(nil, 3, []byte("torn"))); err != nil || mark.Type != recovered {
		t.Errorf("the mark of a failure is read as %+v, %v", mark, err)
	}
}

// trailOf is a trail in a folder of its own, and a writer of its lines.
type trailOf struct {
	path     string
	envelope *envelope
}

func newTrail(t testing.TB) *trailOf {
	return &trailOf{filepath.Join(t.TempDir(), "audit.jsonl"), newEnvelope("mayfly", "run", fixed)}
}

// part is the name of the n-th rotated file.
func (r *trailOf) part(n int) string {
	return strings.TrimSuffix(r.path, ".jsonl") + fmt.Sprintf("-2026-11-22T12-00-%02d.000-size.jsonl", n)
}

func (r *trailOf) lines(serials ...string) []byte {
	var b []byte
	for _, serial := range serials {
		b = r.envelope.event(b, &Event{Type: Intent, Time: noon, Serial: serial})
		b = r.envelope.event(b, &Event{Type: Issued, Time: noon, Serial: serial})
	}
	return b
}

func (r *trailOf) write(t testing.TB, path string, content []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.Write(content)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// unread gives the serial numbers and the faults of lines, in their order.
func unread(t testing.TB, f *Follower) (all []string) {
	t.Helper()
	for e, err := range f.Unread() {
		line := (*LineError)(nil)
		switch {
		case errors.As(err, &line):
			all = append(all, fmt.Sprintf("%s:%d", filepath.Base(line.Part), line.Line))
		case err != nil:
			t.Fatal(err)
		default:
			all = append(all, e.Serial)
		}
	}
	return all
}

// TestFollow: rotated parts, compressed or not, and the current one are read once,
// oldest first; a line that is no record is named by part and number, and what
// follows it is read.
func TestFollow(t *testing.T) {
	t.Parallel()
	r := newTrail(t)
	f := Follow(r.path, time.Time{}, Issued)
	defer f.Close()
	check := func(want ...string) {
		t.Helper()
		if got := unread(t, f); !slices.Equal(got, want) {
			t.Errorf("read %q, want %q", got, want)
		}
	}
	check() // there is no trail yet
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(r.lines("1", "2")); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	r.write(t, r.part(1)+".gz", z.Bytes())
	r.write(t, r.part(2), slices.Concat(r.lines("3"), []byte(`{"type":"dev.mayfly.certificate.issued`+"\"\n"), r.lines("4")))
	long := bytes.Repeat([]byte("x"), maxLine+maxLine/2)
	current := r.lines("5", "6")
	r.write(t, r.path, slices.Concat(long, []byte("\n"), current[:len(current)-9]))
	check("1", "2", "3", filepath.Base(r.part(2))+":3", "4", "audit.jsonl:1", "5")
	check()
	r.write(t, r.path, current[len(current)-9:])
	check("6")
	if err := os.Rename(r.path, r.part(3)); err != nil {
		t.Fatal(err)
	}
	r.write(t, r.part(3), r.lines("7")) // the writer has it open
	r.write(t, r.path, r.lines("8"))
	check("7", "8")
}

// TestFollowStopsWhereItIsTold: what wasn't taken comes the next time.
func TestFollowStopsWhereItIsTold(t *testing.T) {
	t.Parallel()
	r := newTrail(t)
	r.write(t, r.path, r.lines("1", "2", "3"))
	f := Follow(r.path, time.Time{}, Issued)
	defer f.Close()
	for e, err := range f.Unread() {
		if err != nil {
			t.Fatal(err)
		}
		if e.Serial == "2" {
			break
		}
	}
	if got := unread(t, f); !slices.Equal(got, []string{"3"}) {
		t.Errorf("read %q after a stop", got)
	}
}

// TestFollowSince: neither older records nor, unseen, older files are read.
func TestFollowSince(t *testing.T) {
	t.Parallel()
	r := newTrail(t)
	r.write(t, r.part(1), []byte("not even a record"))
	if err := os.Chtimes(r.part(1), noon.Add(-time.Hour), noon.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	older := r.envelope.event(nil, &Event{Type: Issued, Time: noon.Add(-time.Second), Serial: "old"})
	r.write(t, r.path, append(older, r.lines("new")...))
	f := Follow(r.path, noon, "")
	defer f.Close()
	if got := unread(t, f); !slices.Equal(got, []string{"new", "new"}) {
		t.Errorf("read %q", got)
	}
}

// TestFollowARepairedFile: half a line that a repair cut off isn't glued to the next.
func TestFollowARepairedFile(t *testing.T) {
	t.Parallel()
	r := newTrail(t)
	whole := r.lines("1")
	r.write(t, r.path, append(whole, `{"type":"dev.mayfly.certificate.issued","da`...))
	f := Follow(r.path, time.Time{}, Issued)
	defer f.Close()
	got := unread(t, f)
	if err := os.Truncate(r.path, int64(len(whole))); err != nil {
		t.Fatal(err)
	}
	r.write(t, r.path, r.lines("2"))
	if got = append(got, unread(t, f)...); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("read %q", got)
	}
}

// TestFollowACutPart: the last line of a rotated part that has no end is named, and stops
// nobody from reading what follows.
func TestFollowACutPart(t *testing.T) {
	t.Parallel()
	for _, packed := range []bool{false, true} {
		r := newTrail(t)
		name, content := r.part(1), append(r.lines("1"), begin+"cut"...)
		if packed {
			var z bytes.Buffer
			w := gzip.NewWriter(&z)
			if _, err := w.Write(content); err != nil || w.Close() != nil {
				t.Fatal(err)
			}
			name, content = name+compressed, z.Bytes()
		}
		r.write(t, name, content)
		r.write(t, r.path, r.lines("2"))
		f := Follow(r.path, time.Time{}, Issued)
		defer f.Close()
		if got, want := unread(t, f), []string{"1", filepath.Base(r.part(1)) + ":3", "2"}; !slices.Equal(got, want) {
			t.Errorf("packed %v: read %q, want %q", packed, got, want)
		}
	}
}

// TestFollowADamagedPart: a compressed part that is damaged is told once, what can be
// read of it is, and the parts after it are read as ever.
func TestFollowADamagedPart(t *testing.T) {
	t.Parallel()
	whole := func(r *trailOf) []byte {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		for _, serial := range []string{"1", "2"} {
			if _, err := w.Write(r.lines(serial)); err != nil || w.Flush() != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return z.Bytes()
	}
	for name, tt := range map[string]struct {
		harm func([]byte) []byte
		want []string // of the part
	}{
		"no gzip":   {func([]byte) []byte { return []byte("no gzip at all") }, nil},
		"empty":     {func([]byte) []byte { return nil }, nil},
		"cut short": {func(b []byte) []byte { return b[:len(b)-20] }, []string{"1"}},
		"checksum":  {func(b []byte) []byte { b[len(b)-6] ^= 1; return b }, []string{"1", "2"}},
		"garbage":   {func(b []byte) []byte { return append(b[:len(b)*3/4], bytes.Repeat([]byte{0xff}, 50)...) }, nil}, // all of it is in the block that is damaged
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTrail(t)
			part := r.part(1) + ".gz"
			r.write(t, part, tt.harm(whole(r)))
			r.write(t, r.part(2), r.lines("3"))
			r.write(t, r.path, r.lines("4"))
			f := Follow(r.path, time.Time{}, Issued)
			defer f.Close()
			var got []string
			damaged := 0
			for range 4 { // as often as the monitor looks
				for e, err := range f.Unread() {
					about, line := (*PartError)(nil), (*LineError)(nil)
					switch {
					case errors.As(err, &about) && about.Part == part:
						damaged++
					case errors.As(err, &line): // where the damage begins
					case err != nil:
						t.Error(err)
					default:
						got = append(got, e.Serial)
					}
				}
			}
			if want := append(tt.want, "3", "4"); damaged != 1 || !slices.Equal(got, want) {
				t.Errorf("read %q, told %d times of the damage; want %q, told once", got, damaged, want)
			}
			if left, err := filepath.Glob(filepath.Join(filepath.Dir(r.path), ".unpacked-*")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// FuzzFollow: whatever stands in a trail, the record after it is read, and each
// fault names a line that is there.
func FuzzFollow(f *testing.F) {
	good := newTrail(f).lines("a")
	f.Add(good)
	f.Add(append([]byte("{}\n\n\x00"), good...))
	f.Add([]byte(`{"type":"dev.mayfly.audit.recovered","data":{"failed_records":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newTrail(t)
		r.write(t, r.path, append(append(b, '\n'), r.lines("last")...))
		follower := Follow(r.path, time.Time{}, "")
		defer follower.Close()
		var last Event
		for e, err := range follower.Unread() {
			line := (*LineError)(nil)
			if err != nil && (!errors.As(err, &line) || line.Line < 1 || line.Line > bytes.Count(b, []byte("\n"))+1 || line.Part != r.path) {
				t.Errorf("%v", err)
			}
			last = e
		}
		if last.Serial != "last" || last.Type != Issued {
			t.Errorf("the last record is read as %+v", last)
		}
	})
}
