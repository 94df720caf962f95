package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// What cosign 3 signs an image with: the type of the statement, and how the media type
// of the bundle begins. What cosign 2 does is in simple.go.
const (
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
	bundleType    = "application/vnd.dev.sigstore.bundle"
)

// The most that is read of what refers to an image: anybody who may write beside it can
// add some.
const maxReferrers, maxBundle, maxBundles = 200, 16 << 20, 64 << 20

// images reads the signatures of one image, within those bounds.
type images struct {
	with   []remote.Option
	digest v1.Hash
	of     verify.ArtifactDigest // the same
	bytes  int64                 // how many were read
	found  []signed
}

// readImage gives what is said to sign an image, and its digest, which is in its name or
// which its tag has now: bundles that refer to it (OCI distribution, referrers), and what
// cosign 2 keeps under a tag.
func readImage(ctx context.Context, image string) ([]signed, name.Digest, error) {
	reference, err := name.ParseReference(image)
	if err != nil {
		return nil, name.Digest{}, err
	}
	with := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	is, err := remote.Head(reference, with...)
	if err != nil {
		return nil, name.Digest{}, err
	}
	at := reference.Context().Digest(is.Digest.String())
	sum, err := hex.DecodeString(is.Digest.Hex)
	if err != nil {
		return nil, at, err
	}
	r := images{with: with, digest: is.Digest, of: verify.ArtifactDigest{Algorithm: is.Digest.Algorithm, Digest: sum}}
	index, err := remote.Referrers(at, with...)
	if err != nil {
		return nil, at, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, at, err
	}
	if n := len(manifest.Manifests); n > maxReferrers {
		return nil, at, fmt.Errorf("it has %d signatures and the like, and at most %d are read", n, maxReferrers)
	}
	from := []name.Reference{at.Context().Tag(is.Digest.Algorithm + "-" + is.Digest.Hex + ".sig")}
	for _, d := range manifest.Manifests {
		from = append(from, at.Context().Digest(d.Digest.String()))
	}
	for i, one := range from {
		err := r.read(one)
		if missing := (*transport.Error)(nil); i == 0 && errors.As(err, &missing) && missing.StatusCode == http.StatusNotFound {
			continue // nothing is under the tag
		}
		if err != nil {
			return nil, at, fmt.Errorf("what refers to it, %s: %w", one, err)
		}
	}
	return r.found, at, nil
}

// read adds the signatures in an artifact. Its layers say what they are: registries
// differ in the artifact type that they give.
func (r *images) read(at name.Reference) error {
	artifact, err := remote.Image(at, r.with...)
	if err != nil {
		return err
	}
	manifest, err := artifact.Manifest()
	if err != nil {
		return err
	}
	raw, err := artifact.RawManifest() // it has what cosign 2 says
	if err = cmp.Or(err, r.count(len(raw))); err != nil {
		return err
	}
	for _, layer := range manifest.Layers {
		simple := string(layer.MediaType) == simpleType
		if !simple && !strings.HasPrefix(string(layer.MediaType), bundleType) {
			continue
		}
		text, err := r.layer(artifact, layer.Digest)
		if err != nil {
			return err
		}
		if len(r.found) == maxReferrers {
			return fmt.Errorf("it has more than %d signatures, and no more are read", maxReferrers)
		}
		one := signed{of: r.of}
		if simple {
			one.parseSimple(text, layer.Annotations, r.digest.String())
		} else {
			one.parse(text)
		}
		r.found = append(r.found, one)
	}
	return nil
}

// layer is a layer's content, which counts against the bounds.
func (r *images) layer(artifact v1.Image, digest v1.Hash) ([]byte, error) {
	layer, err := artifact.LayerByDigest(digest)
	if err != nil {
		return nil, err
	}
	stored, err := layer.Compressed() // as it is stored, which isn't compressed
	if err != nil {
		return nil, err
	}
	defer stored.Close()
	text, err := io.ReadAll(io.LimitReader(stored, maxBundle+1))
	if err != nil {
		return nil, err
	}
	return text, r.count(len(text))
}

// count counts what was read against the bounds.
func (r *images) count(n int) error {
	if r.bytes += int64(n); n > maxBundle || r.bytes > maxBundles {
		return fmt.Errorf("a signature has more than %d bytes, or all together more than %d", maxBundle, maxBundles)
	}
	return nil
}

// signed is what is said to be a signature, and of what.
type signed struct {
	*bundle.Bundle // nil where it can't be read
	of             verify.ArtifactDigest
	fault          error // why it is no signature
}

// parse reads a bundle, which has to have cosign's statement.
func (s *signed) parse(text []byte) {
	b := new(bundle.Bundle)
	if s.fault = b.UnmarshalJSON(text); s.fault != nil {
		return
	}
	s.Bundle = b
	is := ""
	if envelope, err := b.Envelope(); err == nil {
		if statement, err := envelope.Statement(); err == nil {
			is = statement.GetPredicateType()
		}
	}
	if is != signPredicate {
		s.fault = fmt.Errorf("it is a statement of the type %q, and no signature", is)
	}
}

// certificate is whose signature it is said to be.
func (s *signed) certificate() (*x509.Certificate, error) {
	if s.Bundle == nil {
		return nil, s.fault
	}
	content, err := s.VerificationContent()
	if err != nil {
		return nil, err
	}
	if content.Certificate() == nil {
		return nil, errors.New("it is signed with a key, and not with a certificate")
	}
	return content.Certificate(), nil
}

// checkKey is nil when the certificate's key signed the image.
func (s *signed) checkKey() error {
	if s.fault != nil {
		return s.fault
	}
	by, err := s.VerificationContent()
	if err != nil {
		return err
	}
	signature, err := s.SignatureContent()
	if err != nil {
		return err
	}
	return verify.VerifySignatureWithArtifactDigests(signature, by, nil, []verify.ArtifactDigest{s.of})
}
