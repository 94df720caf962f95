// Package ceremony holds the ceremonies in which people make the certificates of
// certificate authorities, whether the keys are in files, in a KMS, in an HSM, or
// on a machine that no network reaches. What a certificate says and how it is
// checked is decided in package cacert.
//
// A ceremony goes one way: [New] says what the certificate will say;
// [Ceremony.For] takes the key that it is for; [Ceremony.Print] shows a person
// what is about to be signed; [Ceremony.Sign] signs it; [Certificate.Write] writes
// it beside the record of how it came about.
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
)

// Circumstances are when, where and before whom a ceremony is held.
type Circumstances struct {
	Now       time.Time
	Host      string   // name of the machine; may be empty
	Tool      string   // program and version
	Witnesses []string // names of those who were there
}

// Ceremony is a certificate that is to be signed, and what goes on record.
type Ceremony struct {
	*cacert.Draft

	at      Circumstances
	keyRef  string
	request *Request // what the key came in, or nil
}

// Certificate is a CA certificate that was signed and checked, and how.
type Certificate struct {
	*cacert.Certificate

	ceremony *Ceremony
	signedBy string // reference of the key that signed
}

// New begins the ceremony of a certificate: [cacert.New] says what is refused.
func New(parent []*x509.Certificate, p cacert.Profile, at Circumstances) (*Ceremony, error) {
	d, err := cacert.New(parent, p, at.Now)
	return &Ceremony{Draft: d, at: at}, err
}

// For names the key that the certificate is for, as [cacert.Draft.For] does, and
// the words to record it by.
func (c *Ceremony) For(public crypto.PublicKey, ref string) error {
	c.keyRef = ref
	return c.Draft.For(public)
}

// ForRequest is For with the key of a request. Whatever else the request asks
// for is noted and ignored.
func (c *Ceremony) ForRequest(r *Request) error {
	if err := c.For(r.key.Public(), "of the certificate request"); err != nil {
		return err
	}
	c.request = r
	return nil
}

// Sign signs the certificate, as [cacert.Draft.Sign] does.
func (c *Ceremony) Sign(issuer cacert.Key) (*Certificate, error) {
	made, err := c.Draft.Sign(issuer)
	if err != nil {
		return nil, err
	}
	return &Certificate{Certificate: made, ceremony: c, signedBy: issuer.Ref}, nil
}

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
// of its ceremony. When the folder exists, the error wraps os.ErrExist and nothing is
// touched. What any other error leaves is the caller's to remove: the folder, and where
// RootKey is set that file outside it. So is making the folder's name durable.
func CreateFiles(o CreateOptions) (made Files, err error) {
	if o.Organization == "" {
		return Files{}, errors.New("ca: a new authority needs the name of its organization")
	}
	o.Algorithm = cmp.Or(o.Algorithm, kms.ECDSAP256)
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		return Files{}, fmt.Errorf("ca: %w", err)
	}
	to := files(o.Dir, o.RootKey)
	rootKey, err := keystore.GenerateFile(to.RootKey, kms.ECDSAP384, o.Passphrase)
	if err != nil {
		return Files{}, fmt.Errorf("ca: the root: %w", err)
	}
	if err := create(to, rootKey, o); err != nil {
		return Files{RootKey: o.RootKey}, err
	}
	return to, nil
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

// create makes the keys and certificates, and writes them with the records of how.
func create(to Files, rootKey crypto.Signer, o CreateOptions) error {
	at := Circumstances{Now: o.Now, Host: o.Host, Tool: o.Tool}
	// The keys lie beside the records, wherever the folder goes.
	signer := cacert.Key{Signer: rootKey, Ref: "file:" + cmp.Or(o.RootKey, filepath.Base(to.RootKey))}
	root, err := certify(nil, cacert.Profile{Organization: o.Organization, PathLength: cacert.Unlimited}, at, signer, signer, to.Root)
	if err != nil {
		return fmt.Errorf("ca: the root: %w", err)
	}
	for _, below := range []struct {
		name, keyFile string
		algorithm     kms.Algorithm
		profile       cacert.Profile
		file          string
	}{
		{"intermediate", to.IssuingKey, o.Algorithm, cacert.Profile{}, to.Chain},
		{"timestamp authority", to.TimestampsKey, kms.ECDSAP256, cacert.Profile{Timestamping: true}, to.Timestamps},
	} {
		key, err := keystore.GenerateFile(below.keyFile, below.algorithm, o.Passphrase)
		if err == nil {
			_, err = certify(root, below.profile, at, cacert.Key{Signer: key, Ref: "file:" + filepath.Base(below.keyFile)}, signer, below.file)
		}
		if err != nil {
			return fmt.Errorf("ca: the %s: %w", below.name, err)
		}
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
