// Package oneline bounds text that others wrote, such as an error page or the
// name of a principal, so that it fits into one line of a log or of an error.
package oneline

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean is text on one line of at most so many bytes: white space becomes one space
// or, at both ends, nothing; what doesn't print and bytes that aren't UTF-8 become
// U+FFFD; a text that was cut, between two characters, ends in "…" beyond them.
func Clean(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, strings.Join(strings.Fields(text), " "))
	if limit = max(limit, 0); len(text) <= limit {
		return text
	}
	for !utf8.RuneStart(text[limit]) {
		limit--
	}
	return strings.TrimSuffix(text[:limit], " ") + "…"
}

// Error is err with its text as [Clean] gives it: a dependency may have put a whole
// answer into it.
func Error(err error, limit int) error { return &bounded{err, limit} }

type bounded struct {
	error
	limit int
}

func (b *bounded) Error() string { return Clean(b.error.Error(), b.limit) }
func (b *bounded) Unwrap() error { return b.error }
