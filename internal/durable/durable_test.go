package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

func TestWriteNew(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := durable.WriteNew(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteNew(path, []byte("second"), 0o600); !errors.Is(err, os.ErrExist) {
		t.Errorf("error %v; want os.ErrExist", err)
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "first" {
		t.Errorf("the file is %q, %v", b, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := durable.WriteNew(filepath.Join(path, "below"), nil, 0o600); err == nil {
		t.Error("a file below a file")
	}
	if err := durable.SyncFolder(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing folder: %v", err)
	}
}
