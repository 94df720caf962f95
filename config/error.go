package config

import (
	"fmt"
	"slices"
	"strings"
)

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	// Path is where, as a person would write it: `issuers[3].audiences`. Empty
	// for the document as a whole.
	Path string
	// Line is the line of the file, from 1; 0 when it is unknown.
	Line int
	// Text says what is wrong and what is expected. It holds no secret.
	Text string
}

// String is `path: text (line N)`.
func (f Fault) String() string {
	s := f.Text
	if f.Path != "" {
		s = f.Path + ": " + s
	}
	if f.Line > 0 {
		s += fmt.Sprintf(" (line %d)", f.Line)
	}
	return s
}

// Error is a configuration that can't be used, with every fault that was found,
// in the order of the document's lines.
type Error struct {
	// File is the configuration file, or empty.
	File   string
	Faults []Fault
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
func sorted(faults []Fault) []Fault {
	slices.SortStableFunc(faults, func(a, b Fault) int { return a.Line - b.Line })
	return faults
}
