package config

import (
	"bytes"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Marshal writes c as a document that Parse reads back: only what differs from
// Default, with a comment above each path (`ca.authority`) that has one in
// comments; "" is the head of the document. Secrets are never in a Config, so
// none is written. It doesn't check c.
func Marshal(c *Config, comments map[string]string) ([]byte, error) {
	var root, defaults yaml.Node
	if err := root.Encode(c); err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	if err := defaults.Encode(Default()); err != nil {
		return nil, fmt.Errorf("writing the default configuration: %w", err)
	}
	prune(&root, &defaults)
	comment("", &root, comments)
	var out bytes.Buffer
	if head := comments[""]; head != "" {
		// The blank line keeps the head apart from the comment of the first section.
		out.WriteString("# " + strings.ReplaceAll(head, "\n", "\n# ") + "\n\n")
	}
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(&root); err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	return out.Bytes(), nil
}

// prune takes from a mapping what the defaults' mapping says too.
func prune(n, defaults *yaml.Node) {
	kept := n.Content[:0]
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if d := entry(defaults, key.Value); d != nil {
			if same(value, d) {
				continue
			}
			if value.Kind == yaml.MappingNode && d.Kind == yaml.MappingNode {
				prune(value, d)
			}
		}
		kept = append(kept, key, value)
	}
	n.Content = kept
}

// entry is the value of a mapping's key, or nil.
func entry(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func same(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || a.Value != b.Value || len(a.Content) != len(b.Content) {
		return false
	}
	for i := range a.Content {
		if !same(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}

// comment puts the comments above their keys and list items.
func comment(path string, n *yaml.Node, comments map[string]string) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			at := setting.Join(path, n.Content[i].Value)
			n.Content[i].HeadComment = comments[at]
			comment(at, n.Content[i+1], comments)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			item.HeadComment = comments[at]
			comment(at, item, comments)
		}
	}
}
