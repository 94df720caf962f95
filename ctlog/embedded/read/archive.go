package read

import (
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// OpenArchive serves a log that nothing is added to any more: its directory as the
// log left it, or a backup of it. It verifies whose log the options' directory holds, and
// its checkpoint; Issuers, Head and Prefix are set here. It writes nothing, and holds
// nothing open.
func OpenArchive(description ctlog.Description, o Options) (*API, error) {
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
	o.Issuers, o.Prefix = o.Dir.Issuers(), strings.TrimSuffix(u.Path, "/")
	o.Head = func() (checkpoint.Head, error) { return o.Dir.OpenCheckpoint(verifier) }
	if _, err := o.Head(); err != nil {
		return nil, fmt.Errorf("the frozen log in %s: %w", o.Dir, err)
	}
	return New(o), nil
}

// Published reads the checkpoint in a log's directory and verifies it under the
// log's key, with nothing else of the log opened.
func Published(c ctlog.EmbeddedConfig, key crypto.PublicKey) (checkpoint.Head, error) {
	verifier, err := checkpoint.NewVerifier(c.Origin(), key)
	if err != nil {
		return checkpoint.Head{}, err
	}
	return logdir.Dir(c.Directory).OpenCheckpoint(verifier)
}
