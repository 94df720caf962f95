package read

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// Archive serves a log that nothing is added to any more: its directory as the
// log left it, or a backup of it. It writes nothing, and holds nothing open.
type Archive struct {
	api    *API
	prefix string
}

// OpenArchive verifies whose log the directory holds, and its checkpoint. get-roots
// lists the roots, in DER; without a logger nothing is logged.
func OpenArchive(ctx context.Context, dir string, description ctlog.Description, roots [][]byte, logger *slog.Logger) (*Archive, error) {
	verifier, err := checkpoint.VerifierOf(description)
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
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	d := logdir.Dir(dir)
	api := New(Options{Dir: d, Issuers: d.Issuers(), Verifier: verifier, Roots: func() [][]byte { return roots }, Logger: logger})
	if _, err := api.Head(ctx); err != nil {
		return nil, fmt.Errorf("the frozen log in %s: %w", dir, err)
	}
	return &Archive{api: api, prefix: strings.TrimSuffix(u.Path, "/")}, nil
}

// Handler serves the reads of [API.Handler].
func (a *Archive) Handler() http.Handler { return a.api.Handler(nil) }

// Prefix is the path of the log's URL.
func (a *Archive) Prefix() string { return a.prefix }
