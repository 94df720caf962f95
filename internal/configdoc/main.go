// Command configdoc writes docs/configuration.md from the configuration structs:
// their doc comments are the documentation, and config.Default the defaults.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	out := flag.String("out", "docs/configuration.md", "the file to write")
	flag.Parse()
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "configdoc:", err)
		os.Exit(1) //nolint:forbidigo // this is a main
	}
}

func run(out string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	page, err := render(root)
	if err != nil {
		return err
	}
	return os.WriteFile(out, page, 0o644) //nolint:gosec // G306: a page for everyone to read
}

// moduleRoot is the nearest folder at or above the working directory with a go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("no go.mod at or above the working directory")
		}
		dir = up
	}
}
