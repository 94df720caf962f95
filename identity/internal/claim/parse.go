package claim

import (
	"strconv"
	"strings"
	"unicode/utf16"
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
	p.space()
	if p.i >= len(p.s) || p.s[p.i] != '{' {
		return Set{}, errNotObject
	}
	v, err := p.object(1)
	if err != nil {
		return Set{}, err
	}
	p.space()
	if p.i != len(p.s) {
		return Set{}, errTrailing
	}
	return Set{members: v}, nil
}

type parser struct {
	s string
	i int
}

func (p *parser) space() {
	for p.i < len(p.s) {
		switch p.s[p.i] {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return
		}
	}
}

// next skips white space and takes one byte; 0 at the end.
func (p *parser) next() byte {
	p.space()
	if p.i >= len(p.s) {
		return 0
	}
	p.i++
	return p.s[p.i-1]
}

func (p *parser) peek() byte {
	p.space()
	if p.i >= len(p.s) {
		return 0
	}
	return p.s[p.i]
}

func (p *parser) value(depth int) (Value, error) {
	switch c := p.peek(); {
	case c == '"':
		p.i++
		s, err := p.text()
		return Value{kind: String, text: s}, err
	case c == '{':
		m, err := p.object(depth + 1)
		return Value{kind: Object, contents: &contents{members: m}}, err
	case c == '[':
		e, err := p.array(depth + 1)
		return Value{kind: Array, contents: &contents{elements: e}}, err
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	case strings.HasPrefix(p.s[p.i:], "true"):
		p.i += len("true")
		return Value{kind: Bool, text: "true"}, nil
	case strings.HasPrefix(p.s[p.i:], "false"):
		p.i += len("false")
		return Value{kind: Bool, text: "false"}, nil
	case strings.HasPrefix(p.s[p.i:], "null"):
		p.i += len("null")
		return Value{kind: Null}, nil
	default:
		return Value{}, errJSON
	}
}

func (p *parser) object(depth int) ([]member, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	p.i++ // the brace
	if p.peek() == '}' {
		p.i++
		return nil, nil
	}
	var members []member
	var seen names
	if depth == 1 {
		members = make([]member, 0, min(strings.Count(p.s, ",")+1, 48)) // seldom too few
	}
	for {
		if p.next() != '"' {
			return nil, errJSON
		}
		name, err := p.text()
		if err != nil {
			return nil, err
		}
		if len(members) == maxMembers {
			return nil, errMembers
		}
		if seen.maybe(name) && duplicate(members, name, depth == 1) {
			return nil, errDuplicate
		}
		if p.next() != ':' {
			return nil, errJSON
		}
		v, err := p.value(depth)
		if err != nil {
			return nil, err
		}
		members = append(members, member{name, v})
		switch p.next() {
		case ',':
		case '}':
			return members, nil
		default:
			return nil, errJSON
		}
	}
}

// names are those of an object, a bit for many, so that most are known to be new
// without a look at each: 27 claims make 351 pairs.
type names struct {
	bits uint64
	wide bool // one has more than ASCII, and may fold to another length
}

// maybe adds a name, and is false when no name before it is the same in any case.
func (n *names) maybe(name string) bool {
	var sum uint
	for i := range len(name) {
		sum = sum*5 + uint(name[i]|0x20) // one letter in two cases counts the same
		n.wide = n.wide || name[i] >= utf8.RuneSelf
	}
	bit := uint64(1) << (sum % 64)
	before := n.bits
	n.bits |= bit
	return n.wide || before&bit != 0
}

// duplicate compares as encoding/json would when fold is set: with Unicode's
// simple case folding, under which the Kelvin sign is a k.
func duplicate(members []member, name string, fold bool) bool {
	for i := range members {
		other := members[i].name
		if other == name || fold && mayFold(other, name) && strings.EqualFold(other, name) {
			return true
		}
	}
	return false
}

// mayFold tells most different names apart by their first byte: two of ASCII
// that aren't one letter in two cases never fold to the same.
func mayFold(a, b string) bool {
	return a != "" && b != "" && (a[0]|0x20 == b[0]|0x20 || a[0]|b[0] >= utf8.RuneSelf)
}

func (p *parser) array(depth int) ([]Value, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	p.i++ // the bracket
	if p.peek() == ']' {
		p.i++
		return nil, nil
	}
	var elements []Value
	for {
		v, err := p.value(depth)
		if err != nil {
			return nil, err
		}
		elements = append(elements, v)
		switch p.next() {
		case ',':
		case ']':
			return elements, nil
		default:
			return nil, errJSON
		}
	}
}

// number takes a literal by the grammar of RFC 8259 §6 and keeps its text.
func (p *parser) number() (Value, error) {
	start := p.i
	if p.s[p.i] == '-' {
		p.i++
	}
	if p.i < len(p.s) && p.s[p.i] == '0' {
		p.i++
	} else if !p.digits() {
		return Value{}, errJSON
	}
	if p.i < len(p.s) && p.s[p.i] == '.' {
		p.i++
		if !p.digits() {
			return Value{}, errJSON
		}
	}
	if p.i < len(p.s) && (p.s[p.i] == 'e' || p.s[p.i] == 'E') {
		p.i++
		if p.i < len(p.s) && (p.s[p.i] == '+' || p.s[p.i] == '-') {
			p.i++
		}
		if !p.digits() {
			return Value{}, errJSON
		}
	}
	return Value{kind: Number, text: p.s[start:p.i]}, nil
}

func (p *parser) digits() bool {
	start := p.i
	for p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
		p.i++
	}
	return p.i > start
}

// text takes a string whose opening quote is already taken. One without
// escapes is a part of the document, so it costs no memory.
func (p *parser) text() (string, error) {
	start := p.i
	for p.i < len(p.s) {
		switch c := p.s[p.i]; {
		case c == '"':
			p.i++
			return p.s[start : p.i-1], nil
		case c == '\\':
			return p.escaped(start)
		case c < 0x20:
			return "", errJSON
		default:
			p.i++
		}
	}
	return "", errJSON
}

// simple is the escapes of one letter (RFC 8259 §7).
var simple = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func (p *parser) escaped(start int) (string, error) {
	b := append(make([]byte, 0, 2*(p.i-start)+32), p.s[start:p.i]...)
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			return string(b), nil
		case c < 0x20:
			return "", errJSON
		case c != '\\':
			b = append(b, c)
		case p.i >= len(p.s):
			return "", errJSON
		case p.s[p.i] == 'u':
			r, ok := p.unicode()
			if !ok {
				return "", errJSON
			}
			b = utf8.AppendRune(b, r)
		case simple[p.s[p.i]] != 0:
			b = append(b, simple[p.s[p.i]])
			p.i++
		default:
			return "", errJSON
		}
	}
	return "", errJSON
}

// unicode takes `uXXXX`, or two of them for a pair of surrogates. A lone
// surrogate is refused: readers replace it in different ways.
func (p *parser) unicode() (rune, bool) {
	r, ok := p.hex4()
	if !ok || !utf16.IsSurrogate(r) {
		return r, ok
	}
	if !strings.HasPrefix(p.s[p.i:], `\u`) {
		return 0, false
	}
	p.i++
	low, ok := p.hex4()
	r = utf16.DecodeRune(r, low)
	return r, ok && r != utf8.RuneError
}

func (p *parser) hex4() (rune, bool) {
	if p.i+5 > len(p.s) {
		return 0, false
	}
	r, err := strconv.ParseUint(p.s[p.i+1:p.i+5], 16, 16) // takes neither sign nor prefix
	p.i += 5
	return rune(r), err == nil
}
