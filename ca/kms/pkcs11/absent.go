//go:build !(pkcs11 && cgo)

package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// errAbsent is what the default binary, which is pure Go, says.
var errAbsent = errors.New("this binary was built without PKCS#11; build it with CGO_ENABLED=1 and -tags pkcs11, or use the image of deploy/Dockerfile's target pkcs11")

// Open fails.
func (u *uri) Open(context.Context, kms.Options) (kms.Signer, error) {
	return nil, fmt.Errorf("key %s: %w", u, errAbsent)
}

// Generate fails.
func (u *uri) Generate(context.Context, kms.Algorithm, kms.Options) (string, error) {
	return "", fmt.Errorf("key %s: %w", u, errAbsent)
}
