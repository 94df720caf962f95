// Package file opens and makes keys in PEM files.
package file

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	"github.com/youmark/pkcs8"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

// Backend keeps keys in PEM files.
func Backend() *kms.Backend {
	return &kms.Backend{
		Name: "file", Title: "a file", URISchemes: []string{"file"}, Parse: parse,
		CannotSeal: "a file can't seal: name a key in a KMS, or keep the issuing key in a file that a passphrase encrypts (mode direct)",
	}
}

func parse(path string, _ kms.Access) (kms.Reference, error) {
	if path == "" {
		return nil, errors.New("no path: write file:PATH")
	}
	return reference(path), nil
}

// reference is the path of a PEM file.
type reference string

func (r reference) String() string { return "file:" + string(r) }

// Open reads the one private key of a file, see [pemfile.PrivateKey], that nobody
// beyond its owner and the groups of this process may use.
func (r reference) Open(_ context.Context, o kms.Options) (kms.Signer, error) {
	content, err := kms.ReadKeyFile(string(r))
	if err != nil {
		return nil, err
	}
	passphrase, err := r.passphrase(o)
	if err != nil {
		return nil, err
	}
	key, err := pemfile.PrivateKey(content, passphrase)
	if err == nil {
		_, err = kms.AlgorithmOf(key.Public())
	}
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", string(r), err)
	}
	return kms.InMemory(key), nil
}

// passphrase is what encrypts the file; nil for a plain one.
func (r reference) passphrase(o kms.Options) ([]byte, error) {
	if o.Passphrase.IsZero() {
		return nil, nil
	}
	passphrase, err := o.Passphrase.Read()
	if err != nil {
		return nil, fmt.Errorf("key file %s: passphrase: %w", string(r), err)
	}
	return passphrase, nil
}

// Generate makes a key and writes it to a new file.
func (r reference) Generate(_ context.Context, a kms.Algorithm, o kms.Options) (string, error) {
	passphrase, err := r.passphrase(o)
	if err != nil {
		return "", err
	}
	if _, err = Generate(string(r), a, passphrase); errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("key %s: %w", r, kms.ErrKeyExists)
	}
	return r.String(), err
}

// encryption is how Generate encrypts: scrypt (RFC 7914) at the strength of
// OWASP's password storage guide, N=2^14, r=8, p=5, and AES-256-CBC. A larger N
// would need more than the 32 MiB that OpenSSL allows when it reads the file.
var encryption = &pkcs8.Opts{
	Cipher:  pkcs8.AES256CBC,
	KDFOpts: pkcs8.ScryptOpts{SaltSize: 16, CostParameter: 1 << 14, BlockSize: 8, ParallelizationParameter: 5},
}

// Generate makes a private key and writes it as PKCS #8 PEM to a new file
// of mode 0600, on disk when it returns. A file that exists is never touched:
// the error then wraps os.ErrExist. An empty passphrase leaves the key plain.
func Generate(path string, a kms.Algorithm, passphrase []byte) (crypto.Signer, error) {
	key, err := a.Generate()
	if err != nil {
		return nil, err
	}
	block := &pem.Block{Type: "PRIVATE KEY"}
	if len(passphrase) > 0 {
		block.Type = "ENCRYPTED PRIVATE KEY"
		block.Bytes, err = pkcs8.MarshalPrivateKey(key, passphrase, encryption)
	} else {
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(key)
	}
	if err != nil {
		return nil, fmt.Errorf("key file %s: encoding the key: %w", path, err)
	}
	if err := durable.WriteNew(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	return key, nil
}
