package claim

import (
	"encoding/json"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Bounds on a document. A token is at most 16 KiB, which bounds the rest.
const (
	maxDepth   = 16  // containers inside one another, the outermost included
	maxMembers = 256 // members of one object: the search for duplicates is quadratic
)

// SyntaxError says what is wrong with a document, without its content.
type SyntaxError struct{ Fault string }

func (e *SyntaxError) Error() string { return e.Fault }

// Every fault is a constant: a refusal allocates nothing and repeats no input.
var (
	errNotUTF8   = &SyntaxError{"it is not valid UTF-8"}
	errNotObject = &SyntaxError{"it is not a JSON object"}
	errTrailing  = &SyntaxError{"it goes on after the JSON object"}
	errJSON      = &SyntaxError{"it is not valid JSON"}
	errDepth     = &SyntaxError{"its JSON is nested more than 16 deep"}
	errMembers   = &SyntaxError{"a JSON object in it has more than 256 members"}
	errDuplicate = &SyntaxError{"a JSON object in it has the same member twice"}
)

// Parse reads one JSON object (RFC 8259) more strictly than encoding/json:
// UTF-8 without a byte order mark, no lone surrogates, no member twice in any
// object, and in the outermost object no two members that differ only in case.
// Two readers of a document that passes can't disagree about what it says. The
// error is a *SyntaxError.
func Parse(document string) (Set, error) {
	if !utf8.ValidString(document) {
		return Set{}, errNotUTF8
	}
	p := parser{s: document}
	if p.peek() != '{' {
		return Set{}, errNotObject
	}
	v, err := p.object(1)
	if err != nil {
		return Set{}, err
	}
	if p.peek(); p.i != len(p.s) {
		return Set{}, errTrailing
	}
	return Set{members: v}, nil
}

type parser struct {
	s string
	i int
}

// peek skips white space and looks at a byte; 0 at the end.
func (p *parser) peek() byte {
	for ; p.i < len(p.s); p.i++ {
		if c := p.s[p.i]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c
		}
	}
	return 0
}

// next is peek and takes the byte. After a 0 nothing more is asked for.
func (p *parser) next() byte {
	c := p.peek()
	p.i++
	return c
}

func (p *parser) value(depth int) (Value, error) {
	switch c := p.peek(); {
	case c == '"':
		p.i++
		s, err := p.text()
		return Value{kind: String, text: s}, err
	case c == '{':
		m, err := p.object(depth + 1)
		return Value{kind: Object, contents: &contents{members: Set{m}}}, err
	case c == '[':
		e, err := p.array(depth + 1)
		return Value{kind: Array, contents: &contents{elements: e}}, err
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	}
	for _, one := range literals {
		if strings.HasPrefix(p.s[p.i:], one.text) {
			p.i += len(one.text)
			return one.value, nil
		}
	}
	return Value{}, errJSON
}

var literals = []struct {
	text  string
	value Value
}{{"true", Value{kind: Bool, text: "true"}}, {"false", Value{kind: Bool, text: "false"}}, {"null", Value{kind: Null}}}

func (p *parser) object(depth int) (members []member, err error) {
	if depth == 1 {
		members = make([]member, 0, min(strings.Count(p.s, ",")+1, 48)) // seldom too few
	}
	err = p.items(depth, '}', func() error {
		if p.next() != '"' {
			return errJSON
		}
		name, err := p.text()
		switch {
		case err != nil:
			return err
		case len(members) == maxMembers:
			return errMembers
		case duplicate(members, name, depth == 1):
			return errDuplicate
		case p.next() != ':':
			return errJSON
		}
		v, err := p.value(depth)
		members = append(members, member{name, v})
		return err
	})
	return members, err
}

func (p *parser) array(depth int) (elements []Value, err error) {
	err = p.items(depth, ']', func() error {
		v, err := p.value(depth)
		elements = append(elements, v)
		return err
	})
	return elements, err
}

// items takes a bracket, what is in it, with commas between, and the bracket at its end.
func (p *parser) items(depth int, end byte, item func() error) error {
	if depth > maxDepth {
		return errDepth
	}
	p.i++
	if p.peek() == end {
		p.i++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch p.next() {
		case ',':
		case end:
			return nil
		default:
			return errJSON
		}
	}
}

// duplicate compares as encoding/json would when fold is set: with Unicode's
// simple case folding, under which the Kelvin sign is a k.
func duplicate(members []member, name string, fold bool) bool {
	for i := range members {
		if other := members[i].name; other == name || fold && mayFold(other, name) && strings.EqualFold(other, name) {
			return true
		}
	}
	return false
}

// mayFold tells most different names apart by their first byte: two of ASCII
// that aren't one letter in two cases never fold to the same. 27 claims make 351 pairs.
func mayFold(a, b string) bool {
	return a != "" && b != "" && (a[0]|0x20 == b[0]|0x20 || a[0]|b[0] >= utf8.RuneSelf)
}

// number keeps a number's text.
func (p *parser) number() (Value, error) {
	rest := p.s[p.i:]
	text := rest[:len(rest)-len(strings.TrimLeft(rest, "+-.0123456789eE"))]
	p.i += len(text)
	if !json.Valid([]byte(text)) {
		return Value{}, errJSON
	}
	return Value{kind: Number, text: text}, nil
}

// text takes a string whose opening quote is already taken. One without
// escapes is a part of the document, so it costs no memory.
func (p *parser) text() (string, error) {
	start, escapes := p.i, false
	for ; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; {
		case c == '\\':
			escapes = true
			p.i++ // what it escapes may be a quote
		case c < 0x20:
			return "", errJSON
		case c == '"':
			p.i++
			if escapes {
				return unescape(p.s[start-1 : p.i])
			}
			return p.s[start : p.i-1], nil
		}
	}
	return "", errJSON
}

// paired is a JSON string whose surrogates come in pairs.
var paired = regexp.MustCompile(`^(?:[^\\]|\\(?:[^u]|u(?:[^dD]|[dD](?:[0-7]|[89abAB]..\\u[dD][c-fC-F]))))*$`)

// unescape reads a string with its quotes. A lone surrogate is refused: readers
// replace it in different ways, encoding/json with U+FFFD.
func unescape(quoted string) (s string, err error) {
	if json.Unmarshal([]byte(quoted), &s) != nil || strings.ContainsRune(s, utf8.RuneError) && !paired.MatchString(quoted) {
		return "", errJSON
	}
	return s, nil
}
