package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/strict"
)

// Marshal writes c as a document that Parse reads back: only what differs from
// Default, with a comment above each path (`ca.authority`) that has one in
// comments; "" is the head of the document. Secrets are never in a Config, so
// none is written. It doesn't check c.
func Marshal(c *Config, comments map[string]string) ([]byte, error) {
	root, err := strict.Encode(*c, *Default(), "")
	if err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	comment("", root, comments)
	var out bytes.Buffer
	if head := comments[""]; head != "" {
		// The blank line keeps the head apart from the comment of the first section.
		out.WriteString("# " + strings.ReplaceAll(head, "\n", "\n# ") + "\n\n")
	}
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(root), e.Close()); err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	return out.Bytes(), nil
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
