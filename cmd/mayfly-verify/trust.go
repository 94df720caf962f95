package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"

	"github.com/mayfly-ca/mayfly/ca/revocation"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// trust is what is verified by.
type trust struct {
	root    *root.TrustedRoot
	lists   revocation.Source // nil where none is to be asked
	cache   string
	fetched map[string][]byte // lists by authority, to be remembered
}

// trust reads the trusted root, and says where lists come from.
func (o *options) trust(ctx context.Context) (t *trust, err error) {
	t = &trust{cache: o.cache, fetched: make(map[string][]byte)}
	if t.cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("name a folder with --cache: %w", err)
		}
		t.cache = filepath.Join(user, "mayfly")
	}
	var client *tuf.Client
	text, err := []byte(nil), error(nil)
	if o.tufURL == "" {
		text, err = os.ReadFile(o.trustedRoot)
	} else if client, err = o.follow(ctx, t.cache); err == nil {
		text, err = client.GetTarget("trusted_root.json")
	}
	if err != nil {
		return nil, fmt.Errorf("the trusted root: %w", err)
	}
	if t.root, err = root.NewTrustedRootFromJSON(text); err != nil {
		return nil, fmt.Errorf("the trusted root: %w", err)
	}
	places := o.crl
	if len(places) == 0 && client != nil {
		places = []string{"tuf"}
	}
	switch {
	case len(places) == 0:
		fmt.Fprintln(o.warn, "mayfly-verify: warning: no --crl is given: a certificate that is revoked counts")
	case places[0] == "none":
	default:
		t.lists, err = t.source(ctx, o, places, client)
	}
	return t, err
}

// follow is a TUF client, which remembers what it saw.
func (o *options) follow(ctx context.Context, cache string) (*tuf.Client, error) {
	first, err := os.ReadFile(o.tufRoot)
	if err != nil {
		return nil, err
	}
	with := tuf.DefaultOptions().WithContext(ctx).WithRoot(first).WithRepositoryBaseURL(strings.TrimSuffix(o.tufURL, "/")).WithCachePath(filepath.Join(cache, "tuf"))
	if o.offline {
		with = with.WithForceCache().WithFetcher(offline{})
	}
	return tuf.New(with)
}

// offline is a TUF client's fetcher that fetches nothing.
type offline struct{}

func (offline) DownloadFile(string, int64, time.Duration) ([]byte, error) {
	return nil, errors.New("--offline: nothing is fetched, and the cache has it not, or not any more")
}

// source looks for the list of an authority at the places in turn, and keeps in mind
// what it saw of it before.
func (t *trust) source(ctx context.Context, o *options, places []string, client *tuf.Client) (revocation.Source, error) {
	var at []func(authority string) ([]byte, error)
	for _, place := range places {
		remote := strings.HasPrefix(place, "https://") || strings.HasPrefix(place, "http://")
		switch {
		case place == "tuf" && client == nil:
			return nil, fmt.Errorf("%w: --crl tuf needs --tuf-url", errUsage)
		case place == "tuf":
			at = append(at, func(authority string) ([]byte, error) { return client.GetTarget("crl/" + authority + ".crl") })
		case remote && !o.offline:
			at = append(at, func(authority string) ([]byte, error) {
				if strings.HasSuffix(place, "/") {
					return fetch(ctx, place+authority+".crl")
				}
				return fetch(ctx, place)
			})
		case !remote:
			at = append(at, func(string) ([]byte, error) { return os.ReadFile(place) })
		}
	}
	return func(authority string) (*revocation.List, *big.Int, error) {
		kept, _ := os.ReadFile(t.path(authority)) //nolint:errcheck // there is none
		known, err := revocation.Parse(kept)
		var number *big.Int
		if err == nil {
			number = known.Number()
		}
		var why []error
		for _, get := range at {
			b, err := get(authority)
			if err != nil {
				why = append(why, err)
				continue
			}
			l, err := revocation.Parse(b)
			if err != nil {
				return nil, nil, err
			}
			if len(at) > 1 && l.Authority() != authority {
				continue // another place may have it
			}
			t.fetched[authority] = b
			return l, number, nil
		}
		if number != nil { // as long as it isn't stale, it counts
			return known, nil, nil
		}
		missing := revocation.NoList(authority)
		if err := errors.Join(why...); err != nil {
			missing.Words += ": " + err.Error()
		}
		return nil, nil, missing
	}, nil
}

func (t *trust) path(authority string) string { return filepath.Join(t.cache, "crl", authority+".crl") }

// remember keeps the list of an authority, whose signature was verified, against an
// older one. A cache that can't be written is none.
func (t *trust) remember(authority string) {
	b := t.fetched[authority]
	if b == nil || os.MkdirAll(filepath.Join(t.cache, "crl"), 0o700) != nil {
		return
	}
	if durable.WriteNew(t.path(authority), b, 0o600) != nil {
		_ = durable.Replace(t.path(authority), b)
	}
}

// fetchTimeout bounds one answer.
const fetchTimeout = 30 * time.Second

// fetch gets a list.
func fetch(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %d", url, answer.StatusCode)
	}
	return io.ReadAll(io.LimitReader(answer.Body, revocation.MaxBytes+1))
}
