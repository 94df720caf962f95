package policy

import (
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
)

// Fields is a language over named fields, such as those of a certificate, with the
// functions and bounds of conditions over tokens.
type Fields struct {
	env   *cel.Env
	names string
}

// NewFields makes the language over fields that are texts, and others that are times.
func NewFields(texts, times []string) (*Fields, error) {
	var options []cel.EnvOption
	for _, name := range texts {
		options = append(options, cel.Variable(name, cel.StringType))
	}
	for _, name := range times {
		options = append(options, cel.Variable(name, cel.TimestampType))
	}
	env, err := newLanguage(options)
	return &Fields{env, strings.Join(texts, ", ") + ", " + strings.Join(times, ", ")}, err
}

// Condition is a compiled expression over fields. It is immutable and safe for
// concurrent use.
type Condition struct{ program cel.Program }

// Compile reads one condition. The error is for the person who wrote it.
func (f *Fields) Compile(text string) (*Condition, error) {
	_, program, err := compileIn(f.env, text, f.names)
	return &Condition{program}, err
}

// Holds reports whether the condition holds for the fields: each a string, or a
// time.Time. Where that can't be decided it doesn't.
func (c *Condition) Holds(fields map[string]any) bool {
	got, _, err := c.program.Eval(fields)
	return err == nil && got == types.True
}
