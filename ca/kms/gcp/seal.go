package gcp

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// SealingKey finds the key. Cloud KMS finds the version that sealed by itself, so
// none is pinned.
func (c *client) SealingKey(ctx context.Context) (kms.SealingKey, error) {
	if c.ref.version != "" {
		return kms.SealingKey{}, errors.New("a key that seals is named without a version, which Cloud KMS finds by itself: leave it out")
	}
	err := c.Call(ctx, kms.OperationKey, func(ctx context.Context) error {
		key, err := c.api.GetCryptoKey(ctx, &kmspb.GetCryptoKeyRequest{Name: c.ref.keyName()})
		if err != nil {
			return err
		}
		if key.GetPurpose() != kmspb.CryptoKey_ENCRYPT_DECRYPT {
			return kms.Unusable("its purpose is %v: make one of the purpose ENCRYPT_DECRYPT", key.GetPurpose())
		}
		return nil
	})
	return kms.SealingKey{Name: c.ref.String(), Seal: c.encrypt, Unseal: c.decrypt}, err
}

// Unsealer is r, which names no version.
func (r *reference) Unsealer(pinned kms.Reference) (kms.RemoteReference, bool) {
	p, ok := pinned.(*reference)
	return r, ok && *p == *r
}

// encrypt has a checksum of everything that is sent and comes back.
func (c *client) encrypt(ctx context.Context, secret []byte, about string) ([]byte, error) {
	out, err := c.api.Encrypt(ctx, &kmspb.EncryptRequest{
		Name: c.ref.keyName(), Plaintext: secret, AdditionalAuthenticatedData: []byte(about),
		PlaintextCrc32C: wrapperspb.Int64(crc32c(secret)), AdditionalAuthenticatedDataCrc32C: wrapperspb.Int64(crc32c([]byte(about))),
	})
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(out.GetName(), c.ref.keyName()+"/") || !out.GetVerifiedPlaintextCrc32C() || !out.GetVerifiedAdditionalAuthenticatedDataCrc32C() ||
		!intact(out.GetCiphertext(), out.GetCiphertextCrc32C()) {
		return nil, errDamaged
	}
	return out.GetCiphertext(), nil
}

func (c *client) decrypt(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	out, err := c.api.Decrypt(ctx, &kmspb.DecryptRequest{
		Name: c.ref.keyName(), Ciphertext: sealed, AdditionalAuthenticatedData: []byte(about),
		CiphertextCrc32C: wrapperspb.Int64(crc32c(sealed)), AdditionalAuthenticatedDataCrc32C: wrapperspb.Int64(crc32c([]byte(about))),
	})
	var said *apierror.APIError
	switch {
	case errors.As(err, &said) && said.HTTPCode() == http.StatusBadRequest && strings.Contains(strings.ToLower(said.Error()), "decryption failed"):
		return nil, kms.NotSealed(errors.New(textOf(said)))
	case err != nil:
		return nil, err
	case !intact(out.GetPlaintext(), out.GetPlaintextCrc32C()):
		return nil, errDamaged
	}
	return out.GetPlaintext(), nil
}
