package main

import (
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestLedgerLocksConfiguration: of two commands on states in the configuration
// itself the second is refused, as both would write what they make of one reading.
func TestLedgerLocksConfiguration(t *testing.T) {
	t.Parallel()
	r := newRotating(t)
	text, err := yaml.Marshal(r.config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "mayfly.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := openLedger(file)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := openLedger(file); err == nil {
		second.close()
		t.Error("two commands change one configuration")
	}
	first.close()
	third, err := openLedger(file)
	if err != nil {
		t.Fatal(err)
	}
	third.close()
}
