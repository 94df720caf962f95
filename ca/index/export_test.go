package index

import (
	"maps"
	"slices"

	"github.com/mayfly-ca/mayfly/ctlog/follow"
)

// Decode gives all values of an entry.
func Decode(e follow.Entry) []string { return slices.Collect(maps.Values(decode("", e).Fields)) }

// Read reads of a certificate what is kept.
var Read = read

// Stall has the last entries of a fill long ago.
func (i *Index) Stall() { i.filling.Store(&fill{log: i.filling.Load().log}) }
