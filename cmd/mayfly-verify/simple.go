package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// What cosign 2 signs an image with: a text that names it, in a layer of this media type,
// whose annotations have signature, certificate and when it was made.
const (
	simpleType    = "application/vnd.dev.cosign.simplesigning.v1+json"
	simpleKind    = "cosign container image signature"
	signatureIn   = "dev.cosignproject.cosign/signature"
	certificateIn = "dev.sigstore.cosign/certificate"
	rekorIn       = "dev.sigstore.cosign/bundle"
	timestampIn   = "dev.sigstore.cosign/rfc3161timestamp"
	simpleBundle  = "application/vnd.dev.sigstore.bundle+json;version=0.1" // the one that takes a Rekor's promise alone
)

// parseSimple reads what cosign 2 made of an image with a digest.
func (s *signed) parseSimple(text []byte, notes map[string]string, digest string) {
	sum := sha256.Sum256(text)
	s.of = verify.ArtifactDigest{Algorithm: "sha256", Digest: sum[:]}
	if s.Bundle, s.fault = simpleAsBundle(sum[:], notes); s.fault != nil {
		return
	}
	var says struct {
		Critical struct {
			Type  string `json:"type"`
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
		} `json:"critical"`
	}
	if s.fault = json.Unmarshal(text, &says); s.fault != nil {
		return
	}
	if is := says.Critical; is.Type != simpleKind || is.Image.Digest != digest {
		s.fault = fmt.Errorf("it signs a %q of %q, and no image of %s", is.Type, is.Image.Digest, digest)
	}
}

// simpleAsBundle makes a bundle of the annotations: a certificate that signed a digest.
func simpleAsBundle(sum []byte, notes map[string]string) (*bundle.Bundle, error) {
	signature, err := base64.StdEncoding.DecodeString(notes[signatureIn])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", signatureIn, err)
	}
	certificate, _ := pem.Decode([]byte(notes[certificateIn]))
	if certificate == nil {
		return nil, errors.New("it is signed with a key, and not with a certificate")
	}
	// Intermediate certificates are the trusted root's: it has all that count.
	material := &protobundle.VerificationMaterial{Content: &protobundle.VerificationMaterial_X509CertificateChain{
		X509CertificateChain: &protocommon.X509CertificateChain{Certificates: []*protocommon.X509Certificate{{RawBytes: certificate.Bytes}}},
	}}
	if note := notes[timestampIn]; note != "" {
		var stamp struct{ SignedRFC3161Timestamp []byte }
		if err := json.Unmarshal([]byte(note), &stamp); err != nil {
			return nil, fmt.Errorf("%s: %w", timestampIn, err)
		}
		material.TimestampVerificationData = &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: stamp.SignedRFC3161Timestamp}},
		}
	}
	if note := notes[rekorIn]; note != "" {
		entry, err := rekorEntry([]byte(note))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", rekorIn, err)
		}
		material.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	return bundle.NewBundle(&protobundle.Bundle{MediaType: simpleBundle, VerificationMaterial: material, Content: &protobundle.Bundle_MessageSignature{
		MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum},
			Signature:     signature,
		},
	}})
}

// rekorEntry reads what a Rekor answered: an entry, and the promise to show it.
func rekorEntry(note []byte) (*protorekor.TransparencyLogEntry, error) {
	var is struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	var kind struct {
		Kind    string `json:"kind"`
		Version string `json:"apiVersion"`
	}
	err := json.Unmarshal(note, &is)
	if err == nil {
		err = json.Unmarshal(is.Payload.Body, &kind)
	}
	if err != nil {
		return nil, err
	}
	id, err := hex.DecodeString(is.Payload.LogID)
	return &protorekor.TransparencyLogEntry{
		LogIndex: is.Payload.LogIndex, LogId: &protocommon.LogId{KeyId: id},
		KindVersion:      &protorekor.KindVersion{Kind: kind.Kind, Version: kind.Version},
		IntegratedTime:   is.Payload.IntegratedTime,
		InclusionPromise: &protorekor.InclusionPromise{SignedEntryTimestamp: is.SignedEntryTimestamp},

		CanonicalizedBody: is.Payload.Body,
	}, err
}
