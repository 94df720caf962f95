package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"

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
)

// parseSimple makes a bundle of what cosign 2 signed, which has to be the image with a digest.
// Intermediate certificates are the trusted root's: it has all that count.
func (s *signed) parseSimple(text []byte, notes map[string]string, digest string) {
	var says struct {
		Critical struct {
			Type  string
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			}
		}
	}
	var stamp struct{ SignedRFC3161Timestamp []byte }
	var rekor struct { // an entry, and the promise to show it
		SignedEntryTimestamp []byte
		Payload              struct {
			Body                     []byte
			IntegratedTime, LogIndex int64
			LogID                    string
		}
	}
	var entry struct{ Kind, APIVersion string }
	read := func(what, text string, into any) {
		if err := json.Unmarshal([]byte(text), into); err != nil && s.fault == nil {
			s.fault = fmt.Errorf("%s: %w", what, err)
		}
	}
	type object = map[string]any // of a bundle
	sum, material := sha256.Sum256(text), object{"publicKey": object{}}
	if block, _ := pem.Decode([]byte(notes[certificateIn])); block != nil {
		material = object{"x509CertificateChain": object{"certificates": []object{{"rawBytes": block.Bytes}}}}
	}
	if note := notes[timestampIn]; note != "" {
		read(timestampIn, note, &stamp)
		material["timestampVerificationData"] = object{"rfc3161Timestamps": []object{{"signedTimestamp": stamp.SignedRFC3161Timestamp}}}
	}
	if note := notes[rekorIn]; note != "" {
		read(rekorIn, note, &rekor)
		read(rekorIn, string(rekor.Payload.Body), &entry)
		id, _ := hex.DecodeString(rekor.Payload.LogID) // another one is no log's
		material["tlogEntries"] = []object{{
			"logIndex": rekor.Payload.LogIndex, "logId": object{"keyId": id}, "integratedTime": rekor.Payload.IntegratedTime,
			"kindVersion":      object{"kind": entry.Kind, "version": entry.APIVersion},
			"inclusionPromise": object{"signedEntryTimestamp": rekor.SignedEntryTimestamp}, "canonicalizedBody": rekor.Payload.Body,
		}}
	}
	b, err := json.Marshal(object{
		"mediaType":            "application/vnd.dev.sigstore.bundle+json;version=0.1", // the one with a promise alone
		"verificationMaterial": material,
		"messageSignature":     object{"messageDigest": object{"algorithm": "SHA2_256", "digest": sum[:]}, "signature": notes[signatureIn]},
	})
	read("the payload", string(text), &says)
	fault := cmp.Or(s.fault, err)
	if is := says.Critical; fault == nil && (is.Type != simpleKind || is.Image.Digest != digest) {
		fault = fmt.Errorf("it signs a %q of %q, and no image of %s", is.Type, is.Image.Digest, digest)
	}
	s.of = verify.ArtifactDigest{Algorithm: "sha256", Digest: sum[:]}
	s.parse(b)
	s.fault = cmp.Or(fault, s.fault)
}
