package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
)

// TestIssuerKey is made once, and none that is there is written over.
func TestIssuerKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "issuer.key.pem")
	made, err := issuerKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	loaded, err := issuerKey(path)
	if err != nil || !loaded.Equal(made) {
		t.Errorf("the key read back differs: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := issuerKey(path); err == nil {
		t.Error("a key that others may read was used")
	}
	broken := filepath.Join(t.TempDir(), "broken.pem")
	if err := os.WriteFile(broken, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other.pem")
	if _, err := keystore.GenerateFile(other, kms.ECDSAP256, nil); err != nil {
		t.Fatal(err)
	}
	for _, unfit := range []string{broken, other} {
		if _, err := issuerKey(unfit); err == nil || !strings.Contains(err.Error(), "remove the file to have a new one made") {
			t.Errorf("%s: a broken key was used, or written over: %v", unfit, err)
		}
	}
	if _, err := issuerKey(filepath.Join(t.TempDir(), "none", "key.pem")); err == nil {
		t.Error("a missing folder made no error")
	}
}
