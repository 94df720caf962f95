// Command configdoc writes docs/configuration.md from the configuration structs:
// their doc comments are the documentation, and config.Default the defaults.
//
//	configdoc ROOT
//
// ROOT is the folder of the product's go.mod.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "configdoc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: configdoc ROOT")
	}
	page, err := render(args[0])
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(args[0], "docs", "configuration.md"), page, 0o644)
}
