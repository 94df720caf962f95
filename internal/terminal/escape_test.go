package terminal

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestEscape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                        "",
		"alice@example.com":       "alice@example.com",
		"grün 漢字":                 "grün 漢字",
		"\x1b[31mred\x1b[0m":      `\x1b[31mred\x1b[0m`,
		"a\r\nb\tc":               `a\r\nb\tc`,
		"nul\x00del\x7f":          `nul\x00del\x7f`,
		"c1\u009b31m":             `c1\u009b31m`,
		"rtl\u202Eexe.txt":        `rtl\u202eexe.txt`,
		"iso\u2066late":           `iso\u2066late`,
		"zero\u200bwidth\ufeff":   `zero\u200bwidth\ufeff`,
		"line\u2028sep\u2029":     `line\u2028sep\u2029`,
		"nbsp\u00a0":              `nbsp\u00a0`,
		"private\ue000\U000f0000": `private\ue000\U000f0000`,
		"tag\U000e0041":           `tag\U000e0041`,
		"bad\xff\xfe":             `bad\xff\xfe`,
		`back\slash`:              `back\\slash`,
		`\x1b`:                    `\\x1b`,
	} {
		if got := Escape(in); got != want {
			t.Errorf("Escape(%q) = %s, want %s", in, got, want)
		}
	}
	if got := Line("a\\b\x1b"); got != `a\b\x1b` {
		t.Errorf("Line keeps backslashes: %s", got)
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("alice@example.com")
	f.Add("\x1b]0;title\x07\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		for _, got := range []string{Escape(s), Line(s)} {
			if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q still holds what can't be printed: %q", s, got)
			}
		}
	})
}
