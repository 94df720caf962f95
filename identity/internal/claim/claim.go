// Package claim reads the JSON of a token strictly and once, and hands out its
// claims with their JSON types intact.
package claim

import (
	"iter"
	"strconv"
	"strings"
	"unicode"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Kind is the JSON type of a value.
type Kind uint8

// The JSON types; the zero Kind is a claim that isn't there.
const (
	Missing Kind = iota
	Null
	Bool
	Number
	String
	Array
	Object
)

// String is the type in words.
func (k Kind) String() string {
	return [...]string{"missing", "null", "a boolean", "a number", "a string", "an array", "an object"}[k]
}

// Value is one JSON value. The zero Value is missing.
type Value struct {
	kind     Kind
	text     string // of a string, the content; of a number or boolean, the literal
	contents *contents
}

// contents is what an array or object holds. It lies apart since most claims
// are scalars, and all lie in one slice.
type contents struct {
	elements []Value
	members  Set
}

type member struct {
	name  string
	value Value
}

// Set is the members of a token's header or payload. It is immutable.
type Set struct{ members []member }

// All iterates over the members in the document's order.
func (s Set) All() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		for i := range s.members {
			if !yield(s.members[i].name, s.members[i].value) {
				return
			}
		}
	}
}

// Len is the number of members.
func (s Set) Len() int { return len(s.members) }

// Get is the claim with exactly this name, or a missing Value.
func (s Set) Get(name string) Value {
	for i := range s.members {
		if s.members[i].name == name {
			return s.members[i].value
		}
	}
	return Value{}
}

// At follows a path of names through objects; what isn't there is a missing Value.
func At(s Set, path []string) Value {
	v := s.Get(path[0])
	for _, name := range path[1:] {
		v = v.Get(name)
	}
	return v
}

// Kind is the value's JSON type.
func (v Value) Kind() Kind { return v.kind }

// Get is the member of an object, or a missing Value; also for what is no object.
func (v Value) Get(name string) Value { return v.Members().Get(name) }

// Members is the members of an object, and nothing for what is no object.
func (v Value) Members() Set {
	if v.contents == nil {
		return Set{}
	}
	return v.contents.members
}

// Elements is the elements of an array, and nothing for what is no array.
func (v Value) Elements() []Value {
	if v.contents == nil {
		return nil
	}
	return v.contents.elements
}

// Literal is the content of a string, or the literal of a number or boolean.
func (v Value) Literal() string { return v.text }

// MaxText is the longest claim that goes into a certificate, in bytes.
const MaxText = 2048

// Text is a string claim that is fit to stand in a certificate and an audit
// record: not empty, at most [MaxText] bytes, without control characters and
// without those that change the direction of writing. The error is a
// *fault.Error that names the claim and never its value.
func (v Value) Text(name string) (string, error) {
	switch {
	case v.kind == Missing || v.kind == Null:
		return "", fault.New(fault.ClaimMissing, "the token has no claim %q, which this issuer's rule needs", name).With("claim", name)
	case v.kind != String:
		return "", Invalid(name, "must be a string and is "+v.kind.String())
	case v.text == "":
		return "", fault.New(fault.ClaimMissing, "the token's claim %q is empty; this issuer's rule needs it", name).With("claim", name)
	}
	return v.text, Fit(name, v.text)
}

// Fit checks the text of the named claim as [Value.Text] does.
func Fit(name, text string) error {
	if len(text) > MaxText {
		return Invalid(name, "is longer than "+strconv.Itoa(MaxText)+" bytes")
	}
	for _, r := range text {
		switch {
		case r >= ' ' && r < 0x7f:
		case unicode.IsControl(r), r == '\u2028', r == '\u2029':
			return Invalid(name, "contains a control character")
		case unicode.Is(unicode.Bidi_Control, r):
			return Invalid(name, "contains a character that changes the direction of writing")
		}
	}
	return nil
}

// Whole is a whole number as its digits, without exponent or fraction; ok is
// false for anything else and for a number that a float64 would round.
func (v Value) Whole() (digits string, ok bool) {
	if v.kind != Number || len(v.text) > 400 {
		return "", false
	}
	if !strings.ContainsAny(v.text, ".eE") {
		return v.text, len(v.text) <= 32 && v.text != "-0"
	}
	f, err := strconv.ParseFloat(v.text, 64)
	const exact = 1 << 53
	if err != nil || f <= -exact || f >= exact || f != float64(int64(f)) {
		return "", false
	}
	return strconv.FormatInt(int64(f), 10), true
}

// Invalid is the refusal of a claim that is there but unfit: what says why,
// without the value.
func Invalid(name, what string) *fault.Error {
	return fault.New(fault.ClaimInvalid, "the token's claim %q %s", name, what).With("claim", name)
}

// Malformed is the refusal of a token that isn't in the form of one.
func Malformed(what string) *fault.Error {
	return fault.New(fault.TokenMalformed, "the identity token can't be read: %s", what)
}

// Quote shows a text from outside in ASCII, escaped, and cut at 200 bytes.
func Quote(s string) string {
	const most = 200
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "…"
	}
	return strconv.QuoteToASCII(s)
}

// QuoteAll is [Quote] for the first of several texts, and says how many follow.
func QuoteAll(texts []string) string {
	const most = 4
	if len(texts) == 0 {
		return "none"
	}
	var shown []string
	for _, s := range texts[:min(len(texts), most)] {
		shown = append(shown, Quote(s))
	}
	list := strings.Join(shown, ", ")
	if more := len(texts) - most; more > 0 {
		list += " and " + strconv.Itoa(more) + " more"
	}
	return list
}
