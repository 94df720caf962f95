package ceremony

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// CreateOptions say what CreateFiles makes.
type CreateOptions struct {
	// Dir is the folder to create; it must not exist, and its parent must.
	Dir string
	// RootKey is the file of the root's key, which must not exist; in Dir where empty.
	RootKey string
	// Organization is the O of all certificates: clients choose the verifier by it.
	Organization string
	// Passphrase encrypts all keys; empty leaves them plain, readable by the owner alone.
	Passphrase []byte
	// Algorithm of the issuing key; empty is ECDSA P-256.
	Algorithm kms.Algorithm
	// Now is when all certificates begin.
	Now time.Time
	// Host and Tool are for the records: the machine's name, the program and its version.
	Host, Tool string
}

// Files are the files of a new authority.
type Files struct {
	Chain      string // PEM: intermediate, root
	IssuingKey string
	Root       string // PEM: the root alone
	RootKey    string // to be kept offline: the service never reads it
	// Of the timestamp authority: PEM of its certificate and the root, and its key.
	Timestamps, TimestampsKey string
}

// CreateFiles makes a private CA with keys in files: a P-384 root and a P-256 timestamp
// authority of ten years and an issuing intermediate of five, each beside the record
// of its ceremony. The folder appears whole or not at all; when it exists, the error
// wraps os.ErrExist and nothing is touched. Beside an error, RootKey is set where that
// file was made outside the folder, and is the caller's to remove.
func CreateFiles(o CreateOptions) (made Files, err error) {
	if o.Organization == "" {
		return Files{}, errors.New("ca: a new authority needs the name of its organization")
	}
	o.Algorithm = cmp.Or(o.Algorithm, kms.ECDSAP256)
	dir := filepath.Clean(o.Dir)
	if _, err := os.Lstat(dir); err == nil {
		return Files{}, fmt.Errorf("ca: %s: %w: a CA is never overwritten; choose another folder, or move this one away", dir, os.ErrExist)
	}
	temporary, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".new-") // mode 0700
	if err != nil {
		return Files{}, fmt.Errorf("ca: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temporary))
		}
	}()
	to := files(temporary, o.RootKey)
	rootKey, err := keystore.GenerateFile(to.RootKey, kms.ECDSAP384, o.Passphrase)
	if err != nil {
		return Files{}, fmt.Errorf("ca: the root: %w", err)
	}
	made.RootKey = o.RootKey
	if err := create(to, rootKey, o); err != nil {
		return made, err
	}
	if err := os.Rename(temporary, dir); err != nil {
		return made, fmt.Errorf("ca: %w", err)
	}
	if err := durable.SyncFolder(filepath.Dir(dir)); err != nil {
		return made, fmt.Errorf("ca: %w", err)
	}
	return files(dir, o.RootKey), nil
}

func files(dir, rootKey string) Files {
	return Files{
		Chain:      filepath.Join(dir, "chain.pem"),
		IssuingKey: filepath.Join(dir, "issuing.key.pem"),
		Root:       filepath.Join(dir, "root.pem"),
		RootKey:    cmp.Or(rootKey, filepath.Join(dir, "root.key.pem")),

		Timestamps: filepath.Join(dir, "timestamp.pem"), TimestampsKey: filepath.Join(dir, "timestamp.key.pem"),
	}
}

// create makes the issuing key and the certificates, and writes them with the records of how.
func create(to Files, rootKey crypto.Signer, o CreateOptions) error {
	issuingKey, err := keystore.GenerateFile(to.IssuingKey, o.Algorithm, o.Passphrase)
	if err != nil {
		return fmt.Errorf("ca: the intermediate: %w", err)
	}
	stampingKey, err := keystore.GenerateFile(to.TimestampsKey, kms.ECDSAP256, o.Passphrase)
	if err != nil {
		return fmt.Errorf("ca: the timestamp authority: %w", err)
	}
	at := Circumstances{Now: o.Now, Host: o.Host, Tool: o.Tool}
	// The keys lie beside the records, wherever the folder goes.
	signer := cacert.Key{Signer: rootKey, Ref: "file:" + cmp.Or(o.RootKey, filepath.Base(to.RootKey))}
	root, err := certify(nil, cacert.Profile{Organization: o.Organization, PathLength: cacert.Unlimited}, at, signer, signer, to.Root)
	if err != nil {
		return fmt.Errorf("ca: the root: %w", err)
	}
	issuing := cacert.Key{Signer: issuingKey, Ref: "file:" + filepath.Base(to.IssuingKey)}
	if _, err := certify(root, cacert.Profile{}, at, issuing, signer, to.Chain); err != nil {
		return fmt.Errorf("ca: the intermediate: %w", err)
	}
	stamping := cacert.Key{Signer: stampingKey, Ref: "file:" + filepath.Base(to.TimestampsKey)}
	if _, err := certify(root, cacert.Profile{Timestamping: true}, at, stamping, signer, to.Timestamps); err != nil {
		return fmt.Errorf("ca: the timestamp authority: %w", err)
	}
	return nil
}

// certify holds one ceremony, and gives the chain that it wrote.
func certify(parent []*x509.Certificate, p cacert.Profile, at Circumstances, key, issuer cacert.Key, file string) ([]*x509.Certificate, error) {
	c, err := New(parent, p, at)
	if err != nil {
		return nil, err
	}
	if err := c.For(key.Public(), key.Ref); err != nil {
		return nil, err
	}
	made, err := c.Sign(issuer)
	if err != nil {
		return nil, err
	}
	return made.Chain, made.Write(Beside(file))
}
