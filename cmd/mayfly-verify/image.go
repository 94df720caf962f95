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

// What cosign 3 signs an image with: the type of the statement, and how the media type
// of the bundle begins.
const (
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
	bundleType    = "application/vnd.dev.sigstore.bundle"
)

// The most that is read of what refers to an image: anybody who may write beside it can
// add some.
const maxReferrers, maxBundle, maxBundles = 200, 16 << 20, 64 << 20

// readImage gives the bundles that refer to an image (OCI distribution, referrers), by
// the digest in its name or that its tag has now.
func (v *verification) readImage(ctx context.Context, image string) (bundles []*bundle.Bundle, err error) {
	reference, err := name.ParseReference(image)
	if err != nil {
		return nil, err
	}
	with := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	is, err := remote.Head(reference, with...)
	if err != nil {
		return nil, err
	}
	sum, err := hex.DecodeString(is.Digest.Hex)
	if err != nil {
		return nil, err
	}
	v.artifact = verify.WithArtifactDigest(is.Digest.Algorithm, sum)
	index, err := remote.Referrers(reference.Context().Digest(is.Digest.String()), with...)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if n := len(manifest.Manifests); n > maxReferrers {
		return nil, fmt.Errorf("it has %d signatures and the like, and at most %d are read", n, maxReferrers)
	}
	left := int64(maxBundles)
	for _, r := range manifest.Manifests {
		if b, err := readBundle(reference.Context().Digest(r.Digest.String()), with, &left); err != nil {
			return nil, fmt.Errorf("what refers to it, %s: %w", r.Digest, err)
		} else if b != nil {
			bundles = append(bundles, b)
		}
	}
	return bundles, nil
}

// readBundle is nil for what isn't a bundle. Its layer says so: registries differ in the
// artifact type that they give. What it reads counts against left.
func readBundle(at name.Digest, with []remote.Option, left *int64) (*bundle.Bundle, error) {
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
	text, err := io.ReadAll(io.LimitReader(stored, maxBundle+1))
	if err != nil {
		return nil, err
	}
	if *left -= int64(len(text)); len(text) > maxBundle || *left < 0 {
		return nil, fmt.Errorf("a bundle has more than %d bytes, or all together more than %d", maxBundle, maxBundles)
	}
	b := new(bundle.Bundle)
	return b, b.UnmarshalJSON(text)
}
