// Package requestid carries the id of a request, the one value besides the
// deadline that travels in a context: it ties together the client's answer, the
// log lines and the audit records of one request.
package requestid

import (
	"context"
	"crypto/rand"
)

type key struct{}

// maxLength is the longest client-made id that is kept, in bytes.
const maxLength = 64

// New makes an id: 26 letters and digits, 130 random bits.
func New() string { return rand.Text() }

// Choose is the id that a client sent, if it may be echoed and logged (1 to
// maxLength bytes of letters, digits, '-', '_' and '.'), and else a new one.
func Choose(sent string) string {
	if sent == "" || len(sent) > maxLength {
		return New()
	}
	for i := range len(sent) {
		c := sent[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return New()
		}
	}
	return sent
}

// With returns a context that carries id.
func With(ctx context.Context, id string) context.Context { return context.WithValue(ctx, key{}, id) }

// From is the id that ctx carries, or "" where there is none.
func From(ctx context.Context) string {
	id, _ := ctx.Value(key{}).(string)
	return id
}
