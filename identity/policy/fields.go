package policy

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
)

// Fields is a language over named fields, such as those of a token or a certificate:
// CEL's standard functions, and those of its strings library (version 4: no formatting).
type Fields struct {
	env   *cel.Env
	names string
}

// NewFields makes the language over fields that are texts, and others that are times.
func NewFields(texts, times []string) (*Fields, error) { return newFields(texts, times) }

func newFields(texts, times []string, more ...cel.EnvOption) (*Fields, error) {
	options := append(more, cel.ParserExpressionSizeLimit(maxExpression), cel.ParserRecursionLimit(64), ext.Strings(ext.StringsVersion(4)))
	for _, name := range texts {
		options = append(options, cel.Variable(name, cel.StringType))
	}
	for _, name := range times {
		options = append(options, cel.Variable(name, cel.TimestampType))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("making the expression language: %w", err)
	}
	names := slices.Concat(texts, times)
	if len(more) > 0 {
		names = slices.Insert(names, 0, nameClaims)
	}
	return &Fields{env, strings.Join(names, ", ")}, nil
}

// Condition is a compiled expression over fields. It is immutable and safe for
// concurrent use.
type Condition struct{ program cel.Program }

// Compile reads one condition. The error is for the person who wrote it.
func (f *Fields) Compile(text string) (*Condition, error) {
	_, program, err := f.compile(text)
	return &Condition{program}, err
}

// Holds reports whether the condition holds for the fields: each a string, or a
// time.Time. Where that can't be decided it doesn't.
func (c *Condition) Holds(fields map[string]any) bool {
	got, _, err := c.program.Eval(fields)
	return err == nil && got == types.True
}
