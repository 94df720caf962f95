package audit

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 11, 22, 12, 0, 0, 123456789, time.UTC)

func fixed() time.Time { return noon }

// record is one line as a reader of the trail parses it.
type record struct {
	SpecVersion     string         `json:"specversion"`
	Prev            string         `json:"prev"`
	ID              string         `json:"id"`
	Source          string         `json:"source"`
	Type            string         `json:"type"`
	Subject         *string        `json:"subject"`
	Time            string         `json:"time"`
	DataContentType string         `json:"datacontenttype"`
	Data            map[string]any `json:"data"`
}

// parse reads one line strictly and validates it as CloudEvents 1.0.2 §3 asks.
func parse(t testing.TB, line string) record {
	t.Helper()
	var r record
	d := json.NewDecoder(strings.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("line %q: %v", line, err)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Fatalf("line %q: more than one value", line)
	}
	if r.SpecVersion != "1.0" || r.ID == "" || r.Type == "" || r.Source == "" {
		t.Fatalf("line %q: a required attribute is missing", line)
	}
	if _, err := url.Parse(r.Source); err != nil {
		t.Fatalf("source isn't a URI reference: %v", err)
	}
	if r.Subject != nil && *r.Subject == "" {
		t.Fatalf("line %q: an empty subject", line)
	}
	at, err := time.Parse(time.RFC3339Nano, r.Time)
	if err != nil || at.Location() != time.UTC {
		t.Fatalf("time %q isn't RFC 3339 in UTC", r.Time)
	}
	if r.DataContentType != "application/json" || r.Data == nil {
		t.Fatalf("line %q: no JSON data", line)
	}
	return r
}

// read parses every line of the files that match pattern, packed ones too.
func read(t testing.TB, pattern string) []record {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	var all []record
	for _, path := range paths {
		if strings.HasSuffix(path, ".lock") {
			continue
		}
		all = append(all, readFile(t, path)...)
	}
	return all
}

func readFile(t testing.TB, path string) []record {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var in io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if in, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	var all []record
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF && line == "" {
			return all
		}
		if err != nil {
			t.Fatalf("%s: a last line without an end: %q", path, line)
		}
		all = append(all, parse(t, line))
	}
}

// serials counts the records of each serial; of those without one, each message.
func serials(records []record) map[string]int {
	n := map[string]int{}
	for _, r := range records {
		switch {
		case r.Subject != nil:
			n[*r.Subject]++
		case r.Data["message"] != nil:
			n[r.Data["message"].(string)]++
		}
	}
	return n
}

func testConfig(t testing.TB) Config {
	c := DefaultConfig()
	c.Path = setting.Path(filepath.Join(t.TempDir(), "audit.jsonl"))
	return c
}

func openTest(t testing.TB, c Config) *File {
	t.Helper()
	f, err := Open(c, Options{Source: "https://ca.example", Now: fixed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within ten seconds", what)
		}
	}
}
