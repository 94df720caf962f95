package client

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
)

// hashNames are what bundles call hash functions.
var hashNames = map[crypto.Hash]commonpb.HashAlgorithm{
	crypto.SHA256: commonpb.HashAlgorithm_SHA2_256, crypto.SHA384: commonpb.HashAlgorithm_SHA2_384, crypto.SHA512: commonpb.HashAlgorithm_SHA2_512,
}

// SignFile signs a file of any size, by its digest.
func (k *Key) SignFile(path string) (*commonpb.MessageSignature, error) {
	hash := k.typ.hash()
	if hash == 0 { // Ed25519
		return nil, problem(Misused, "use another --key-type", "a key of type %s signs no file: it can't sign a digest", k.typ.name)
	}
	h := hash.New()
	f, err := os.Open(path) // #nosec G304 -- the user names the file
	if err == nil {
		defer f.Close()
		_, err = io.Copy(h, f)
	}
	if err != nil {
		return nil, problem(Failed, "", "reading what is to be signed").because(err)
	}
	digest := h.Sum(nil)
	signature, err := k.signer.Sign(rand.Reader, digest, hash)
	if err != nil {
		return nil, problem(Failed, "", "signing the file").because(err)
	}
	return &commonpb.MessageSignature{
		MessageDigest: &commonpb.HashOutput{Algorithm: hashNames[hash], Digest: digest}, Signature: signature,
	}, nil
}

// Stamp is a timestamp over a signature, from the newest authority that the trusted root
// has a URL of, and verified; nil where it has none. Only a digest goes there.
func (t *Trust) Stamp(ctx context.Context, hc *http.Client, retry Retry, signature []byte, leaf *x509.Certificate) (reply []byte, at time.Time, err error) {
	const what = "the timestamp authority"
	var a trustroot.Authority
	for _, listed := range t.timestamps { // in ascending order of start
		if listed.URL != "" && listed.Holds(leaf.NotBefore) {
			a = listed
		}
	}
	if a.URL == "" {
		return nil, at, nil
	}
	answer, err := exchange(ctx, hc, retry, message{what, a.URL, http.Header{"Content-Type": {"application/timestamp-query"}}, timestamp.Ask(signature)})
	if err == nil && answer.status/100 != 2 { // 201 of sigstore's
		err = answer.fault(what)
	}
	if err != nil {
		return nil, at, err
	}
	at, err = timestamp.Verify(answer.body, signature, a.Chain[0])
	if err == nil && (!a.Holds(at) || at.Before(leaf.NotBefore) || at.After(leaf.NotAfter)) {
		err = fmt.Errorf("it says %s, when certificate or authority don't count", at.Format(time.RFC3339))
	}
	if err != nil {
		return nil, at, problem(Unverified, "report it to the operator of "+a.URL, "no verifier would take the timestamp").because(err)
	}
	return answer.body, at, nil
}

// Bundle is a signature as a Sigstore bundle, with a timestamp unless that is nil.
func Bundle(s *commonpb.MessageSignature, leaf *x509.Certificate, stamp []byte) ([]byte, error) {
	var stamps []*commonpb.RFC3161SignedTimestamp
	if stamp != nil {
		stamps = append(stamps, &commonpb.RFC3161SignedTimestamp{SignedTimestamp: stamp})
	}
	return protojson.Marshal(&bundlepb.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &bundlepb.VerificationMaterial{
			Content:                   &bundlepb.VerificationMaterial_Certificate{Certificate: &commonpb.X509Certificate{RawBytes: leaf.Raw}},
			TimestampVerificationData: &bundlepb.TimestampVerificationData{Rfc3161Timestamps: stamps},
		},
		Content: &bundlepb.Bundle_MessageSignature{MessageSignature: s},
	})
}
