package kms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/youmark/pkcs8"

	"github.com/mayfly-ca/mayfly/internal/durable"
)

// maxKeyFile is the largest key file that is read, in bytes; an RSA 4096 key
// takes about 3,300.
const maxKeyFile = 64 << 10

// file is a key in memory, usually read from a PEM file.
type file struct{ key crypto.Signer }

// InMemory is the Signer of a key that is in memory already. Its algorithm is
// for the caller to check.
func InMemory(key crypto.Signer) Signer { return &file{key} }

func (f *file) Public() crypto.PublicKey { return f.key.Public() }

// Local reports whether s signs within this process, where a signature costs CPU
// time and nothing else.
func Local(s Signer) bool {
	_, ok := s.(*file)
	return ok
}

func (f *file) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("signing with a key file: %w", err)
	}
	if err := checkDigest(digest, opts); err != nil {
		return nil, err
	}
	if _, pss := opts.(*rsa.PSSOptions); pss {
		if _, ok := f.key.(*rsa.PrivateKey); !ok {
			return nil, fmt.Errorf("RSA-PSS was asked of a key of type %T", f.key.Public())
		}
	}
	sig, err := f.key.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("signing with a key file: %w", err)
	}
	return sig, nil
}

// openFile reads `file:PATH`: one PEM block, PKCS #8 plain (RFC 5208 §5) or
// encrypted (§6), SEC 1 or PKCS #1. Only its owner may read the file.
func openFile(_ context.Context, path string, o Options) (Signer, error) {
	pemBytes, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	block, err := onlyBlock(pemBytes)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	var passphrase []byte
	if !o.Passphrase.IsZero() {
		if passphrase, err = o.Passphrase.Read(); err != nil {
			return nil, fmt.Errorf("key file %s: passphrase: %w", path, err)
		}
	}
	key, err := parseKey(block, passphrase)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	if _, err := AlgorithmOf(key.Public()); err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return &file{key}, nil
}

// readPrivate reads a file that its owner alone may touch.
func readPrivate(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("key file: no path: write file:PATH")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat() // of the open file: what is checked is what is read
	switch {
	case err != nil:
		return nil, fmt.Errorf("key file: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("key file %s: isn't a regular file: name the PEM file itself", path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("key file %s: others may read it (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("key file: %w", err)
	case len(b) > maxKeyFile:
		return nil, fmt.Errorf("key file %s: larger than %d bytes: name the PEM file of one key", path, maxKeyFile)
	}
	return b, nil
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

// encryption is how GenerateFile encrypts: scrypt (RFC 7914) at the strength of
// OWASP's password storage guide, N=2^14, r=8, p=5, and AES-256-CBC. A larger N
// would need more than the 32 MiB that OpenSSL allows when it reads the file.
var encryption = &pkcs8.Opts{
	Cipher:  pkcs8.AES256CBC,
	KDFOpts: pkcs8.ScryptOpts{SaltSize: 16, CostParameter: 1 << 14, BlockSize: 8, ParallelizationParameter: 5},
}

// GenerateFile makes a private key and writes it as PKCS #8 PEM to a new file
// of mode 0600, on disk when it returns. A file that exists is never touched:
// the error then wraps os.ErrExist. An empty passphrase leaves the key plain.
func GenerateFile(path string, algorithm Algorithm, passphrase []byte) (crypto.Signer, error) {
	key, err := algorithm.generate()
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
