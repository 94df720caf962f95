package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A configuration of another layout is refused in words.
func TestOtherLayout(t *testing.T) {
	for name, text := range map[string]string{
		"one authority, without a section of its own": "authority: {chain: a.pem}",
		"no authorities": "ca: {chain: a.pem}",
		"two of them":    "ca: {authorities: [{name: a}, {name: b}]}",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "mayfly.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := changeAuthority(dir, document{"key": "file:x"}); !errors.Is(err, errLayout) {
			t.Errorf("%s: %v, want %v", name, err, errLayout)
		}
	}
}
