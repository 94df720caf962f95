// Package file opens and makes keys in PEM files.
package file

import (
	"bytes"
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

// Open reads one PEM block: PKCS #8 plain (RFC 5208 §5) or encrypted (§6), SEC 1
// or PKCS #1. Only its owner may read the file.
func (r reference) Open(_ context.Context, o kms.Options) (kms.Signer, error) {
	pemBytes, err := kms.ReadKeyFile(string(r))
	if err != nil {
		return nil, err
	}
	passphrase, err := r.passphrase(o)
	if err != nil {
		return nil, err
	}
	key, err := parseFile(pemBytes, passphrase)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", string(r), err)
	}
	if _, err := kms.AlgorithmOf(key.Public()); err != nil {
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

// parseFile reads the one private key of a file.
func parseFile(pemBytes, passphrase []byte) (crypto.Signer, error) {
	block, err := onlyBlock(pemBytes)
	if err != nil {
		return nil, err
	}
	return parseKey(block, passphrase)
}

// onlyBlock is the one PEM block of a key file.
func onlyBlock(pemBytes []byte) (*pem.Block, error) {
	block, rest := pem.Decode(pemBytes)
	if block == nil {
		return nil, errors.New("holds no PEM block: a private key in PEM is expected")
	}
	if block.Type == "EC PARAMETERS" { // `openssl ecparam -genkey` writes them before the key
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("holds EC parameters and no key")
		}
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("holds more than one key, or text after it: keep one PEM block")
	}
	return block, nil
}

// parseKey reads a private key. No error repeats what the block holds.
func parseKey(block *pem.Block, passphrase []byte) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "ENCRYPTED PRIVATE KEY":
		if passphrase == nil {
			return nil, errors.New("is encrypted: set the passphrase (`passphrase` in a configuration; --passphrase-file or --passphrase-env of this key on a command line)")
		}
		if key, err = pkcs8.ParsePKCS8PrivateKey(block.Bytes, passphrase); err != nil {
			return nil, fmt.Errorf("can't be decrypted: check the passphrase: %w", err)
		}
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY", "RSA PRIVATE KEY":
		if block.Headers["DEK-Info"] != "" { // RFC 1421 §4.6.1.3, broken since
			return nil, errors.New("uses the old PEM encryption: convert it with openssl pkcs8 -topk8")
		}
		if block.Type == "EC PRIVATE KEY" {
			key, err = x509.ParseECPrivateKey(block.Bytes)
		} else {
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		}
	default:
		return nil, fmt.Errorf("holds a %q: a private key (PKCS #8, SEC 1 or PKCS #1) is expected", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("is damaged: restore it from a copy: %w", err)
	}
	if passphrase != nil && block.Type != "ENCRYPTED PRIVATE KEY" {
		return nil, errors.New("isn't encrypted, but a passphrase is set: encrypt it with openssl pkcs8 -topk8, or remove the passphrase")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("holds a key of type %T, which can't sign", key)
	}
	return signer, nil
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
