package statefile_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

type entry struct {
	Name string         `yaml:"name"`
	File setting.Path   `yaml:"file,omitempty"`
	Key  setting.KeyRef `yaml:"key,omitempty"`
	Wait time.Duration  `yaml:"wait,omitempty"`
	Free int            `yaml:"free,omitempty"`
	At   time.Time      `yaml:"at,omitempty"`
}

func (e *entry) SetDefaults() { e.Free = 256 }

type document struct {
	Version int     `yaml:"version"`
	Entries []entry `yaml:"entries"`
}

func TestDocumentIsReadBack(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "state.json")
	f, err := statefile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := document{2, []entry{
		{Name: `<"x">`, File: setting.Path(filepath.Join(folder, "a", "b")), Key: "file:/elsewhere/k", Wait: time.Minute, Free: 0, At: at},
		{Name: "y", Key: setting.KeyRef("file:" + filepath.Join(folder, "k")), Free: 256},
	}}
	for range 2 { // a new file, and one in its place
		if err := f.Write(&want); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const form = `{
  "version": 2,
  "entries": [
    {
      "name": "<\"x\">",
      "file": "a/b",
      "key": "file:/elsewhere/k",
      "wait": "1m0s",
      "free": 0,
      "at": "2026-01-02T03:04:05Z"
    },
    {
      "name": "y",
      "key": "file:k"
    }
  ]
}
`
	if string(text) != form {
		t.Errorf("written is\n%s", text)
	}
	var got document
	if err := statefile.Read(path, 2, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read back %+v, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if all, err := os.ReadDir(folder); err != nil || len(all) != 1 {
		t.Errorf("left in the folder: %v, %v", all, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "state.json")
	first, err := statefile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := statefile.Open(path); err == nil || !strings.Contains(err.Error(), "another command is changing it") {
		t.Errorf("a second command: %v", err)
	}
	first.Close()
	link := filepath.Join(t.TempDir(), "link.json")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := statefile.Open(link); err == nil || !strings.Contains(err.Error(), "isn't a plain file") {
		t.Errorf("a link, which would be replaced: %v", err)
	}
	if _, err := statefile.Open(filepath.Join(folder, "missing", "state.json")); err == nil {
		t.Error("a missing folder")
	}
}

func TestFormatIsBounded(t *testing.T) {
	t.Parallel()
	if _, err := statefile.Format(&document{1, []entry{{Name: strings.Repeat("x", statefile.MaxBytes)}}}, "/"); err == nil {
		t.Error("a file that nobody would read is written")
	}
}
