package client

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// Files is where the key and the certificate chain go, or the bundle of what was signed.
type Files struct {
	Key         string // PKCS#8 PEM, mode 0600
	Certificate string // PEM, leaf first, root last, mode 0644
	Bundle      string // JSON, mode 0644; where it is named, the key is thrown away
	Force       bool   // replace what is there; without it nothing is overwritten
}

// Check finds out before anything is asked of a CA whether Write may work. A
// file that appears in between is still not overwritten.
func (f Files) Check() error {
	paths := []string{f.Key, f.Certificate}
	if f.Bundle != "" {
		paths = []string{f.Bundle}
	} else if f.Key == "" || f.Certificate == "" || filepath.Clean(f.Key) == filepath.Clean(f.Certificate) {
		return problem(Misused, "name two files with --output-key and --output-certificate", "the key and the certificate need a file each")
	}
	for _, path := range paths {
		if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
			return problem(Failed, "create it first", "the folder of %s is not there", path)
		}
		_, err := os.Lstat(path)
		switch {
		case err == nil && !f.Force:
			return exists(path)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return problem(Failed, "", "looking for %s", path).because(err)
		}
	}
	return nil
}

func exists(path string) *Error {
	return problem(Failed, "name another file, or replace it with --force", "%s exists already", path)
}

// Write writes both files, the key first; when the second can't be written the
// first is taken away again, unless it replaced another.
func (f Files) Write(key *Key, chain []*x509.Certificate) error {
	keyPEM, err := key.PKCS8()
	if err != nil {
		return err
	}
	if err := f.write(f.Key, keyPEM, 0o600); err != nil {
		return err
	}
	if err := f.write(f.Certificate, cachain.PEM(chain), 0o644); err != nil {
		if !f.Force {
			err = errors.Join(err, os.Remove(f.Key))
		}
		return err
	}
	return nil
}

// WriteBundle writes the bundle.
func (f Files) WriteBundle(bundle []byte) error { return f.write(f.Bundle, bundle, 0o644) }

// write makes the file, or replaces it where that is wanted.
func (f Files) write(path string, content []byte, mode fs.FileMode) error {
	write := durable.WriteNew
	if f.Force {
		write = durable.Put
	}
	err := write(path, content, mode)
	switch {
	case errors.Is(err, fs.ErrExist):
		return exists(path)
	case err != nil:
		return problem(Failed, "", "writing %s", path).because(err)
	}
	return nil
}
