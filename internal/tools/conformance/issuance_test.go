package conformance

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// TestWholeIssuance has sigstore-go verify what each backend's issuing key led
// to: run.sh has cmd/mayfly's test of that name leave key, certificate and trusted
// root of each in MAYFLY_ISSUANCES.
func TestWholeIssuance(t *testing.T) {
	all, err := filepath.Glob(filepath.Join(setting(t, "MAYFLY_ISSUANCES"), "*", "cert.pem"))
	if err != nil || len(all) == 0 {
		t.Fatalf("nothing was issued: %v", err)
	}
	for i, file := range all {
		dir, other := filepath.Dir(file), filepath.Dir(all[(i+1)%len(all)])
		t.Run(filepath.Base(dir), func(t *testing.T) {
			if err := verifyIssuance(t, dir, filepath.Join(dir, "trusted_root.json")); err != nil {
				t.Error(err)
			}
			if err := verifyIssuance(t, dir, filepath.Join(other, "trusted_root.json")); err == nil {
				t.Error("accepted by the trusted root of another Mayfly")
			}
		})
	}
}

// verifyIssuance signs with the key and verifies by certificate and trusted root.
func verifyIssuance(t *testing.T, dir, trustedRoot string) error {
	t.Helper()
	block := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		first, _ := pem.Decode(text)
		if first == nil {
			t.Fatalf("%s isn't PEM", name)
		}
		return first.Bytes
	}
	key, err := x509.ParsePKCS8PrivateKey(block("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	content := []byte("signed by " + t.Name())
	digest := sha256.Sum256(content)
	signature, err := key.(*ecdsa.PrivateKey).Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	leaf := block("cert.pem")
	entity, err := bundle.NewBundle(&protobundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: leaf}},
		},
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: digest[:]},
			Signature:     signature,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	trust, err := root.NewTrustedRootFromPath(trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := verify.NewVerifier(trust, verify.WithSignedCertificateTimestamps(1), verify.WithCurrentTime())
	if err != nil {
		t.Fatal(err)
	}
	identity, err := verify.NewShortCertificateIdentity("", ".*", aliceEmail, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = verifier.Verify(entity, verify.NewPolicy(verify.WithArtifact(bytes.NewReader(content)), verify.WithCertificateIdentity(identity)))
	return err
}
