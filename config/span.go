package config

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// document is a YAML text with the places of its nodes: the parser tells where a
// node begins, and end finds out where it ends.
type document struct {
	text    []byte
	root    *yaml.Node
	lines   []int  // where each line begins
	newline string // how lines end
}

func newDocument(text []byte) (*document, error) {
	d := &decoder{}
	root := d.document(text)
	if root == nil || len(d.faults) > 0 {
		return nil, &Error{Faults: d.faults}
	}
	doc := &document{text: text, root: root, lines: []int{0}, newline: "\n"}
	for i, b := range text {
		if b == '\n' {
			doc.lines = append(doc.lines, i+1)
		}
	}
	if first, _, _ := bytes.Cut(text, []byte("\n")); bytes.HasSuffix(first, []byte("\r")) {
		doc.newline = "\r\n"
	}
	return doc, nil
}

// start is the offset of a node's first byte. Columns count characters.
func (d *document) start(n *yaml.Node) int {
	at := d.lines[min(n.Line, len(d.lines))-1]
	for range n.Column - 1 {
		_, size := utf8.DecodeRune(d.text[at:])
		at += size
	}
	return at
}

// lineEnd is the offset after the line of at, its new line included.
func (d *document) lineEnd(at int) int {
	if i := bytes.IndexByte(d.text[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(d.text)
}

// end is the offset after a node's last byte.
func (d *document) end(n *yaml.Node) (int, error) {
	start := d.start(n)
	if n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode {
		at := start + 1
		if len(n.Content) > 0 {
			var err error
			if at, err = d.end(n.Content[len(n.Content)-1]); err != nil {
				return 0, err
			}
		}
		if n.Style&yaml.FlowStyle == 0 {
			return at, nil
		}
		return d.closing(at)
	}
	switch {
	case n.Style&yaml.DoubleQuotedStyle != 0:
		return d.quoteEnd(start, '"')
	case n.Style&yaml.SingleQuotedStyle != 0:
		return d.quoteEnd(start, '\'')
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return d.blockEnd(n), nil
	default:
		return d.plainEnd(start, n.Value)
	}
}

// closing is the offset after the bracket that ends a flow collection whose last
// entry ends at at.
func (d *document) closing(at int) (int, error) {
	for at < len(d.text) {
		switch d.text[at] {
		case ' ', '\t', '\r', '\n', ',':
			at++
		case '#':
			at = d.lineEnd(at)
		case ']', '}':
			return at + 1, nil
		default:
			return 0, errForm
		}
	}
	return 0, errForm
}

// quoteEnd is the offset after the quote that ends the text which one begins at start.
func (d *document) quoteEnd(start int, quote byte) (int, error) {
	for at := start + 1; at < len(d.text); at++ {
		switch {
		case d.text[at] == '\\' && quote == '"':
			at++
		case d.text[at] != quote:
		case quote == '\'' && at+1 < len(d.text) && d.text[at+1] == quote:
			at++ // '' is a quote in the text
		default:
			return at + 1, nil
		}
	}
	return 0, errForm
}

// blockEnd is the offset after the last line with text of a literal or folded value.
func (d *document) blockEnd(n *yaml.Node) int {
	indent := 0 // of the value's lines, which the first of them sets
	end := d.lineEnd(d.start(n))
	for at := end; at < len(d.text); {
		next := d.lineEnd(at)
		line := strings.TrimRight(string(d.text[at:next]), "\r\n")
		spaces := len(line) - len(strings.TrimLeft(line, " "))
		if strings.Trim(line, " ") != "" {
			if indent == 0 {
				indent = spaces
			}
			if spaces < indent || indent == 0 {
				break
			}
			end = next
		}
		at = next
	}
	return max(0, end-1) // before the new line
}

// plainEnd is the offset after a value without quotes, which may go over several lines.
func (d *document) plainEnd(at int, value string) (int, error) {
	for i, word := range strings.Fields(value) {
		for i > 0 && at < len(d.text) && strings.IndexByte(" \t\r\n", d.text[at]) >= 0 {
			at++
		}
		if !bytes.HasPrefix(d.text[at:], []byte(word)) {
			return 0, errForm
		}
		at += len(word)
	}
	return at, nil
}
