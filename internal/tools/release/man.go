package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// man writes a page for each command of a binary into dir. Its text is that of --help, so
// that the binary needn't carry a generator.
func (b build) man(ctx context.Context, mayfly, dir string, command ...string) error {
	said, err := exec.CommandContext(ctx, mayfly, append(command, "--help")...).Output() // #nosec G204 -- the release's own binary
	if err != nil {
		return fmt.Errorf("%s %q --help: %w", mayfly, command, err)
	}
	page, below := b.page(string(said), command)
	name := strings.Join(append([]string{"mayfly"}, command...), "-")
	if err := os.WriteFile(filepath.Join(dir, name+".1"), []byte(page), 0o644); err != nil {
		return err
	}
	for _, sub := range below {
		if sub == "completion" || sub == "help" { // cobra's own
			continue
		}
		if err := b.man(ctx, mayfly, dir, append(command[:len(command):len(command)], sub)...); err != nil {
			return err
		}
	}
	return nil
}

// headings are the parts of cobra's help after its first, by their names in man-pages(7).
var headings = map[string]string{
	"Usage:": "SYNOPSIS", "Examples:": "EXAMPLES", "Available Commands:": "COMMANDS",
	"Flags:": "OPTIONS", "Global Flags:": "GLOBAL OPTIONS", "Additional help topics:": "TOPICS",
}

// page is a command's manual page, and the commands below it.
func (b build) page(help string, command []string) (page string, below []string) {
	name := strings.Join(append([]string{"mayfly"}, command...), "-")
	var o strings.Builder
	fmt.Fprintf(&o, ".TH %q 1 %q %q \"Mayfly\"\n.SH NAME\n", strings.ToUpper(name), b.at.Format("2006-01-02"), "mayfly "+b.version)
	first, _, _ := strings.Cut(help, ".")
	fmt.Fprintf(&o, "%s \\- %s\n.SH DESCRIPTION\n.nf\n", roff(name), roff(strings.Join(strings.Fields(first), " ")))
	heading := ""
	for line := range strings.Lines(help) {
		line = strings.TrimRight(line, "\n")
		if title, is := headings[line]; is {
			heading = title
			fmt.Fprintf(&o, ".fi\n.SH %q\n.nf\n", title)
			continue
		}
		if fields := strings.Fields(line); heading == "COMMANDS" && len(fields) > 0 && strings.HasPrefix(line, "  ") {
			below = append(below, fields[0])
		}
		o.WriteString(roff(line) + "\n")
	}
	o.WriteString(".fi\n.SH \"SEE ALSO\"\nhttps://github.com/mayfly\\-ca/mayfly\n")
	return o.String(), below
}

// roff is a line of text that groff prints as it is.
func roff(line string) string {
	line = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	return line
}
