// Package keystore opens and makes the private keys that authorities and logs sign
// with, wherever they are kept: it is the table of all backends of package kms.
package keystore

import (
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/aws"
	"github.com/mayfly-ca/mayfly/ca/kms/azure"
	"github.com/mayfly-ca/mayfly/ca/kms/file"
	"github.com/mayfly-ca/mayfly/ca/kms/gcp"
	"github.com/mayfly-ca/mayfly/ca/kms/pkcs11"
	"github.com/mayfly-ca/mayfly/ca/kms/vault"
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

// What is done with the keys of all backends.
var (
	Open         = Backends().Open
	OpenSealer   = Backends().OpenSealer
	Generate     = Backends().Generate
	CheckAccess  = Backends().CheckAccess
	CheckSealing = Backends().CheckSealing

	GenerateFile = file.Generate // a key in a new file
)
