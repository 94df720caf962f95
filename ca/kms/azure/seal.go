package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// wraps are the algorithms that wrap a data key, by the type of the key: RFC 7518
// §4.1. RSA-OAEP-256 and AES key wrap (RFC 3394) authenticate no additional data:
// what a secret is about is not for the vault to know.
var wraps = map[azkeys.KeyType]azkeys.EncryptionAlgorithm{
	azkeys.KeyTypeRSA:    azkeys.EncryptionAlgorithmRSAOAEP256,
	azkeys.KeyTypeRSAHSM: azkeys.EncryptionAlgorithmRSAOAEP256,
	azkeys.KeyTypeOct:    azkeys.EncryptionAlgorithmA256KW,
	azkeys.KeyTypeOctHSM: azkeys.EncryptionAlgorithmA256KW,
}

// SealingKey finds the key and pins its version.
func (c *client) SealingKey(ctx context.Context) (kms.SealingKey, error) {
	var wrap azkeys.EncryptionAlgorithm
	err := c.Call(ctx, kms.OperationKey, func(ctx context.Context) error {
		found, err := c.find(ctx, azkeys.KeyOperationUnwrapKey)
		if err != nil {
			return err
		}
		if wrap = wraps[*found.Key.Kty]; wrap == "" {
			return kms.Unusable("a key of type %s doesn't seal: use RSA, or oct-HSM in a Managed HSM", *found.Key.Kty)
		}
		return c.pin(found)
	})
	return kms.SealingKey{
		Name: c.ref.String(),
		Seal: func(ctx context.Context, secret []byte, _ string) ([]byte, error) {
			answer, err := c.api.WrapKey(ctx, c.ref.name, c.ref.version, azkeys.KeyOperationParameters{Algorithm: &wrap, Value: secret}, nil)
			return answer.Result, err
		},
		Unseal: func(ctx context.Context, sealed []byte, _ string) ([]byte, error) {
			answer, err := c.api.UnwrapKey(ctx, c.ref.name, c.ref.version, azkeys.KeyOperationParameters{Algorithm: &wrap, Value: sealed}, nil)
			var refused *azcore.ResponseError
			if errors.As(err, &refused) && refused.StatusCode == http.StatusBadRequest {
				err = kms.NotSealed(fmt.Errorf("HTTP 400, %s", codeOf(refused)))
			}
			return answer.Result, err
		},
	}, err
}

// Unsealer is the version that sealed, where r leaves it open.
func (r reference) Unsealer(pinned kms.Reference) (kms.RemoteReference, bool) {
	p, ok := pinned.(reference)
	if !ok || p.name != r.name || r.version != "" && p.version != r.version {
		return nil, false
	}
	if p.host != r.host && (p.place != r.place || r.version == "") { // one HSM has a host in each of its regions
		return nil, false
	}
	r.version = p.version
	return r, true
}
