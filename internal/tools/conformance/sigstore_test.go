package conformance

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// testSigstoreGo signs as the Go library does, verifies within the
// certificate's life, and with a time stamp.
func testSigstoreGo(t *testing.T, m *mayfly, tsa *timestampAuthority) {
	for _, test := range []struct {
		name        string
		trustedRoot string
		stamps      []*sign.TimestampAuthority
		when        verify.VerifierOption
	}{
		{"now", m.trustedRoot, nil, verify.WithCurrentTime()},
		{
			"timestamp", tsa.trustedRoot,
			[]*sign.TimestampAuthority{sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: tsa.url})},
			verify.WithSignedTimestamps(1),
		},
	} {
		t.Run(test.name, func(t *testing.T) { signAndVerify(t, m, test.trustedRoot, test.stamps, test.when) })
	}
}

// signAndVerify signs some bytes with sigstore-go, and verifies that they are
// Alice's and nobody else's.
func signAndVerify(t *testing.T, m *mayfly, trustedRoot string, stamps []*sign.TimestampAuthority, when verify.VerifierOption) {
	t.Helper()
	trust, err := root.NewTrustedRootFromPath(trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	keypair, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		t.Fatal(err)
	}
	content := []byte("signed by " + t.Name())
	signed, err := sign.Bundle(&sign.PlainData{Data: content}, keypair, sign.BundleOptions{
		CertificateProvider:        sign.NewFulcio(&sign.FulcioOptions{BaseURL: m.HTTP, Timeout: 10 * time.Second}),
		CertificateProviderOptions: &sign.CertificateProviderOptions{IDToken: m.token(t)},
		TimestampAuthorities:       stamps,
		Context:                    t.Context(),
	})
	if err != nil {
		t.Fatal(err)
	}
	entity, err := bundle.NewBundle(signed)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := verify.NewVerifier(trust, verify.WithSignedCertificateTimestamps(1), when)
	if err != nil {
		t.Fatal(err)
	}
	by := func(email string) verify.PolicyOption {
		identity, err := verify.NewShortCertificateIdentity(m.Issuer, "", email, "")
		if err != nil {
			t.Fatal(err)
		}
		return verify.WithCertificateIdentity(identity)
	}
	result, err := verifier.Verify(entity, verify.NewPolicy(verify.WithArtifact(bytes.NewReader(content)), by(aliceEmail)))
	if err != nil {
		t.Fatal(err)
	}
	if got := result.Signature.Certificate; got.SubjectAlternativeName != aliceEmail || got.Issuer != m.Issuer {
		t.Errorf("signed by %q of %q", got.SubjectAlternativeName, got.Issuer)
	}
	if _, err := verifier.Verify(entity, verify.NewPolicy(verify.WithArtifact(bytes.NewReader(content)), by("mallory@example.com"))); err == nil {
		t.Error("accepted for another identity")
	}
	if _, err := verifier.Verify(entity, verify.NewPolicy(verify.WithArtifact(strings.NewReader("other")), by(aliceEmail))); err == nil {
		t.Error("accepted for other bytes")
	}
}

// testSigstoreJS lets sigstore-js sign, attest and verify, which asks for a time stamp.
func testSigstoreJS(t *testing.T, m *mayfly, tsa *timestampAuthority) {
	sigstoreJS.signsAndVerifies(t, m, tsa.documents)
	attests := sigstoreJS
	attests.sign = libraryDoes("attest", nodeSigstore)
	file, bundle := artifact(t), filepath.Join(t.TempDir(), "bundle.json")
	if err := attests.sign(t, m, tsa.documents, bundle, file); err != nil {
		t.Fatal(err)
	}
	if err := attests.verify(t, m, tsa.documents, aliceEmail, bundle, file); err != nil {
		t.Error(err)
	}
	if attests.verify(t, m, tsa.documents, "mallory@example.com", bundle, file) == nil {
		t.Error("the attestation is accepted for another name")
	}
}

// sigstoreJS is a program of ours around the library.
var sigstoreJS = library(nodeSigstore)

func nodeSigstore(t *testing.T) []string {
	t.Helper()
	return []string{node(t), filepath.Join(setting(t, "CONFORMANCE_NODE"), "sigstore.mjs")}
}

// node is the one that npm installed: Debian's is older than sigstore-js asks for.
func node(t *testing.T) string {
	t.Helper()
	return filepath.Join(setting(t, "CONFORMANCE_NODE"), "node_modules", ".bin", "node")
}
