package kms

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
)

// azureWraps are the algorithms that wrap a data key, by the type of the key:
// RFC 7518 §4.1. RSA-OAEP-256 and AES key wrap (RFC 3394) authenticate no
// additional data: what a secret is about is not for the vault to know.
var azureWraps = map[azkeys.KeyType]azkeys.EncryptionAlgorithm{
	azkeys.KeyTypeRSA:    azkeys.EncryptionAlgorithmRSAOAEP256,
	azkeys.KeyTypeRSAHSM: azkeys.EncryptionAlgorithmRSAOAEP256,
	azkeys.KeyTypeOct:    azkeys.EncryptionAlgorithmA256KW,
	azkeys.KeyTypeOctHSM: azkeys.EncryptionAlgorithmA256KW,
}

// azureRights are key permissions and the role that has them all.
var azureRights = rights{
	signing: "allow it get and sign (Key Vault Crypto User)",
	sealing: "allow it get and unwrapKey, and wrapKey to make a sealed key (Key Vault Crypto User)",
}

// openSealer names the credential, finds the key and pins its version.
func (r azureReference) openSealer(ctx context.Context, o Options) (Sealer, error) {
	k, err := connectAzure(ctx, r, o, azureRights.judge(judgeAzure))
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	var wrap azkeys.EncryptionAlgorithm
	err = o.step("key", func() (string, error) {
		err := k.call(ctx, operationKey, func(ctx context.Context) error {
			found, err := k.bundle(ctx, azkeys.KeyOperationUnwrapKey)
			if err != nil {
				return err
			}
			if wrap = azureWraps[*found.Key.Kty]; wrap == "" {
				return &unusableError{fmt.Sprintf("a key of type %s doesn't seal: use RSA, or oct-HSM in a Managed HSM", *found.Key.Kty)}
			}
			return k.pin(found)
		})
		return k.name, err
	})
	if err != nil {
		Close(k)
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	return &remoteSealer{
		service: k.service, name: k.name,
		seal: func(ctx context.Context, secret []byte, _ string) ([]byte, error) {
			answer, err := k.api.WrapKey(ctx, k.keyName, k.vers, azkeys.KeyOperationParameters{Algorithm: &wrap, Value: secret}, nil)
			return answer.Result, err
		},
		unseal: func(ctx context.Context, sealed []byte, _ string) ([]byte, error) {
			answer, err := k.api.UnwrapKey(ctx, k.keyName, k.vers, azkeys.KeyOperationParameters{Algorithm: &wrap, Value: sealed}, nil)
			var refused *azcore.ResponseError
			if errors.As(err, &refused) && refused.StatusCode == http.StatusBadRequest {
				err = &sealedError{fmt.Errorf("HTTP 400, %s", azureCode(refused))}
			}
			return answer.Result, err
		},
	}, nil
}

// sealedBy is the version that sealed, where r leaves it open.
func (r azureReference) sealedBy(pinned reference) (sealing, bool) {
	p, ok := pinned.(azureReference)
	if !ok || p.name != r.name || r.version != "" && p.version != r.version {
		return nil, false
	}
	if p.host != r.host && (p.place != r.place || r.version == "") { // one HSM has a host in each of its regions
		return nil, false
	}
	r.version = p.version
	return r, true
}
