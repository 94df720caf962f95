// Package terminal makes text from outside safe to print.
package terminal

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Escape returns s with everything that could steer a terminal or deceive its
// reader written as a Go escape: control characters (C0, C1, DEL, with new line
// and tab), invisible and bidirectional format characters, line and paragraph
// separators, private-use characters, and bytes that aren't UTF-8. A backslash
// is doubled, so no two inputs look alike for that reason. Spaces other than
// U+0020 are escaped too.
func Escape(s string) string { return escape(s, true) }

// Line is Escape for a whole line of prose, such as an error's text: backslashes
// stay as they are, since the prose may quote something already.
func Line(s string) string { return escape(s, false) }

func escape(s string, backslash bool) string {
	if plain(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\\' && backslash:
			b.WriteString(`\\`)
		case unicode.IsPrint(r): // letters, marks, numbers, punctuation, symbols and U+0020
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < utf8.RuneSelf:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		i += size
	}
	return b.String()
}

// plain reports whether s is printable ASCII without a backslash.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e || s[i] == '\\' {
			return false
		}
	}
	return true
}
