package kms

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
)

// inMemory is a key in this process's memory, usually read from a file.
type inMemory struct{ key crypto.Signer }

// InMemory is the Signer of a key that is in memory already. Its algorithm is
// for the caller to check.
func InMemory(key crypto.Signer) Signer { return &inMemory{key} }

// Local reports whether s signs within this process, where a signature costs CPU
// time and nothing else.
func Local(s Signer) bool {
	_, ok := s.(*inMemory)
	return ok
}

func (m *inMemory) Public() crypto.PublicKey { return m.key.Public() }

func (m *inMemory) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("signing with a key file: %w", err)
	}
	if err := CheckDigest(digest, opts); err != nil {
		return nil, err
	}
	if _, pss := opts.(*rsa.PSSOptions); pss {
		if _, ok := m.key.(*rsa.PrivateKey); !ok {
			return nil, fmt.Errorf("RSA-PSS was asked of a key of type %T", m.key.Public())
		}
	}
	sig, err := m.key.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("signing with a key file: %w", err)
	}
	return sig, nil
}

// maxKeyFile is the largest file of a key or credential that is read, in bytes;
// an RSA 4096 key takes about 3,300.
const maxKeyFile = 64 << 10

// ReadKeyFile reads a file that its owner alone may touch.
func ReadKeyFile(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("key file: no path: write file:PATH")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat() // of the open file: what is checked is what is read
	switch {
	case err != nil:
		return nil, fmt.Errorf("key file: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("key file %s: isn't a regular file: name the PEM file itself", path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("key file %s: others may read it (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b, err := readBounded(f)
	switch {
	case err != nil:
		return nil, fmt.Errorf("key file: %w", err)
	case len(b) > maxKeyFile:
		return nil, fmt.Errorf("key file %s: larger than %d bytes: name the PEM file of one key", path, maxKeyFile)
	}
	return b, nil
}

// ReadCredentialFile reads a file of credentials, which a platform may let others read.
func ReadCredentialFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readBounded(f)
	if err == nil && len(b) > maxKeyFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxKeyFile)
	}
	return b, err
}

// readBounded reads one byte more than may be there at most.
func readBounded(f *os.File) ([]byte, error) { return io.ReadAll(io.LimitReader(f, maxKeyFile+1)) }
