package oidc

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

const (
	maxKeys = 100 // in one JWKS
	// rediscoverAfter is how long an issuer's word on where its keys are is taken for.
	rediscoverAfter = time.Hour
	fileFresh       = 10 * time.Second // for keys in a file
)

// jwksSource is where the keys of one issuer come from. A cache asks it one
// thing at a time.
type jwksSource interface {
	fetch(ctx context.Context) (jwks, error)
}

// jwks is the keys of an issuer (RFC 7517 §5) that we can use.
type jwks struct {
	keys  []jose.JSONWebKey
	fresh time.Duration // how long they may serve before they are asked for again
}

// jwksServer is an issuer's own server.
type jwksServer struct {
	fetcher *fetcher
	issuer  string
	now     func() time.Time

	url        string    // where the keys are; empty until discovered
	discovered time.Time // zero when url is configured
}

// server is the way to the keys of an issuer.
func (k *Keys) server(issuer string) *jwksServer {
	return &jwksServer{fetcher: k.fetcher, issuer: issuer, now: k.now, url: k.config.JWKSURL}
}

func (s *jwksServer) fetch(ctx context.Context) (jwks, error) {
	configured := s.url != "" && s.discovered.IsZero()
	if !configured && (s.url == "" || s.now().Sub(s.discovered) >= rediscoverAfter) {
		url, err := s.fetcher.discover(ctx, s.issuer)
		if err != nil {
			return jwks{}, err
		}
		s.url, s.discovered = url, s.now()
	}
	got, err := s.fetcher.jwks(ctx, s.url)
	if err != nil && !configured {
		s.url = "" // they may have moved: discover it again
	}
	return got, err
}

// jwksFile is keys that the operator put there, for a place without a way to
// the issuer. It is read again while the process runs.
type jwksFile struct{ path setting.Path }

func (f jwksFile) fetch(context.Context) (jwks, error) { return f.read() }

func (f jwksFile) read() (jwks, error) {
	content, err := readFile(f.path, maxBody)
	if err != nil {
		return jwks{}, fmt.Errorf("keys: %w", err)
	}
	return parseJWKS(content, fileFresh)
}

// parseJWKS reads a JWKS, once for all tokens. A key that we can't use is passed
// over: issuers publish others beside them.
func parseJWKS(content []byte, fresh time.Duration) (jwks, error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(content, &document); err != nil {
		return jwks{}, fmt.Errorf("keys: %w", err)
	}
	if len(document.Keys) > maxKeys {
		return jwks{}, fmt.Errorf("keys: the set holds %d keys; at most %d are read", len(document.Keys), maxKeys)
	}
	usable := jwks{fresh: fresh}
	for _, raw := range document.Keys {
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(raw); err == nil && len(algorithmsOf(&k)) > 0 {
			usable.keys = append(usable.keys, k)
		}
	}
	if len(usable.keys) == 0 {
		return jwks{}, fmt.Errorf("keys: none of the %d keys in the set can verify a signature", len(document.Keys))
	}
	return usable, nil
}
