// Package readmetest reads the README for tests that hold the program to it.
package readmetest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Text is the README, found from wherever a test runs.
func Text(t *testing.T) string {
	t.Helper()
	for dir := "."; len(dir) < 30; dir = filepath.Join(dir, "..") {
		if text, err := os.ReadFile(filepath.Join(dir, "README.md")); err == nil { // #nosec G304 -- our own file
			return string(text)
		}
	}
	t.Fatal("there is no README.md in any folder above")
	return ""
}

// Table gives the cells of the table whose first heading is the one given.
func Table(t *testing.T, heading string) [][]string {
	t.Helper()
	_, after, found := strings.Cut(Text(t), "\n| "+heading+" |")
	if !found {
		t.Fatalf("the README has no table headed %s", heading)
	}
	var rows [][]string
	for line := range strings.Lines(after[strings.IndexByte(after, '\n')+1:]) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(cells[0], "---") {
			rows = append(rows, cells)
		}
	}
	if len(rows) < 5 {
		t.Fatalf("the table headed %s has %d rows", heading, len(rows))
	}
	return rows
}

var quoted = regexp.MustCompile("`([^`]+)`")

// Quoted is what stands between backquotes in a cell.
func Quoted(cell string) (all []string) {
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		all = append(all, m[1])
	}
	return all
}
