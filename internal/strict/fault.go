package strict

import "fmt"

// Fault is one thing that is wrong with a document.
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
