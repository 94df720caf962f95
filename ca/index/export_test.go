package index

import (
	"slices"

	"github.com/mayfly-ca/mayfly/ctlog/follow"
)

// Decode gives all values of an entry.
func Decode(e follow.Entry) []string {
	c := decode(e)
	return slices.Concat(c.subject, c.run, []string{c.serial, c.keyFingerprint})
}
