package oneline_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/internal/oneline"
)

func TestCleanGivesOneBoundedPrintableLine(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                             "",
		"grün 漢字":                      "grün 漢字",
		" \r\n a\n\tb\u2028c\u00a0 ":   "a b c",
		"\x1b[31mred\x00\x7f":          "\ufffd[31mred\ufffd\ufffd",
		"rtl\u202eexe zero\u200bwidth": "rtl\ufffdexe zero\ufffdwidth",
		"bad\xff\xfe":                  "bad\ufffd\ufffd",
		strings.Repeat("x", 40):        strings.Repeat("x", 40),
		strings.Repeat("x", 41):        strings.Repeat("x", 40) + "…",
		strings.Repeat("x", 39) + "ü":  strings.Repeat("x", 39) + "…",
		strings.Repeat("x", 39) + " y": strings.Repeat("x", 39) + "…",
		strings.Repeat("x", 40) + " ":  strings.Repeat("x", 40),
	} {
		if got := oneline.Clean(in, 40); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestErrorKeepsItsCause(t *testing.T) {
	t.Parallel()
	err := oneline.Error(errors.Join(io.EOF, errors.New(strings.Repeat("x", 1<<20))), 10)
	if !errors.Is(err, io.EOF) || err.Error() != "EOF xxxxxx…" {
		t.Errorf("got %q", err)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\u202e\xff \n b", 5)
	f.Fuzz(func(t *testing.T, text string, most int) {
		got := strings.TrimSuffix(oneline.Clean(text, most), "…")
		if !utf8.ValidString(got) || len(got) > max(most, 0) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("Clean(%q, %d) = %q", text, most, got)
		}
	})
}
