package embedded

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// Archive serves a log that nothing is added to any more: its directory as the
// log left it, or a backup of it. It writes nothing, and holds nothing open.
type Archive struct{ log *Log }

// OpenArchive verifies whose log the directory holds, and its checkpoint. Of the
// options it takes Roots, Now and Logger.
func OpenArchive(ctx context.Context, dir string, about ctlog.Description, o Options) (*Archive, error) {
	key, err := ctlog.ParseKey(about.SPKI)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(about.URL)
	if err != nil {
		return nil, fmt.Errorf("the log's URL: %w", err)
	}
	verifier, err := newVerifier(u.Host+u.Path, key)
	if err != nil {
		return nil, err
	}
	if about.ID != sha256.Sum256(about.SPKI) {
		return nil, errors.New("the log's id is not its key's hash")
	}
	s := store{dir: dir}
	l := &Log{
		about: about, prefix: strings.TrimSuffix(u.Path, "/"), o: withDefaults(o), store: s,
		issuers: &issuers{dir: s.path(issuerDir)}, verifier: verifier,
	}
	l.published.open = func(raw []byte) (head, error) { return openCheckpoint(raw, verifier) }
	if _, err := l.head(ctx); err != nil {
		return nil, fmt.Errorf("the frozen log in %s: %w", dir, err)
	}
	return &Archive{l}, nil
}

// Handler serves the reads of [Log.Handler].
func (a *Archive) Handler() http.Handler { return a.log.Handler() }

// Prefix is the path of the log's URL.
func (a *Archive) Prefix() string { return a.log.prefix }
