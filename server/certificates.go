package server

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
)

// certificates is the listeners' certificate, read again when its files change.
type certificates struct {
	logger *slog.Logger

	mu        sync.Mutex
	cert, key string
	current   *tls.Certificate
	tried     [2]os.FileInfo // the versions of both files that were last read
}

// sameVersion reports whether two looks at a file, links followed, saw the same.
func sameVersion(a, b os.FileInfo) bool {
	return a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && os.SameFile(a, b)
}

// loadCertificates reads the pair that c names; nil without one.
func loadCertificates(c TLSConfig, logger *slog.Logger) (*certificates, error) {
	if !c.Enabled() {
		return nil, nil //nolint:nilnil // no TLS is a configuration, not a failure
	}
	t := &certificates{cert: string(c.CertFile), key: string(c.KeyFile), logger: logger}
	var err error
	if t.tried, err = t.stat(); err == nil {
		t.current, err = t.load()
	}
	if err != nil {
		return nil, fmt.Errorf("server: tls: %w", err)
	}
	return t, nil
}

func (t *certificates) stat() (pair [2]os.FileInfo, err error) {
	for i, name := range []string{t.cert, t.key} {
		if pair[i], err = os.Stat(name); err != nil {
			return pair, err
		}
	}
	return pair, nil
}

func (t *certificates) load() (*tls.Certificate, error) { return ReadCertificate(t.cert, t.key) }

// ReadCertificate reads a certificate, with what follows it in its chain, and its key.
func ReadCertificate(cert, key string) (*tls.Certificate, error) {
	certs, err := os.ReadFile(cert) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	secret, err := secretfile.Read(key)
	if err != nil {
		return nil, err
	}
	chain, err := pemfile.CertificatesAmong(certs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cert, err)
	}
	private, err := pemfile.PrivateKey(secret, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if !pubkey.Equal(chain[0].PublicKey, private.Public()) {
		return nil, fmt.Errorf("%s: isn't the key of the first certificate in %s: name its key, or put the server's own certificate first", key, cert)
	}
	pair := &tls.Certificate{PrivateKey: private, Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, nil
}

// get is the certificate of a handshake. Each one looks whether the files have
// changed, which costs two stats; a pair that doesn't fit leaves the old one in
// force, and is logged once.
func (t *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pair, err := t.stat()
	if err != nil || sameVersion(pair[0], t.tried[0]) && sameVersion(pair[1], t.tried[1]) {
		return t.current, nil // while they are being replaced, the old pair serves
	}
	t.tried = pair
	fresh, err := t.load()
	if err != nil {
		t.logger.LogAttrs(hello.Context(), slog.LevelError, "the new TLS certificate can't be used; the old one stays",
			slog.String("cert_file", t.cert), slog.Any("error", err))
		return t.current, nil
	}
	t.current = fresh
	t.logger.LogAttrs(hello.Context(), slog.LevelInfo, "TLS certificate read again", slog.String("cert_file", t.cert))
	return t.current, nil
}

// become serves what fresh, which nobody else uses, has read.
func (t *certificates) become(fresh *certificates) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cert, t.key, t.current, t.tried = fresh.cert, fresh.key, fresh.current, fresh.tried
}

// tlsConfig serves the certificate to clients of the protocols (RFC 7301).
func (t *certificates) tlsConfig(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: t.get,
		NextProtos:     protocols,
	}
}
