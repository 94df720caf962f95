package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificates is the listeners' certificate, read again when its files change.
type certificates struct {
	logger *slog.Logger

	mu        sync.Mutex
	cert, key string
	current   *tls.Certificate
	seen      [2]fileState // of the pair that was last tried
}

// fileState tells one version of a file from another, links followed.
type fileState struct {
	info os.FileInfo
	time time.Time
	size int64
}

func (f fileState) same(g fileState) bool {
	return f.time.Equal(g.time) && f.size == g.size && os.SameFile(f.info, g.info)
}

// loadCertificates reads the pair that c names; nil without one.
func loadCertificates(c TLSConfig, logger *slog.Logger) (*certificates, error) {
	if !c.Enabled() {
		return nil, nil //nolint:nilnil // no TLS is a configuration, not a failure
	}
	t := &certificates{cert: string(c.CertFile), key: string(c.KeyFile), logger: logger}
	seen, err := t.stat()
	if err != nil {
		return nil, fmt.Errorf("server: tls: %w", err)
	}
	if t.current, err = t.load(seen); err != nil {
		return nil, fmt.Errorf("server: tls: %w", err)
	}
	t.seen = seen
	return t, nil
}

func (t *certificates) stat() (states [2]fileState, err error) {
	for i, name := range []string{t.cert, t.key} {
		info, err := os.Stat(name)
		if err != nil {
			return states, err
		}
		states[i] = fileState{info, info.ModTime(), info.Size()}
	}
	return states, nil
}

// othersMayUse are the permissions that a private key must not have: to be read
// or replaced by everybody.
const othersMayUse = 0o006

func (t *certificates) load(seen [2]fileState) (*tls.Certificate, error) {
	if seen[1].info.Mode().Perm()&othersMayUse != 0 {
		return nil, fmt.Errorf("%s may be read or written by everybody: chmod o= it", t.key)
	}
	pair, err := tls.LoadX509KeyPair(t.cert, t.key)
	if err != nil {
		return nil, err
	}
	return &pair, nil
}

// get is the certificate of a handshake. Each one looks whether the files have
// changed, which costs two stats; a pair that doesn't fit leaves the old one in
// force, and is logged once.
func (t *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen, err := t.stat()
	if err != nil || seen[0].same(t.seen[0]) && seen[1].same(t.seen[1]) {
		return t.current, nil // while they are being replaced, the old pair serves
	}
	t.seen = seen
	fresh, err := t.load(seen)
	if err != nil {
		t.logger.LogAttrs(hello.Context(), slog.LevelError, "the new TLS certificate can't be used; the old one stays",
			slog.String("cert_file", t.cert), slog.Any("error", err))
		return t.current, nil
	}
	t.current = fresh
	t.logReload(hello.Context())
	return t.current, nil
}

// become serves what fresh, which nobody else uses, has read.
func (t *certificates) become(fresh *certificates) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cert, t.key, t.current, t.seen = fresh.cert, fresh.key, fresh.current, fresh.seen
}

func (t *certificates) logReload(ctx context.Context) {
	t.logger.LogAttrs(ctx, slog.LevelInfo, "TLS certificate read again", slog.String("cert_file", t.cert))
}

// tlsConfig serves the certificate to HTTP/2 and HTTP/1.1 clients.
func (t *certificates) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: t.get,
		NextProtos:     []string{"h2", "http/1.1"}, // RFC 7301
	}
}
