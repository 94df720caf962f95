package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// signPredicate is the type of the statement that cosign 3 signs an image with.
const signPredicate = "https://sigstore.dev/cosign/sign/v1"

// bundleType begins the media types of bundles.
const bundleType = "application/vnd.dev.sigstore.bundle"

// The most that is read of an image's signatures: anybody who may write beside the
// image can add some.
const (
	maxReferrers = 200
	maxSignature = 16 << 20 // bytes
)

// imageSignatures are the bundles that refer to an image (OCI distribution, referrers),
// with the digest that its name has, or its tag has now.
func imageSignatures(ctx context.Context, image string) (verify.ArtifactPolicyOption, []*bundle.Bundle, string, error) {
	reference, err := name.ParseReference(image)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%w: %q isn't an image: %w", errUsage, image, err)
	}
	with := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	is, err := remote.Head(reference, with...)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%s: %w", image, err)
	}
	digest := reference.Context().Digest(is.Digest.String())
	sum, err := hex.DecodeString(is.Digest.Hex)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%s: %w", digest, err)
	}
	index, err := remote.Referrers(digest, with...)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%s: %w", digest, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, nil, "", fmt.Errorf("%s: %w", digest, err)
	}
	if n := len(manifest.Manifests); n > maxReferrers {
		return nil, nil, "", fmt.Errorf("%s has %d signatures and the like, and at most %d are read", digest, n, maxReferrers)
	}
	var bundles []*bundle.Bundle
	for _, r := range manifest.Manifests {
		b, err := readBundle(digest.Context().Digest(r.Digest.String()), with)
		if err != nil {
			return nil, nil, "", fmt.Errorf("%s: what refers to it, %s: %w", digest, r.Digest, err)
		}
		if b != nil {
			bundles = append(bundles, b)
		}
	}
	return verify.WithArtifactDigest(is.Digest.Algorithm, sum), bundles, digest.String(), nil
}

// readBundle is nil for what isn't a bundle. Its layer says so: registries differ in the
// artifact type that they give.
func readBundle(at name.Digest, with []remote.Option) (*bundle.Bundle, error) {
	artifact, err := remote.Image(at, with...)
	if err != nil {
		return nil, err
	}
	layers, err := artifact.Layers()
	if err != nil || len(layers) != 1 {
		return nil, err
	}
	if kind, err := layers[0].MediaType(); err != nil || !strings.HasPrefix(string(kind), bundleType) {
		return nil, err
	}
	stored, err := layers[0].Compressed() // as it is stored, which isn't compressed
	if err != nil {
		return nil, err
	}
	defer stored.Close()
	text, err := io.ReadAll(io.LimitReader(stored, maxSignature))
	if err != nil {
		return nil, err
	}
	b := new(bundle.Bundle)
	return b, b.UnmarshalJSON(text)
}
