package kms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// gcpRights are the predefined roles of Cloud KMS.
var gcpRights = rights{
	signing: "grant roles/cloudkms.signerVerifier and roles/cloudkms.viewer",
	sealing: "grant roles/cloudkms.cryptoKeyDecrypter and roles/cloudkms.viewer, and cryptoKeyEncrypter to make a sealed key,",
}

// openSealer authenticates and finds the key. Cloud KMS finds the version that
// sealed by itself, so none is pinned.
func (r *gcpReference) openSealer(ctx context.Context, o Options) (Sealer, error) {
	if r.version != "" {
		return nil, fmt.Errorf("key %s: a key that seals is named without a version, which Cloud KMS finds by itself: leave it out", r)
	}
	g, err := newGCP(ctx, r, o)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	g.service.judge = gcpRights.judge(g.service.judge)
	err = o.step("key", func() (string, error) {
		return r.String(), g.call(ctx, operationKey, func(ctx context.Context) error {
			key, err := g.client.GetCryptoKey(ctx, &kmspb.GetCryptoKeyRequest{Name: r.keyName()})
			if err != nil {
				return err
			}
			if key.GetPurpose() != kmspb.CryptoKey_ENCRYPT_DECRYPT {
				return &gcpUnusable{fmt.Sprintf("its purpose is %v: make one of the purpose ENCRYPT_DECRYPT", key.GetPurpose())}
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", r, err)
	}
	return &remoteSealer{service: g.service, name: r.String(), seal: g.encrypt, unseal: g.decrypt}, nil
}

func (r *gcpReference) sealedBy(pinned reference) (sealing, bool) {
	p, ok := pinned.(*gcpReference)
	return r, ok && *p == *r
}

// encrypt has a checksum of everything that is sent and comes back.
func (g *gcp) encrypt(ctx context.Context, secret []byte, about string) ([]byte, error) {
	out, err := g.client.Encrypt(ctx, &kmspb.EncryptRequest{
		Name: g.key.keyName(), Plaintext: secret, AdditionalAuthenticatedData: []byte(about),
		PlaintextCrc32C: wrapperspb.Int64(crc32c(secret)), AdditionalAuthenticatedDataCrc32C: wrapperspb.Int64(crc32c([]byte(about))),
	})
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(out.GetName(), g.key.keyName()+"/") || !out.GetVerifiedPlaintextCrc32C() || !out.GetVerifiedAdditionalAuthenticatedDataCrc32C() ||
		out.GetCiphertextCrc32C() == nil || out.GetCiphertextCrc32C().GetValue() != crc32c(out.GetCiphertext()) {
		return nil, errGCPDamaged
	}
	return out.GetCiphertext(), nil
}

func (g *gcp) decrypt(ctx context.Context, sealed []byte, about string) ([]byte, error) {
	out, err := g.client.Decrypt(ctx, &kmspb.DecryptRequest{
		Name: g.key.keyName(), Ciphertext: sealed, AdditionalAuthenticatedData: []byte(about),
		CiphertextCrc32C: wrapperspb.Int64(crc32c(sealed)), AdditionalAuthenticatedDataCrc32C: wrapperspb.Int64(crc32c([]byte(about))),
	})
	var said *apierror.APIError
	switch {
	case errors.As(err, &said) && said.HTTPCode() == http.StatusBadRequest && strings.Contains(strings.ToLower(said.Error()), "decryption failed"):
		return nil, &sealedError{errors.New(gcpText(said))}
	case err != nil:
		return nil, err
	case out.GetPlaintextCrc32C() == nil || out.GetPlaintextCrc32C().GetValue() != crc32c(out.GetPlaintext()):
		return nil, errGCPDamaged
	}
	return out.GetPlaintext(), nil
}
