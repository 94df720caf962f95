package ctlogtest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// TableEnv names a folder. [Run] leaves there one row of Markdown for each kind of
// log; internal/tools/conformance/logs.sh makes docs/log-conformance.md of them.
const TableEnv = "MAYFLY_LOG_TABLE"

// writeRow writes "| kind | outcome | … |", if the environment asks for it.
func writeRow(kind string, outcomes []string) error {
	dir := os.Getenv(TableEnv)
	if dir == "" {
		return nil
	}
	names := make([]string, len(parts))
	for i, part := range parts {
		names[i] = part.name
	}
	if err := os.WriteFile(filepath.Join(dir, "0-head.md"), row("log", names), 0o600); err != nil { //nolint:gosec // G703: whoever runs the test names the folder
		return fmt.Errorf("writing the head: %w", err)
	}
	name := fmt.Sprintf("1-%x.md", sha256.Sum256([]byte(kind)))
	if err := os.WriteFile(filepath.Join(dir, name), row(kind, outcomes), 0o600); err != nil { //nolint:gosec // G703: as above
		return fmt.Errorf("writing the row: %w", err)
	}
	return nil
}

func row(first string, cells []string) []byte {
	return []byte("| " + first + " | " + strings.Join(cells, " | ") + " |\n")
}
