package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/strict"
)

// Error is a configuration that can't be used, with every fault that was found,
// in the order of the document's lines.
type Error struct {
	// File is the configuration file, or empty.
	File   string
	Faults []strict.Fault
}

// Error is a headline and one indented line a fault.
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File + ": ")
	}
	if len(e.Faults) == 1 {
		b.WriteString("1 fault in the configuration:")
	} else {
		fmt.Fprintf(&b, "%d faults in the configuration:", len(e.Faults))
	}
	for _, f := range e.Faults {
		b.WriteString("\n  " + f.String())
	}
	return b.String()
}

// sorted orders faults by line; those of one line stay in the order found.
func sorted(faults []strict.Fault) []strict.Fault {
	slices.SortStableFunc(faults, func(a, b strict.Fault) int { return a.Line - b.Line })
	return faults
}
