package azure

import (
	"context"
	"errors"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// CheckNew wants a reference without a version.
func (r reference) CheckNew(kms.Algorithm) error {
	if r.version != "" {
		return errors.New("a new key has no version yet: leave it out")
	}
	return nil
}

// Make makes a key that signs and verifies, and can't be exported. A vault makes
// a new version of a key that is there, so it is asked first.
func (c *client) Make(ctx context.Context, a kms.Algorithm) (string, error) {
	err := c.Absent(ctx, c.describe, func(err error) bool { return answeredWith(err, http.StatusNotFound) })
	if err != nil {
		return "", err
	}
	pinned := c.ref
	err = c.Once(ctx, kms.OperationMake, func(ctx context.Context) error {
		made, err := c.api.CreateKey(ctx, c.ref.name, parameters(a), nil)
		switch {
		case err != nil:
			return err
		case made.Key == nil || made.Key.KID == nil || !versionForm.MatchString(made.Key.KID.Version()):
			return errors.New("the answer doesn't name the new key's version")
		}
		pinned.version = made.Key.KID.Version()
		return nil
	})
	if failed := (*kms.CallError)(nil); answeredWith(err, http.StatusBadRequest) && errors.As(err, &failed) {
		failed.Text += ": keys are made in hardware, which needs a vault of the Premium tier or a managed HSM; make others with `az keyvault key create`"
	}
	return pinned.String(), err
}

// parameters are of a key of a kind that stays in hardware, which a vault of the
// Premium tier and a managed HSM have: RFC 7518 §6.1, and -HSM.
func parameters(a kms.Algorithm) azkeys.CreateKeyParameters {
	sign, verify := azkeys.KeyOperationSign, azkeys.KeyOperationVerify
	in := azkeys.CreateKeyParameters{KeyOps: []*azkeys.KeyOperation{&sign, &verify}}
	if c := a.Curve(); c != nil {
		in.Kty, in.Curve = new(azkeys.KeyTypeECHSM), new(azkeys.CurveName(c.Params().Name))
	} else {
		in.Kty, in.KeySize = new(azkeys.KeyTypeRSAHSM), new(int32(a.Bits()))
	}
	return in
}
