package ca

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// Validities of a new private CA. The root is kept offline and outlives two
// intermediates; clients trust what it signs by its window in the trust root.
const (
	rootLifetime         = 10 * 365 * 24 * time.Hour
	intermediateLifetime = 5 * 365 * 24 * time.Hour
)

// CreateOptions say what CreateFileAuthority makes.
type CreateOptions struct {
	// Dir is the folder to create; it must not exist, and its parent must.
	Dir string
	// Organization is the O of both certificates: clients choose the verifier by it.
	Organization string
	// Passphrase encrypts both keys; empty leaves them plain, readable by the owner alone.
	Passphrase []byte
	// Algorithm of the issuing key; empty is ECDSA P-256.
	Algorithm kms.Algorithm
	// Now is when both certificates begin.
	Now time.Time
}

// Created are the files of a new authority.
type Created struct {
	Chain      string // PEM: intermediate, root
	IssuingKey string
	Root       string // PEM: the root alone
	RootKey    string // to be kept offline: the service never reads it
}

// CreateFileAuthority makes a private CA with keys in files: a P-384 root of ten
// years and an issuing intermediate of five. The folder appears whole or not at
// all; when it exists, the error wraps os.ErrExist and nothing is touched.
func CreateFileAuthority(o CreateOptions) (_ Created, err error) {
	if o.Organization == "" {
		return Created{}, errors.New("ca: a new authority needs the name of its organization")
	}
	if o.Algorithm == "" {
		o.Algorithm = kms.ECDSAP256
	}
	dir := filepath.Clean(o.Dir)
	if _, err := os.Lstat(dir); err == nil {
		return Created{}, fmt.Errorf("ca: %s: %w: a CA is never overwritten; choose another folder, or move this one away", dir, os.ErrExist)
	}
	temporary, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".new-") // mode 0700
	if err != nil {
		return Created{}, fmt.Errorf("ca: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temporary))
		}
	}()
	if err := create(files(temporary), o); err != nil {
		return Created{}, err
	}
	if err := os.Rename(temporary, dir); err != nil {
		return Created{}, fmt.Errorf("ca: %w", err)
	}
	if err := durable.SyncFolder(filepath.Dir(dir)); err != nil {
		return Created{}, fmt.Errorf("ca: %w", err)
	}
	return files(dir), nil
}

func files(dir string) Created {
	return Created{
		Chain:      filepath.Join(dir, "chain.pem"),
		IssuingKey: filepath.Join(dir, "issuing.key.pem"),
		Root:       filepath.Join(dir, "root.pem"),
		RootKey:    filepath.Join(dir, "root.key.pem"),
	}
}

// create makes keys and certificates and writes them.
func create(to Created, o CreateOptions) error {
	rootKey, err := kms.GenerateFile(to.RootKey, kms.ECDSAP384, o.Passphrase)
	if err != nil {
		return fmt.Errorf("ca: the root: %w", err)
	}
	issuingKey, err := kms.GenerateFile(to.IssuingKey, o.Algorithm, o.Passphrase)
	if err != nil {
		return fmt.Errorf("ca: the intermediate: %w", err)
	}
	root, err := caTemplate(o, "root", rootLifetime)
	if err != nil {
		return err
	}
	intermediate, err := caTemplate(o, "intermediate", intermediateLifetime)
	if err != nil {
		return err
	}
	intermediate.MaxPathLenZero = true // it signs leaves alone: RFC 5280 §4.2.1.9
	intermediate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}

	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return fmt.Errorf("ca: the root: %w", err)
	}
	parent, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return fmt.Errorf("ca: the root: %w", err)
	}
	intermediateDER, err := x509.CreateCertificate(rand.Reader, intermediate, parent, issuingKey.Public(), rootKey)
	if err != nil {
		return fmt.Errorf("ca: the intermediate: %w", err)
	}
	rootPEM, chainPEM := encodePEM(rootDER), encodePEM(intermediateDER)+encodePEM(rootDER)
	return errors.Join(
		durable.WriteNew(to.Root, []byte(rootPEM), 0o644),
		durable.WriteNew(to.Chain, []byte(chainPEM), 0o644),
	)
}

// caTemplate is what the two certificates have in common.
func caTemplate(o CreateOptions, name string, lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial(rand.Reader)
	if err != nil {
		return nil, err
	}
	notBefore := o.Now.UTC().Truncate(time.Second)
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{o.Organization}, CommonName: o.Organization + " " + name},
		NotBefore:             notBefore,
		NotAfter:              notBefore.Add(lifetime - time.Second),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil
}
