// Package terminal makes text from outside safe to print.
package terminal

import (
	"fmt"
	"strconv"
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
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\\' && backslash:
			b.WriteString(`\\`)
		case unicode.IsPrint(r): // letters, marks, numbers, punctuation, symbols and U+0020
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		i += size
	}
	return b.String()
}
