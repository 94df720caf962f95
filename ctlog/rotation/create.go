package rotation

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Keys makes and opens private keys of logs.
type Keys interface {
	// Make makes a key on P-256 in a file that isn't there yet, encrypted where a
	// passphrase is named.
	Make(file string, passphrase setting.Secret) error
	Open(ctx context.Context, key setting.KeyRef, passphrase setting.Secret) (ctlog.Signer, error)
}

// Create makes the log of a plan of this store and writes it down. What it made is
// taken away again when it fails: nobody has seen it.
func (s *Store) Create(ctx context.Context, p Plan, keys Keys) (err error) {
	dir := string(p.Next.Directory)
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				err = errors.Join(err, os.RemoveAll(path))
			}
		}
	}()
	paths := []string{dir, string(p.Next.MarkFile)}
	if p.newKey != "" {
		paths = append(paths, p.newKey)
	}
	for _, path := range paths {
		if exists(path) {
			return refuse(NotNow, "move it away; nothing is overwritten", "%s: %w", path, os.ErrExist)
		}
	}
	if p.newKey != "" {
		if err := keys.Make(p.newKey, p.Next.Passphrase); err != nil {
			if errors.Is(err, os.ErrPermission) {
				return refuse(NotNow, "make an ECDSA key on P-256 elsewhere and name it with --key", "the new log's key can't be made beside the last one's: %w", err)
			}
			return err
		}
		made = append(made, p.newKey)
	}
	signer, err := keys.Open(ctx, p.Next.Key, p.Next.Passphrase)
	if err != nil {
		return err
	}
	if err := durable.MakeFolder(filepath.Dir(dir), 0o755); err != nil { // the log is public
		return err
	}
	// Whoever makes the folder makes the log: another at the same time has nothing to take away.
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // the log is public
		return err
	}
	made = append(made, dir, string(p.Next.MarkFile))
	if err := durable.OwnerAsFolder(dir); err != nil {
		return err
	}
	if err := embedded.Create(ctx, p.Next, embedded.Options{Signer: signer}); err != nil {
		return err
	}
	return s.write(p.state)
}
