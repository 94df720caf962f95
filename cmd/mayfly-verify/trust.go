package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/theupdateframework/go-tuf/v2/metadata/fetcher"

	"github.com/mayfly-ca/mayfly/ca/revocation"
)

// trust reads the trusted root, and says where lists come from: nil for nowhere.
func (o *options) trust(ctx context.Context) (*root.TrustedRoot, revocation.Source, error) {
	var client *tuf.Client
	var text []byte
	var err error
	if o.tufURL == "" {
		text, err = os.ReadFile(o.trustedRoot)
	} else if client, err = o.follow(ctx); err == nil {
		text, err = client.GetTarget("trusted_root.json")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the trusted root: %w", err)
	}
	trusted, err := root.NewTrustedRootFromJSON(text)
	if err != nil {
		return nil, nil, fmt.Errorf("the trusted root: %w", err)
	}
	if o.crl == "" && client == nil {
		fmt.Fprintln(o.warn, "mayfly-verify: warning: no --crl is given: a certificate that is revoked counts")
	}
	if o.crl == "none" || o.crl == "" && client == nil {
		return trusted, nil, nil
	}
	return trusted, func(authority string) (*revocation.List, error) {
		b, err := o.readList(authority, client)
		if err != nil {
			missing := revocation.NoList(authority)
			missing.Words += ": " + err.Error()
			return nil, missing
		}
		return revocation.Parse(b)
	}, nil
}

// follow is a TUF client, which remembers what it saw where cosign does.
func (o *options) follow(ctx context.Context) (*tuf.Client, error) {
	first, err := os.ReadFile(o.tufRoot)
	if err != nil {
		return nil, err
	}
	with := tuf.DefaultOptions().WithContext(ctx).WithRoot(first).WithRepositoryBaseURL(strings.TrimSuffix(o.tufURL, "/"))
	if o.offline {
		with = with.WithForceCache().WithFetcher(offline{})
	}
	return tuf.New(with)
}

// offline fetches nothing.
type offline struct{}

func (offline) DownloadFile(string, int64, time.Duration) ([]byte, error) {
	return nil, errors.New("nothing is fetched --offline, and what was fetched before doesn't have it, or has expired")
}

// readList gets the list of an authority.
func (o *options) readList(authority string, client *tuf.Client) ([]byte, error) {
	url := o.crl
	if strings.HasSuffix(url, "/") {
		url += authority + ".crl"
	}
	switch {
	case (url == "" || url == "tuf") && client != nil:
		return client.GetTarget("crl/" + authority + ".crl")
	case !strings.HasPrefix(url, "https://") && !strings.HasPrefix(url, "http://"):
		return os.ReadFile(url)
	case o.offline:
		return nil, errors.New("nothing is fetched --offline: give a file")
	}
	web := fetcher.NewDefaultFetcher()
	web.SetHTTPClient(&http.Client{Timeout: time.Minute})
	return web.DownloadFile(url, revocation.MaxBytes, 0)
}
