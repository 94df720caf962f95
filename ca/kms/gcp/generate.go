package kms

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2/apierror"
)

// generate makes a key in Cloud HSM, in a key ring that is there already: rings
// can never be deleted, and so are nothing to be made by the way.
func (r *gcpReference) generate(ctx context.Context, a Algorithm, o Options) (string, error) {
	if r.version != "" {
		return "", fmt.Errorf("key %s: a new key has no version yet: leave /cryptoKeyVersions out", r)
	}
	algorithm, err := gcpAlgorithmFor(a)
	if err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errOpenTimeout)
	defer cancel()
	g, err := newGCP(ctx, r, o)
	if err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	defer g.service.client.CloseIdleConnections()
	err = g.once(ctx, operationMake, func(ctx context.Context) error {
		_, err := g.client.CreateCryptoKey(ctx, &kmspb.CreateCryptoKeyRequest{
			Parent: r.ringName(), CryptoKeyId: r.key,
			CryptoKey: &kmspb.CryptoKey{
				Purpose:         kmspb.CryptoKey_ASYMMETRIC_SIGN,
				VersionTemplate: &kmspb.CryptoKeyVersionTemplate{Algorithm: algorithm, ProtectionLevel: kmspb.ProtectionLevel_HSM},
			},
		})
		return err
	})
	var said *apierror.APIError
	if errors.As(err, &said) && said.HTTPCode() == http.StatusConflict {
		return "", fmt.Errorf("key %s: %w", r, ErrKeyExists)
	}
	if err != nil {
		return "", fmt.Errorf("key %s: %w", r, err)
	}
	pinned := *r
	pinned.version = "1"
	if err := g.await(ctx, pinned.resource()); err != nil {
		return "", fmt.Errorf("key %s: was made, but isn't ready: %w", &pinned, err)
	}
	return pinned.String(), nil
}

// await waits until an HSM has made a version.
func (g *gcp) await(ctx context.Context, name string) error {
	for {
		var state kmspb.CryptoKeyVersion_CryptoKeyVersionState
		err := g.call(ctx, operationKey, func(ctx context.Context) error {
			v, err := g.client.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: name})
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
		case !pause(ctx, callAttempts):
			return fmt.Errorf("it is still being made: open it later: %w", errOpenTimeout)
		}
	}
}

// gcpAlgorithmFor is the algorithm of keys that certificates are signed with.
func gcpAlgorithmFor(a Algorithm) (kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, error) {
	for algorithm, offered := range gcpAlgorithms {
		if offered == (scheme{a, a.Hash(), false}) {
			return algorithm, nil
		}
	}
	return 0, fmt.Errorf("%s has no keys of %s", gcpBackend.title, a)
}
