package client

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client/clienttest"
)

func TestFiles(t *testing.T) {
	t.Parallel()
	chain := clienttest.New(t).Chain()
	_, key, _ := alice(t, false)
	dir := t.TempDir()
	f := Files{Key: filepath.Join(dir, "k"), Certificate: filepath.Join(dir, "c")}
	if err := f.Check(); err != nil {
		t.Fatal(err)
	}
	if err := f.Write(key, chain); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{f.Key: 0o600, f.Certificate: 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	before, err := os.ReadFile(f.Key)
	if err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := f.Check(); !errors.As(err, &e) || e.Kind != Failed {
		t.Errorf("Check on existing files: %v", err)
	}
	_, other, _ := alice(t, false)
	if err := f.Write(other, chain); err == nil {
		t.Error("Write replaced a file")
	}
	if after, err := os.ReadFile(f.Key); err != nil || !bytes.Equal(before, after) {
		t.Error("the key was changed")
	}
	f.Force = true
	if err := errors.Join(f.Check(), f.Write(other, chain)); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(f.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	for i := range chain {
		var block *pem.Block
		block, text = pem.Decode(text)
		if c, err := x509.ParseCertificate(block.Bytes); err != nil || !c.Equal(chain[i]) {
			t.Errorf("certificate %d: %v", i, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%d files are left: %v", len(entries), entries)
	}
}

// A certificate that can't be written leaves no key without its certificate.
func TestKeyIsTakenAwayWithoutCertificate(t *testing.T) {
	t.Parallel()
	_, key, _ := alice(t, false)
	dir := t.TempDir()
	f := Files{Key: filepath.Join(dir, "k"), Certificate: filepath.Join(dir, "c")}
	if err := os.WriteFile(f.Certificate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Write(key, nil); err == nil {
		t.Fatal("Write replaced a file")
	}
	if _, err := os.Stat(f.Key); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key is still there: %v", err)
	}
}

func TestFilesThatCantWork(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, f := range map[string]Files{
		"one file":  {Key: dir + "/a", Certificate: dir + "/./a"},
		"no name":   {Key: "", Certificate: dir + "/a"},
		"no folder": {Key: dir + "/none/k", Certificate: dir + "/c"},
	} {
		if f.Check() == nil {
			t.Errorf("%s passes", name)
		}
	}
}
