package gcp

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2/apierror"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// CheckNew wants a reference without a version, and an algorithm that Cloud KMS has.
func (r *reference) CheckNew(a kms.Algorithm) error {
	if r.version != "" {
		return errors.New("a new key has no version yet: leave /cryptoKeyVersions out")
	}
	if algorithmFor(a) == 0 {
		return fmt.Errorf("%s has no keys of %s", Backend().Title, a)
	}
	return nil
}

// algorithmFor is the algorithm of keys that certificates are signed with; 0 for none.
func algorithmFor(a kms.Algorithm) kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm {
	for algorithm, offered := range algorithms {
		if offered == (kms.SignatureScheme{Key: a, Hash: a.Hash()}) {
			return algorithm
		}
	}
	return 0
}

// Make makes a key in Cloud HSM, in a key ring that is there already: rings can
// never be deleted, and so are nothing to be made by the way.
func (c *client) Make(ctx context.Context, a kms.Algorithm) (string, error) {
	err := c.Once(ctx, kms.OperationMake, func(ctx context.Context) error {
		_, err := c.api.CreateCryptoKey(ctx, &kmspb.CreateCryptoKeyRequest{
			Parent: c.ref.ringName(), CryptoKeyId: c.ref.key,
			CryptoKey: &kmspb.CryptoKey{
				Purpose:         kmspb.CryptoKey_ASYMMETRIC_SIGN,
				VersionTemplate: &kmspb.CryptoKeyVersionTemplate{Algorithm: algorithmFor(a), ProtectionLevel: kmspb.ProtectionLevel_HSM},
			},
		})
		return err
	})
	var said *apierror.APIError
	switch {
	case errors.As(err, &said) && said.HTTPCode() == http.StatusConflict:
		return "", kms.ErrKeyExists
	case err != nil:
		return "", err
	}
	pinned := *c.ref
	pinned.version = "1"
	if err := c.await(ctx, pinned.resource()); err != nil {
		return "", fmt.Errorf("version 1 was made, but isn't ready: %w", err)
	}
	return pinned.String(), nil
}

// await waits until an HSM has made a version.
func (c *client) await(ctx context.Context, name string) error {
	for {
		var state kmspb.CryptoKeyVersion_CryptoKeyVersionState
		err := c.Call(ctx, kms.OperationKey, func(ctx context.Context) error {
			v, err := c.api.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: name})
			state = v.GetState()
			return err
		})
		switch {
		case err != nil:
			return err
		case state == kmspb.CryptoKeyVersion_ENABLED:
			return nil
		case state != kmspb.CryptoKeyVersion_PENDING_GENERATION:
			return fmt.Errorf("its state is %v", state)
		case !kms.Pause(ctx, 3): // as before a last attempt
			return fmt.Errorf("it is still being made: open it later: %w", kms.ErrOpenTimeout)
		}
	}
}
