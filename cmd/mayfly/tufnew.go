package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// The files of a new CA's repository, in its folder.
const (
	tufName       = "tuf"
	tufRootName   = "tuf.root.key.pem"
	tufPublicName = "tuf.root.pem"
	tufOnlineName = "tuf.online.key.pem"
	tufMarkName   = "tuf.mark"
)

// tufRootKey is the file of the key that signs alone: beside the root's, where that is
// elsewhere than in dir.
func (o *initOptions) tufRootKey(dir string) string {
	if o.rootKey != "" {
		dir = filepath.Dir(o.rootKey)
	}
	return filepath.Join(dir, tufRootName)
}

// createTUFKeys makes the keys of a new repository: one signs root and targets alone,
// for trying out.
func createTUFKeys(dir, rootKey string, passphrase []byte) error {
	if _, err := keystore.GenerateFile(filepath.Join(dir, tufOnlineName), kms.ECDSAP256, passphrase); err != nil {
		return err
	}
	key, err := keystore.GenerateFile(rootKey, kms.ECDSAP256, passphrase)
	if err != nil {
		return err
	}
	text, err := publicPEM(key.Public())
	if err != nil {
		return err
	}
	return durable.WriteNew(filepath.Join(dir, tufPublicName), text, 0o644)
}

// syncTUF publishes what a configuration says to clients, signed with the one key of
// the file, where that differs from what was published. It reports whether it did;
// without the key nothing is.
func syncTUF(ctx context.Context, keyFile string, c *config.Config, passphrase setting.Secret, o service.Overrides, now time.Time) (bool, error) {
	if _, err := os.Stat(keyFile); !c.TUF.Enabled() || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	with := quiet()
	with.Now = func() time.Time { return now }
	documents, err := service.Documents(ctx, c, with, o)
	if err != nil {
		return false, startFailure(err, "")
	}
	key, err := keystore.Open(ctx, "file:"+keyFile, kms.Options{Passphrase: passphrase})
	if err != nil {
		return false, err
	}
	online, err := service.OpenTUFKey(ctx, c.TUF, quiet())
	if err != nil {
		return false, err
	}
	defer kms.Close(online)
	var d *tuf.Draft
	switch r, err := loadTUF(c); {
	case errors.Is(err, tuf.ErrNothing):
		only := []crypto.PublicKey{key.Public()}
		if d, err = tuf.Init(tuf.Keys{Root: only, Targets: only, Threshold: 1, Online: online.Public()}, documents, now); err != nil {
			return false, err
		}
	case err != nil:
		return false, err
	default:
		changes, err := r.Drift(documents)
		if err != nil || len(changes) == 0 && !r.Old(now) {
			return false, err
		}
		if d, err = tuf.Renew(r, documents, now); err != nil {
			return false, err
		}
	}
	if _, err := d.Sign(ctx, key); err != nil {
		return false, err
	}
	_, err = tuf.Publish(ctx, string(c.TUF.Directory), d, online, now)
	return err == nil, err
}

// signedSince is what the propagation guard asks of the repository of a configuration;
// nil where nothing is published.
func signedSince(c *config.Config) (func(name string) (time.Time, bool), error) {
	if !c.TUF.Enabled() {
		return nil, nil //nolint:nilnil // there is nobody to ask
	}
	r, err := loadTUF(c)
	if errors.Is(err, tuf.ErrNothing) {
		return nil, nil //nolint:nilnil // there is nobody to ask
	}
	if err != nil {
		return nil, err
	}
	all := c.CA.All()
	return func(name string) (time.Time, bool) {
		i := slices.IndexFunc(all, func(a authority.NamedConfig) bool { return a.Name == name })
		if i < 0 {
			return time.Time{}, false
		}
		chain, err := readChain(nil, string(all[i].Chain))
		if err != nil {
			return time.Time{}, false
		}
		return r.Listed(sha256.Sum256(chain[0].Raw))
	}, nil
}
