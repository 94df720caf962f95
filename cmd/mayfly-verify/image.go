package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
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

// The most that is read of what is beside an image: anybody who may write there can add
// some.
const maxReferrers, maxBundle, maxBundles = 200, 16 << 20, 64 << 20

// signed is what is said to be a signature, and of what.
type signed struct {
	*bundle.Bundle
	by    verify.VerificationContent // has a certificate; nil where it can't be read
	of    verify.ArtifactDigest
	fault error // why it is no signature
}

// parse reads a bundle.
func (s *signed) parse(text []byte) {
	s.Bundle = new(bundle.Bundle)
	if err := s.UnmarshalJSON(text); err != nil {
		s.fault = fmt.Errorf("it isn't a Sigstore bundle: %w", err)
	} else if by, err := s.VerificationContent(); err != nil || by.Certificate() == nil {
		s.fault = cmp.Or(err, errors.New("it is signed with a key, and not with a certificate"))
	} else {
		s.by = by
	}
}

// checkKey is nil when the certificate's key signed the image. Whether it is to be trusted
// it doesn't say.
func (s *signed) checkKey() error {
	if s.fault != nil {
		return s.fault
	}
	signature, err := s.SignatureContent()
	if err != nil {
		return err
	}
	return verify.VerifySignatureWithArtifactDigests(signature, s.by, nil, []verify.ArtifactDigest{s.of})
}

// images reads the signatures of an image.
type images struct {
	with  []remote.Option
	at    name.Digest
	left  int // bytes that may be read
	found []signed
}

// readImage reads the signatures of an image, by the digest in its name or that its tag has
// now: bundles that refer to it (OCI distribution, referrers), and what cosign 2 put under a tag.
func readImage(ctx context.Context, image string) (*images, error) {
	reference, err := name.ParseReference(image)
	if err != nil {
		return nil, err
	}
	r := &images{left: maxBundles, with: []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}}
	is, err := remote.Head(reference, r.with...)
	if err != nil {
		return nil, err
	}
	r.at = reference.Context().Digest(is.Digest.String())
	index, err := remote.Referrers(r.at, r.with...)
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
	err = r.read(r.at.Tag(is.Digest.Algorithm + "-" + is.Digest.Hex + ".sig"))
	for i := 0; err == nil && i < len(manifest.Manifests); i++ {
		err = r.read(r.at.Digest(manifest.Manifests[i].Digest.String()))
	}
	return r, err
}

// read reads an artifact beside the image. Its layers say whether they are signatures:
// registries differ in the artifact type that they give. An index is none; what is listed,
// and isn't there any more, is a bad one.
func (r *images) read(at name.Reference) error {
	got, err := remote.Get(at, r.with...)
	if e, ok := errors.AsType[*transport.Error](err); ok && e.StatusCode == http.StatusNotFound {
		if _, listed := at.(name.Digest); listed {
			r.found = append(r.found, signed{fault: err})
		}
		return nil
	}
	if err != nil || got.MediaType.IsIndex() {
		return err
	}
	r.left -= len(got.Manifest) // of cosign 2 all but the text is in it
	artifact, err := got.Image()
	if err != nil {
		return err
	}
	manifest, err := artifact.Manifest()
	if err != nil {
		return err
	}
	for _, is := range manifest.Layers {
		simple := is.MediaType == simpleType
		if !simple && !strings.HasPrefix(string(is.MediaType), bundleType) || len(is.URLs) > 0 { // which aren't the registry's
			continue
		}
		layer, err := artifact.LayerByDigest(is.Digest)
		if err != nil {
			return err
		}
		stored, err := layer.Compressed() // as it is stored, which isn't compressed
		if err != nil {
			return err
		}
		text, err := io.ReadAll(io.LimitReader(stored, maxBundle+1))
		if err = cmp.Or(err, stored.Close()); err != nil {
			return fmt.Errorf("what is beside it, %s: %w", at, err)
		}
		if r.left -= len(text); len(text) > maxBundle || r.left < 0 || len(r.found) == maxReferrers {
			return fmt.Errorf("there are more than %d signatures, one has more than %d bytes, or all together more than %d", maxReferrers, maxBundle, maxBundles)
		}
		r.found = append(r.found, r.parse(text, is.Annotations, simple))
	}
	return nil
}

// parse reads one signature, of cosign 2 or 3.
func (r *images) parse(text []byte, notes map[string]string, simple bool) (s signed) {
	if simple {
		s.parseSimple(text, notes, r.at.DigestStr())
		return s
	}
	algorithm, sum, _ := strings.Cut(r.at.DigestStr(), ":")
	s.of.Algorithm = algorithm
	s.of.Digest, s.fault = hex.DecodeString(sum)
	s.parse(text)
	is := ""
	if envelope, err := s.Envelope(); s.fault == nil && err == nil {
		if statement, err := envelope.Statement(); err == nil {
			is = statement.GetPredicateType()
		}
	}
	if s.fault == nil && is != signPredicate {
		s.fault = fmt.Errorf("it is a statement of the type %q, and no signature", is)
	}
	return s
}
