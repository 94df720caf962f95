package durable_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// TestReadPlain: a pipe that nobody writes to is refused, not waited for.
func TestReadPlain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "pipe")
	if err := os.WriteFile(file, []byte("1234"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := durable.ReadPlain(file, 4); err != nil || string(b) != "1234" {
		t.Errorf("four bytes of four: %q, %v", b, err)
	}
	for path, says := range map[string]string{file: "larger than 3 bytes", pipe: "isn't a plain file", dir: "isn't a plain file"} {
		if _, err := durable.ReadPlain(path, 3); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", path, err, says)
		}
	}
}
