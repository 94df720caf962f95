package kms

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
)

// azureNew are the keys that are made: of the kinds that stay in hardware, which
// a vault of the Premium tier and a managed HSM have. RFC 7518 §6.1, and -HSM.
var azureNew = map[Algorithm]struct {
	kind  azkeys.KeyType
	curve azkeys.CurveName
	bits  int32
}{
	ECDSAP256: {kind: azkeys.KeyTypeECHSM, curve: azkeys.CurveNameP256},
	ECDSAP384: {kind: azkeys.KeyTypeECHSM, curve: azkeys.CurveNameP384},
	ECDSAP521: {kind: azkeys.KeyTypeECHSM, curve: azkeys.CurveNameP521},
	RSA2048:   {kind: azkeys.KeyTypeRSAHSM, bits: 2048},
	RSA3072:   {kind: azkeys.KeyTypeRSAHSM, bits: 3072},
	RSA4096:   {kind: azkeys.KeyTypeRSAHSM, bits: 4096},
}

// generate makes a key that signs and verifies, and can't be exported. A vault
// makes a new version of a key that is there, so it is asked first.
func (r azureReference) generate(ctx context.Context, a Algorithm, o Options) (string, error) {
	if r.version != "" {
		return "", fmt.Errorf("key %s: a new key has no version yet: leave it out", r)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errOpenTimeout)
	defer cancel()
	k, err := connectAzure(ctx, r, o, judgeAzureMaking)
	if err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	defer Close(k)
	err = k.call(ctx, operationKey, k.stands)
	if err == nil || errors.As(err, new(*unusableError)) {
		return "", fmt.Errorf("key %s: %w", r, ErrKeyExists)
	}
	if !azureAnswered(err, http.StatusNotFound) {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	pinned := r
	err = k.once(ctx, operationMake, func(ctx context.Context) error {
		made, err := k.api.CreateKey(ctx, r.name, azureParameters(a), nil)
		if err != nil {
			return err
		}
		if made.Key == nil || made.Key.KID == nil || !azureVersion.MatchString(made.Key.KID.Version()) {
			return errors.New("the answer doesn't name the new key's version")
		}
		pinned.version = made.Key.KID.Version()
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	return pinned.String(), nil
}

func azureParameters(a Algorithm) azkeys.CreateKeyParameters {
	kind := azureNew[a]
	sign, verify := azkeys.KeyOperationSign, azkeys.KeyOperationVerify
	in := azkeys.CreateKeyParameters{Kty: &kind.kind, KeyOps: []*azkeys.KeyOperation{&sign, &verify}}
	if kind.curve != "" {
		in.Curve = &kind.curve
	} else {
		in.KeySize = &kind.bits
	}
	return in
}

// azureAnswered reports whether the vault answered with the status.
func azureAnswered(err error, status int) bool {
	var answered *azcore.ResponseError
	return errors.As(err, &answered) && answered.StatusCode == status
}

// judgeAzureMaking is judgeAzure with what whoever makes a key must be allowed,
// and what a vault without hardware says.
func judgeAzureMaking(err error) (verdict, bool) {
	v, ok := judgeAzure(err)
	switch {
	case azureAnswered(err, http.StatusForbidden):
		v.text = "the principal may not: allow it get and create (Key Vault Crypto Officer)"
	case azureAnswered(err, http.StatusBadRequest):
		v.text += ": keys are made in hardware, which needs a vault of the Premium tier or a managed HSM; make others with `az keyvault key create`"
	}
	return v, ok
}
