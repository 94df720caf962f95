package azure

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// SigningKey fetches the key and pins its version.
func (c *client) SigningKey(ctx context.Context) (key kms.SigningKey, err error) {
	found, err := c.find(ctx, azkeys.KeyOperationSign)
	if err != nil {
		return key, err
	}
	public, err := publicKey(found)
	if err != nil {
		return key, kms.Unusable("%w", err)
	}
	key = kms.SigningKey{Name: c.ref.String(), Public: public, Supports: schemeName, Describe: c.describe, Sign: c.sign}
	if _, ok := public.(*ecdsa.PublicKey); ok {
		key.Sign = c.signECDSA
	}
	return key, nil
}

// find fetches a key that may do that now, and pins its version.
func (c *client) find(ctx context.Context, wanted azkeys.KeyOperation) (*azkeys.JSONWebKey, error) {
	found, err := c.api.GetKey(ctx, c.ref.name, c.ref.version, nil)
	if err != nil {
		return nil, err
	}
	k, a, now := found.Key, found.Attributes, c.Now()
	if k == nil || k.KID == nil || k.Kty == nil {
		return nil, errors.New("its description is empty")
	}
	if a == nil {
		a = new(azkeys.KeyAttributes)
	}
	switch version := k.KID.Version(); {
	case len(k.KeyOps) > 0 && !slices.ContainsFunc(k.KeyOps, func(o *azkeys.KeyOperation) bool { return o != nil && *o == wanted }):
		return nil, kms.Unusable("its permitted operations lack %s: allow it", wanted)
	case a.Enabled != nil && !*a.Enabled:
		return nil, kms.Unusable("it is disabled: enable it")
	case a.Expires != nil && !now.Before(*a.Expires):
		return nil, kms.Unusable("it expired on %s", a.Expires.UTC().Format(time.DateOnly))
	case a.NotBefore != nil && now.Before(*a.NotBefore):
		return nil, kms.Unusable("it isn't active before %s", a.NotBefore.UTC().Format(time.DateOnly))
	case !versionForm.MatchString(version):
		return nil, fmt.Errorf("the vault names no version of the key (%q)", kms.OneLine(string(*k.KID)))
	case c.ref.version == "":
		c.ref.version = version
	}
	return k, nil
}

func (c *client) describe(ctx context.Context) error {
	_, err := c.find(ctx, azkeys.KeyOperationSign)
	return err
}

func (c *client) sign(ctx context.Context, scheme string, digest []byte) ([]byte, error) {
	name := azkeys.SignatureAlgorithm(scheme)
	answer, err := c.api.Sign(ctx, c.ref.name, c.ref.version, azkeys.SignParameters{Algorithm: &name, Value: digest}, nil)
	return answer.Result, err
}

// signECDSA makes DER of the r‖s that Azure answers with (RFC 7518 §3.4).
func (c *client) signECDSA(ctx context.Context, scheme string, digest []byte) ([]byte, error) {
	raw, err := c.sign(ctx, scheme, digest)
	if err != nil {
		return nil, err
	}
	sig, err := kms.ECDSASignature(raw)
	if err != nil {
		return nil, kms.WrongSignature(err)
	}
	return sig, nil
}

// publicKey reads a JSON Web Key (RFC 7518 §6). The HSM kinds have the same members.
func publicKey(k *azkeys.JSONWebKey) (crypto.PublicKey, error) {
	switch *k.Kty {
	case azkeys.KeyTypeRSA, azkeys.KeyTypeRSAHSM:
		e := new(big.Int).SetBytes(k.E)
		if len(k.N) == 0 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
			return nil, errors.New("its RSA public key can't be read")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(k.N), E: int(e.Int64())}, nil
	case azkeys.KeyTypeEC, azkeys.KeyTypeECHSM:
		for _, a := range kms.Algorithms() {
			curve := a.Curve()
			if curve == nil || k.Crv == nil || string(*k.Crv) != curve.Params().Name {
				continue
			}
			size := (curve.Params().BitSize + 7) / 8
			x, y := new(big.Int).SetBytes(k.X), new(big.Int).SetBytes(k.Y)
			if x.BitLen() > 8*size || y.BitLen() > 8*size {
				return nil, errors.New("its public key isn't on its curve")
			}
			point := append([]byte{4}, append(x.FillBytes(make([]byte, size)), y.FillBytes(make([]byte, size))...)...) // SEC 1 §2.3.3
			return ecdsa.ParseUncompressedPublicKey(curve, point)
		}
		return nil, errors.New("its curve isn't supported: use P-256, P-384 or P-521")
	default:
		return nil, fmt.Errorf("a key of type %s doesn't sign here: use EC or RSA", *k.Kty)
	}
}

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
func (c *client) SealingKey(ctx context.Context) (key kms.SealingKey, err error) {
	found, err := c.find(ctx, azkeys.KeyOperationUnwrapKey)
	if err != nil {
		return key, err
	}
	wrap, ok := wraps[*found.Kty]
	if !ok {
		return key, kms.Unusable("a key of type %s doesn't seal: use RSA, or oct-HSM in a Managed HSM", *found.Kty)
	}
	return kms.SealingKey{
		Name: c.ref.String(), Detail: string(*found.Kty),
		Seal: func(ctx context.Context, secret []byte, _ string) ([]byte, error) {
			answer, err := c.api.WrapKey(ctx, c.ref.name, c.ref.version, azkeys.KeyOperationParameters{Algorithm: &wrap, Value: secret}, nil)
			return answer.Result, err
		},
		Unseal: func(ctx context.Context, sealed []byte, _ string) ([]byte, error) {
			answer, err := c.api.UnwrapKey(ctx, c.ref.name, c.ref.version, azkeys.KeyOperationParameters{Algorithm: &wrap, Value: sealed}, nil)
			if refused, ok := errors.AsType[*azcore.ResponseError](err); ok && refused.StatusCode == http.StatusBadRequest {
				err = kms.NotSealed(fmt.Errorf("HTTP 400, %s", codeOf(refused)))
			}
			return answer.Result, err
		},
	}, nil
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
