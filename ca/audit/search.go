package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Record is a line of a trail with all that is in it.
type Record struct {
	ID   string         `json:"id"`
	Type string         `json:"type"` // without what all types begin with
	Time time.Time      `json:"time"`
	Data map[string]any `json:"data"`
}

// ParseRecord reads a line.
func ParseRecord(line []byte) (r Record, err error) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber() // an index has more digits than a float
	err = d.Decode(&r)
	r.Type = r.Type[strings.LastIndexByte(r.Type, '.')+1:]
	return r, err
}

// Fields are the names of what a record can say of itself, in the order in which it does.
var Fields = func() []string {
	names := []string{"id", "type"}
	for _, t := range []reflect.Type{reflect.TypeFor[Event](), reflect.TypeFor[SCT]()} {
		for field := range t.Fields() {
			if name := field.Tag.Get("json"); name != "-" && name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}()

// aliases are the names that search and certificates have for fields of a record.
var aliases = map[string]string{"certificate_fingerprint": "fingerprint", "log": "log_id", "index": "log_index"}

// Filter is a condition on records: what is in a line that meets it, one of which
// suffices. No string in a line has a quote that isn't escaped, so what looks like a
// field is one.
type Filter [][]byte

// ParseFilter reads FIELD=VALUE, or FIELD=BEGINNING*.
func ParseFilter(text string) (Filter, error) {
	name, value, ok := strings.Cut(text, "=")
	if alias := aliases[name]; alias != "" {
		name = alias
	}
	if !ok || !slices.Contains(Fields, name) {
		return nil, fmt.Errorf("%q isn't FIELD=VALUE with one of the fields %s", text, strings.Join(Fields, ", "))
	}
	if strings.TrimSuffix(value, "*") == "" {
		return nil, fmt.Errorf("%q has no value, or beginning of one, to look for", text)
	}
	value, prefix := strings.CutSuffix(value, "*")
	values := []string{value}
	if name == "type" { // which of the two it is, nobody has to know
		values = []string{typePrefix + value, auditPrefix + value}
	}
	number := `"` + name + `":` + value
	f := Filter{[]byte(number + ","), []byte(number + "}")}
	for _, v := range values {
		f = append(f, bytes.TrimSuffix(appendField(nil, name, v, maxLong), []byte(",")))
	}
	if prefix {
		f = f[2:]
		for i := range f {
			f[i] = bytes.TrimSuffix(f[i], []byte(`"`))
		}
	}
	return f, nil
}

// Refers is the filter for whatever names a record or its certificate: a serial number, a
// request's or a record's id, a fingerprint.
func Refers(to string) (f Filter) {
	for _, name := range []string{"serial", "request_id", "id", "fingerprint"} {
		f = append(f, appendField(nil, name, to, maxShort))
	}
	return append(f, appendField(nil, "serial", "0"+to, maxShort)) // a record has whole bytes
}

// Query is what is searched for: records that meet all filters, since a time and before
// another. The zero time is no bound.
type Query struct {
	Filters      []Filter
	Since, Until time.Time
}

// Search yields the records of one file that the query wants, and their lines, the oldest
// first. It holds one line at a time. A line or a part that can't be read is an error,
// after which it goes on, see [Follower.Lines].
func (q Query) Search(path string, yield func(Record, []byte, error) bool) {
	follower := Follow(path, q.Since, "")
	defer follower.Close()
	for line, err := range follower.Lines() {
		has := func(b []byte) bool { return bytes.Contains(line.Text, b) }
		if err == nil && slices.ContainsFunc(q.Filters, func(f Filter) bool { return !slices.ContainsFunc(f, has) }) {
			continue
		}
		var r Record
		if err == nil {
			if r, err = ParseRecord(line.Text); err != nil {
				err = &LineError{Part: line.Part, Line: line.Number, Err: err}
			} else if r.Time.Before(q.Since) || !q.Until.IsZero() && !r.Time.Before(q.Until) {
				continue
			}
		}
		if !yield(r, line.Text, err) {
			return
		}
	}
}

// LastRefusals reads the record of refusals of a trail from its end, so many bytes at
// most, the newest first: for a look at what goes on, of which a rotation may have just taken
// the most. Lines that can't be read are left out.
func LastRefusals(trail string, most int64) (all []Event, err error) {
	f, err := os.Open(Files(trail)[1].Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-most)
	text, err := io.ReadAll(io.NewSectionReader(f, from, most))
	for line := range bytes.Lines(text) {
		var e Event
		if json.Unmarshal(line, &e) == nil && e.refusal() { // the first may be cut
			all = append(all, e)
		}
	}
	slices.Reverse(all)
	return all, err
}
