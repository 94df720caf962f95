package logdir

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// Issuers keeps the certificates above the entries, each once, under its
// SHA-256 (c2sp.org/static-ct-api: issuer/<fingerprint>).
type Issuers struct {
	dir   string
	mu    sync.Mutex // one writer
	known sync.Map   // [32]byte → []byte: DER that this process has made durable
	cache sync.Map   // the same, for what was only read
}

// Issuers are those of the log.
func (d Dir) Issuers() *Issuers { return &Issuers{dir: d.Path(IssuerDir)} }

// Keep stores the certificates that are new, durably, and returns all fingerprints.
func (s *Issuers) Keep(chain [][]byte) ([][32]byte, error) {
	out := make([][32]byte, len(chain))
	for i, der := range chain {
		out[i] = sha256.Sum256(der)
		if _, ok := s.known.Load(out[i]); ok {
			continue
		}
		if err := s.write(out[i], der); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Get reads a certificate by its fingerprint; os.ErrNotExist when there is none.
func (s *Issuers) Get(fingerprint [32]byte) ([]byte, error) {
	if der, ok := s.known.Load(fingerprint); ok {
		return der.([]byte), nil //nolint:forcetypeassert // only write stores, and only that
	}
	if der, ok := s.cache.Load(fingerprint); ok {
		return der.([]byte), nil //nolint:forcetypeassert // only this function stores, and only that
	}
	der, err := os.ReadFile(s.path(fingerprint))
	if err != nil {
		return nil, fmt.Errorf("reading an issuer: %w", err)
	}
	if sha256.Sum256(der) != fingerprint {
		return nil, fmt.Errorf("the issuer %x is damaged: its hash is another", fingerprint)
	}
	s.cache.Store(fingerprint, der)
	return der, nil
}

// Certificate is Get, parsed.
func (s *Issuers) Certificate(fingerprint [32]byte) (*x509.Certificate, error) {
	der, err := s.Get(fingerprint)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the issuer %x: %w", fingerprint, err)
	}
	return c, nil
}

func (s *Issuers) path(fingerprint [32]byte) string {
	return filepath.Join(s.dir, hex.EncodeToString(fingerprint[:]))
}

func (s *Issuers) write(fingerprint [32]byte, der []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known.Load(fingerprint); ok {
		return nil // another submission was faster
	}
	if err := durable.MakeFolder(s.dir, 0o755); err != nil { // the log is public
		return fmt.Errorf("storing an issuer: %w", err)
	}
	if err := durable.SyncFolder(filepath.Dir(s.dir)); err != nil {
		return err
	}
	if err := writeDurably(s.path(fingerprint), der); err != nil {
		return fmt.Errorf("storing an issuer: %w", err)
	}
	s.known.Store(fingerprint, der)
	return nil
}
