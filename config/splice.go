package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// step is one part of a path: a name, or an index where the name is empty.
type step struct {
	name  string
	index int
}

var pathForm = regexp.MustCompile(`^[a-z0-9_]+(\[[0-9]{1,4}\])*(\.[a-z0-9_]+(\[[0-9]{1,4}\])*)*$`)

// parsePath reads a path as faults state it: `ctlog.shards[1].end`.
func parsePath(path string) ([]step, error) {
	if !pathForm.MatchString(path) {
		return nil, fmt.Errorf("%q is not the path of a setting", path)
	}
	var steps []step
	for part := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '.' || r == '[' }) {
		number, isIndex := strings.CutSuffix(part, "]")
		if !isIndex {
			steps = append(steps, step{name: part})
			continue
		}
		i, err := strconv.Atoi(number)
		if err != nil {
			return nil, err
		}
		steps = append(steps, step{index: i})
	}
	return steps, nil
}

var (
	errNoEntry  = errors.New("it isn't in the file")
	errNotPlain = errors.New("it is a list or a section")
)

// crumb is where a node is in the one above it.
type crumb struct {
	parent *yaml.Node
	index  int // in parent.Content
}

func (c crumb) node() *yaml.Node { return c.parent.Content[c.index] }

// trail is the way to a node; its first crumb leads from the document to the root.
type trail []crumb

func (t trail) last() *yaml.Node { return t[len(t)-1].node() }

// removed is where to cut so that the last node goes, and with it what that would
// leave empty.
func (t trail) removed() (crumb, error) {
	for i := len(t) - 1; i > 0; i-- {
		entries := len(t[i].parent.Content)
		if t[i].parent.Kind == yaml.MappingNode {
			entries /= 2
		}
		if entries > 1 {
			return t[i], nil
		}
	}
	return crumb{}, errors.New("nothing would be left of the file")
}

// follow goes down from root as far as the document has what the path names, and
// returns the steps that are missing.
func follow(root *yaml.Node, steps []step) (trail, []step) {
	t := trail{{parent: &yaml.Node{Content: []*yaml.Node{root}}}}
	for i, s := range steps {
		n, at := t.last(), -1
		switch {
		case s.name != "" && n.Kind == yaml.MappingNode:
			for k := 0; k+1 < len(n.Content); k += 2 {
				if n.Content[k].Value == s.name {
					at = k + 1
				}
			}
		case s.name == "" && n.Kind == yaml.SequenceNode && s.index < len(n.Content):
			at = s.index
		}
		if at < 0 {
			return t, steps[i:]
		}
		t = append(t, crumb{n, at})
	}
	return t, nil
}

// missing is the key and the value of what has to be added above a value for the
// steps that the document lacks.
func missing(v verb, steps []step, value *yaml.Node) (name, added *yaml.Node, err error) {
	added = value
	if v == verbAppend {
		added = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{value}}
	}
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].name == "" {
			return nil, nil, errNoEntry
		}
		name = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: steps[i].name}
		if i > 0 {
			added = mapping(name, added)
		}
	}
	return name, added, nil
}

func mapping(name, value *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{name, value}}
}

// splice replaces the bytes from…to of a text.
type splice struct {
	from, to int
	text     string
}

// plan finds the bytes that a change replaces. It may be wrong about a text of an
// unusual form: whoever uses it proves the result.
func (d *document) plan(v verb, steps []step, value *yaml.Node) (splice, error) {
	t, rest := follow(d.root, steps)
	n := t.last()
	switch {
	case v == verbRemove && len(rest) > 0:
		return splice{}, errNoEntry
	case v == verbRemove:
		at, err := t.removed()
		if err != nil {
			return splice{}, err
		}
		return d.remove(at)
	case len(rest) > 0:
		if n.Kind != yaml.MappingNode {
			return splice{}, errNoEntry
		}
		name, added, err := missing(v, rest, value)
		if err != nil {
			return splice{}, err
		}
		return d.insert(n, mapping(name, added))
	case v == verbAppend:
		if n.Kind != yaml.SequenceNode {
			return splice{}, errors.New("it isn't a list")
		}
		return d.insert(n, &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{value}})
	case n.Kind != yaml.ScalarNode || value.Kind != yaml.ScalarNode:
		return splice{}, errNotPlain
	default:
		return d.replace(n, value)
	}
}

// replace puts one plain value in the place of another, quoted as that was.
func (d *document) replace(n, value *yaml.Node) (splice, error) {
	const quoted = yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle
	end, err := d.end(n)
	if err != nil {
		return splice{}, err
	}
	fresh := *value
	if value.ShortTag() == "!!str" && n.Style&quoted != 0 {
		fresh.Style = n.Style & quoted
	}
	text, err := render(&fresh)
	if err != nil || strings.Contains(text, "\n") || n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return splice{}, errors.Join(errForm, err)
	}
	return splice{d.start(n), end, text}, nil
}

// insert adds the entry of a list or section that has one, to n of the same kind.
func (d *document) insert(n, entry *yaml.Node) (splice, error) {
	if n.Style&yaml.FlowStyle != 0 {
		return d.insertFlow(n, entry)
	}
	text, err := render(entry)
	if err != nil {
		return splice{}, err
	}
	end, err := d.end(n)
	if err != nil {
		return splice{}, err
	}
	at := d.lineEnd(end)
	indent := strings.Repeat(" ", n.Column-1)
	text = indent + strings.ReplaceAll(text, "\n", d.newline+indent) + d.newline
	if at > 0 && d.text[at-1] != '\n' { // the last line of a file that doesn't end in a new line
		text = d.newline + strings.TrimSuffix(text, d.newline)
	}
	return splice{at, at, text}, nil
}

// foldedLine is where the encoder breaks a long line.
var foldedLine = regexp.MustCompile(`\n *`)

// insertFlow is insert for `[…]` and `{…}`.
func (d *document) insertFlow(n, entry *yaml.Node) (splice, error) {
	entry.Style = yaml.FlowStyle
	text, err := render(entry)
	if err != nil || len(text) < 2 {
		return splice{}, errors.Join(errForm, err)
	}
	text = foldedLine.ReplaceAllString(text[1:len(text)-1], " ") // without its brackets
	at := d.start(n) + 1
	if len(n.Content) > 0 {
		if at, err = d.end(n.Content[len(n.Content)-1]); err != nil {
			return splice{}, err
		}
		text = ", " + text
	}
	return splice{at, at, text}, nil
}

// remove cuts a node that is not alone in the one above it.
func (d *document) remove(c crumb) (splice, error) {
	siblings, first, last := c.parent.Content, c.index, c.index
	if c.parent.Kind == yaml.MappingNode {
		first-- // the key
	}
	end, err := d.end(siblings[last])
	if err != nil {
		return splice{}, err
	}
	begin := d.start(siblings[first])
	if c.parent.Style&yaml.FlowStyle != 0 {
		if last+1 < len(siblings) {
			return splice{begin, d.start(siblings[last+1]), ""}, nil
		}
		before, err := d.end(siblings[first-1])
		return splice{before, end, ""}, err
	}
	line := d.lines[siblings[first].Line-1]
	lead := string(d.text[line:begin])
	if c.parent.Kind == yaml.SequenceNode {
		lead = strings.Replace(lead, "-", " ", 1)
	}
	if strings.Trim(lead, " \t") != "" {
		return splice{}, errForm
	}
	return splice{line, d.lineEnd(end), ""}, nil
}

// render writes a node as YAML, without the final new line.
func render(n *yaml.Node) (string, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(n), e.Close()); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}
