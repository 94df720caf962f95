package oidc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const (
	maxKeys = 100 // in one JWKS
	// rediscoverAfter is how long an issuer's word on where its keys are is taken for.
	rediscoverAfter = time.Hour
	fileFresh       = 10 * time.Second // for keys in a file
)

// jwks is the keys of an issuer (RFC 7517 §5).
type jwks struct {
	keys       []jwk             // that can be used
	passedOver []string          // each key for signatures that can't be, with the reason
	unusable   map[string]string // the reasons by the keys' ids
	fresh      time.Duration     // how long they may serve before they are asked for again
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
	return &jwksServer{fetcher: k.fetcher, issuer: issuer, now: k.options.Now, url: k.config.JWKSURL}
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

// readJWKS reads keys that the operator put there, for a place without a way to
// the issuer. They are read again while the process runs.
func readJWKS(path setting.Path) (jwks, error) {
	content, err := durable.ReadPlain(string(path), maxBody)
	if err != nil {
		return jwks{}, fmt.Errorf("keys: %w", err)
	}
	return parseJWKS(content, fileFresh)
}

// unusableError says that an issuer could be asked, and has no key that we can use.
type unusableError struct{ passedOver []string }

func (e *unusableError) Error() string {
	if len(e.passedOver) == 0 {
		return "keys: there is none for signatures in the set"
	}
	return "keys: none in the set can be used: " + strings.Join(e.passedOver, "; ")
}

// parseJWKS reads a JWKS, once for all tokens. A key that we can't use is passed
// over: issuers publish others beside them.
func parseJWKS(content []byte, fresh time.Duration) (jwks, error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(bytes.TrimPrefix(content, byteOrderMark), &document); err != nil {
		return jwks{}, fmt.Errorf("keys: %w", err)
	}
	if len(document.Keys) > maxKeys {
		return jwks{}, fmt.Errorf("keys: the set holds %d keys; at most %d are read", len(document.Keys), maxKeys)
	}
	set := jwks{unusable: make(map[string]string), fresh: fresh}
	for n, raw := range document.Keys {
		switch k, err := parseJWK(raw); {
		case err == nil:
			set.keys = append(set.keys, k)
		case errors.Is(err, errNoSignatures):
		default:
			name := claim.Quote(k.id)
			if k.id == "" {
				name = fmt.Sprintf("number %d", n+1)
			}
			set.passedOver = append(set.passedOver, name+": "+err.Error())
			set.unusable[k.id] = err.Error()
		}
	}
	if len(set.keys) == 0 {
		return jwks{}, &unusableError{set.passedOver}
	}
	return set, nil
}
