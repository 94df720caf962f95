//go:build !(pkcs11 && cgo)

package kms

import (
	"context"
	"errors"
	"fmt"
)

// errNoPKCS11 is what the default binary, which is pure Go, says.
var errNoPKCS11 = errors.New("this binary was built without PKCS#11; build it with CGO_ENABLED=1 and -tags pkcs11, or use the image of deploy/Dockerfile's target pkcs11")

func openPKCS11(_ context.Context, u *pkcs11URI, _ Options) (Signer, error) {
	return nil, fmt.Errorf("key %s: %w", u, errNoPKCS11)
}

func generatePKCS11(_ context.Context, u *pkcs11URI, _ Algorithm, _ Options) (string, error) {
	return "", fmt.Errorf("key %s: %w", u, errNoPKCS11)
}
