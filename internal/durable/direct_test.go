package durable_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// What is put is there, in parts that fit no sector, beside what was there before; on a
// disk of memory too, where there is one.
func TestDirect(t *testing.T) {
	t.Parallel()
	dirs := []string{t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "mayfly-test-"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, "file")
		f, err := durable.OpenDirect(path, os.O_RDWR|os.O_CREATE, 0o600, 5000)
		if err != nil {
			t.Fatal(err)
		}
		one, two := bytes.Repeat([]byte{1}, 700), bytes.Repeat([]byte{2}, 4300)
		for _, put := range []struct {
			at    int64
			parts [][]byte
		}{{0, [][]byte{two}}, {512, [][]byte{one, two}}, {0, [][]byte{one[:512]}}} {
			if err := f.Put(put.at, put.parts...); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if put, again := f.Put(0, one), f.Close(); !errors.Is(put, os.ErrClosed) || !errors.Is(again, os.ErrClosed) {
			t.Errorf("once it is closed: %v, %v", put, again)
		}
		got, err := os.ReadFile(path)
		want := bytes.Join([][]byte{one[:512], one, two, make([]byte, 120)}, nil)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("in %s are %d bytes, %v, want %d", dir, len(got), err, len(want))
		}
	}
}
