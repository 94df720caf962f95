// Package requestid carries the id of a request, the one value besides the
// deadline that travels in a context: it ties together the client's answer, the
// log lines and the audit records of one request.
package requestid

import (
	"context"
	"crypto/rand"
	"strings"
)

type key struct{}

const (
	// maxLength is the longest client-made id that is kept, in bytes.
	maxLength = 64
	// harmless is what such an id may hold, since it is echoed and logged.
	harmless = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
)

// New makes an id: 26 letters and digits, 130 random bits.
func New() string { return rand.Text() }

// Choose is the id that a client sent, if it is harmless and not too long, and
// else a new one.
func Choose(sent string) string {
	if sent == "" || len(sent) > maxLength || strings.Trim(sent, harmless) != "" {
		return New()
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
