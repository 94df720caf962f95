// Package keystore opens and makes the private keys that authorities and logs sign
// with, wherever they are kept: it is the table of all backends of package kms.
package keystore

import (
	"context"
	"crypto"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/aws"
	"github.com/mayfly-ca/mayfly/ca/kms/azure"
	"github.com/mayfly-ca/mayfly/ca/kms/file"
	"github.com/mayfly-ca/mayfly/ca/kms/gcp"
	"github.com/mayfly-ca/mayfly/ca/kms/pkcs11"
	"github.com/mayfly-ca/mayfly/ca/kms/vault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Backends are all of them.
func Backends() kms.Registry {
	return kms.Registry{
		file.Backend(),
		aws.Backend(),
		azure.Backend(),
		pkcs11.Backend(),
		vault.Backend(),
		gcp.Backend(),
	}
}

// Open opens a key: see [kms.Registry.Open].
func Open(ctx context.Context, ref string, o kms.Options) (kms.Signer, error) {
	return Backends().Open(ctx, ref, o)
}

// OpenSealer opens a key that encrypts: see [kms.Registry.OpenSealer].
func OpenSealer(ctx context.Context, ref string, o kms.Options) (kms.Sealer, error) {
	return Backends().OpenSealer(ctx, ref, o)
}

// Generate makes a key: see [kms.Registry.Generate].
func Generate(ctx context.Context, ref string, a kms.Algorithm, o kms.Options) (string, error) {
	return Backends().Generate(ctx, ref, a, o)
}

// CheckAccess adds the faults of the access to a key: see [kms.Registry.CheckAccess].
func CheckAccess(a *kms.Access, path string, key setting.KeyRef, f *setting.Faults) {
	Backends().CheckAccess(a, path, key, f)
}

// CheckSealing is nil where keys can be sealed by ref: see [kms.Registry.CheckSealing].
func CheckSealing(ref string, a kms.Access) error { return Backends().CheckSealing(ref, a) }

// GenerateFile makes a key in a new file: see [file.Generate].
func GenerateFile(path string, a kms.Algorithm, passphrase []byte) (crypto.Signer, error) {
	return file.Generate(path, a, passphrase)
}
