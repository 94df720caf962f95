package kms

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
)

// inMemory is a key in this process's memory, usually read from a file.
type inMemory struct {
	key    crypto.Signer
	random io.Reader // nil has ECDSA signatures be those of RFC 6979
}

// InMemory is the Signer of a key that is in memory already. Its algorithm is
// for the caller to check.
func InMemory(key crypto.Signer) Signer { return &inMemory{key, rand.Reader} }

// Repeatable is s with one signature for one digest (RFC 6979), where s is in
// memory, and else s itself: a KMS chooses its own.
func Repeatable(s Signer) Signer {
	if m, ok := s.(*inMemory); ok {
		return &inMemory{m.key, nil}
	}
	return s
}

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
	sig, err := m.key.Sign(m.random, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("signing with a key file: %w", err)
	}
	return sig, nil
}

// ReadKeyFile reads a file that holds a key, or what unlocks one: see package
// secretfile for who else may use it.
func ReadKeyFile(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("key file: no path: write file:PATH")
	}
	b, err := secretfile.Read(path)
	if err != nil {
		return nil, fmt.Errorf("key file %w", err)
	}
	return b, nil
}

// ReadPlatformFile reads a token that a platform mounts, and may let others read:
// it is bound to the pod or machine, and short-lived.
func ReadPlatformFile(path string) ([]byte, error) {
	return durable.ReadPlain(path, secretfile.Max)
}
