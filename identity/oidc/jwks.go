package identity

import (
	"context"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// published is a key set as its issuer publishes it.
type published struct {
	keys  []jose.JSONWebKey
	fresh time.Duration // how long it may serve before it is asked for again
}

// remote is an issuer's own server.
type remote struct {
	fetcher *fetcher
	issuer  string
	now     func() time.Time

	jwks       string    // where the keys are; empty until discovered
	discovered time.Time // zero when jwks is configured
}

// rediscoverAfter is how long an issuer's word on where its keys are is taken for.
const rediscoverAfter = time.Hour

// newRemote takes the place of the keys, or "" to discover it.
func newRemote(f *fetcher, issuer, jwks string, now func() time.Time) *remote {
	return &remote{fetcher: f, issuer: issuer, jwks: jwks, now: now}
}

func (r *remote) fetch(ctx context.Context) (published, error) {
	configured := r.jwks != "" && r.discovered.IsZero()
	if !configured && (r.jwks == "" || r.now().Sub(r.discovered) >= rediscoverAfter) {
		jwks, err := r.fetcher.discover(ctx, r.issuer)
		if err != nil {
			return published{}, err
		}
		r.jwks, r.discovered = jwks, r.now()
	}
	got, err := r.fetcher.keys(ctx, r.jwks)
	if err != nil && !configured {
		r.jwks = "" // they may have moved: discover it again
	}
	return got, err
}

// file is keys that the operator put there, for a place without a way to the
// issuer. It is read again while the process runs.
type file struct{ path setting.Path }

func (f file) fetch(context.Context) (published, error) { return f.read() }

func (f file) read() (published, error) {
	content, err := readFile(f.path, maxBody)
	if err != nil {
		return published{}, fmt.Errorf("keys: %w", err)
	}
	keys, err := parseKeys(content)
	return published{keys, fileFresh}, err
}
