package read

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
)

// Archive serves a log that nothing is added to any more: its directory as the
// log left it, or a backup of it. It writes nothing, and holds nothing open.
type Archive struct {
	api    *API
	prefix string
}

// OpenArchive verifies whose log the options' directory holds, and its checkpoint. Issuers and
// Verifier are set here.
func OpenArchive(ctx context.Context, description ctlog.Description, o Options) (_ *Archive, err error) {
	o.Verifier, err = checkpoint.VerifierOf(description)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(description.URL)
	if err != nil {
		return nil, fmt.Errorf("the log's URL: %w", err)
	}
	if description.ID != sha256.Sum256(description.SPKI) {
		return nil, errors.New("the log's id is not its key's hash")
	}
	o.Issuers = o.Dir.Issuers()
	api := New(o)
	if _, err := api.Head(ctx); err != nil {
		return nil, fmt.Errorf("the frozen log in %s: %w", o.Dir, err)
	}
	return &Archive{api: api, prefix: strings.TrimSuffix(u.Path, "/")}, nil
}

// Handler serves the reads of [API.Handler].
func (a *Archive) Handler() http.Handler { return a.api.Handler(nil) }

// Local serves the same to this process itself: see [API.Local].
func (a *Archive) Local() http.Handler { return a.api.Local() }

// Prefix is the path of the log's URL.
func (a *Archive) Prefix() string { return a.prefix }
