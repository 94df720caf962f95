package conformance

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/timestamp-authority/v2/pkg/verification"

	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// TestOwnTimestamps has signatures of stock clients outlive their certificates by
// Mayfly's own timestamps, told by its documents alone.
func TestOwnTimestamps(t *testing.T) {
	m := startDev(t)
	for _, one := range []struct {
		name string
		test func(*testing.T, *mayfly)
	}{
		{"sigstore-go, a month later", testAMonthLater},
		{"cosign-v3", testCosignStamps},
		{"mayfly-request", testRequestSigns},
		{"sigstore-js", func(t *testing.T, m *mayfly) {
			testSigstoreJS(t, m, &timestampAuthority{documents: m.documents(t)})
		}},
		{"timestamp-authority", testStampVerifies},
	} {
		t.Run(one.name, func(t *testing.T) { one.test(t, m) })
	}
}

// stampedBundle is a bundle of sigstore-go over content, with a timestamp.
func stampedBundle(t *testing.T, m *mayfly, content []byte) *bundle.Bundle {
	t.Helper()
	keypair, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := sign.Bundle(&sign.PlainData{Data: content}, keypair, sign.BundleOptions{
		CertificateProvider:        sign.NewFulcio(&sign.FulcioOptions{BaseURL: m.HTTP, Timeout: 10 * time.Second}),
		CertificateProviderOptions: &sign.CertificateProviderOptions{IDToken: m.token(t)},
		TimestampAuthorities:       []*sign.TimestampAuthority{sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: m.HTTP + timestamp.Path})},
		Context:                    t.Context(),
	})
	if err != nil {
		t.Fatal(err)
	}
	entity, err := bundle.NewBundle(signed)
	if err != nil {
		t.Fatal(err)
	}
	return entity
}

// testAMonthLater signs with sigstore-go.
func testAMonthLater(t *testing.T, m *mayfly) {
	content := []byte("signed by " + t.Name())
	trust, err := root.NewTrustedRootFromPath(m.trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	verifiesLater(t, m, trust, stampedBundle(t, m, content), content)
}

// verifiesLater moves the verifier's clock to a month after the certificate has
// expired: with the timestamp the signature verifies, and by that clock it doesn't.
func verifiesLater(t *testing.T, m *mayfly, trust root.TrustedMaterial, entity *bundle.Bundle, content []byte) {
	t.Helper()
	identity, err := verify.NewShortCertificateIdentity(m.Issuer, "", aliceEmail, "")
	if err != nil {
		t.Fatal(err)
	}
	policy := verify.NewPolicy(verify.WithArtifact(bytes.NewReader(content)), verify.WithCertificateIdentity(identity))
	now := time.Now()
	synctest.Test(t, func(t *testing.T) {
		if err := wait.For(t.Context(), time.Until(now.AddDate(0, 1, 0))); err != nil { // in the bubble, where it takes no time
			t.Fatal(err)
		}
		for _, c := range []struct {
			when verify.VerifierOption
			want error
		}{{verify.WithSignedTimestamps(1), nil}, {verify.WithCurrentTime(), x509.CertificateInvalidError{}}} {
			verifier, err := verify.NewVerifier(trust, verify.WithSignedCertificateTimestamps(1), c.when)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = verifier.Verify(entity, policy); (err == nil) != (c.want == nil) {
				t.Errorf("at %v: %v", time.Now(), err)
			}
		}
	})
}

// testRequestSigns has clients that know 1.root.json alone verify what `mayfly request`
// has signed, one of them a month later.
func testRequestSigns(t *testing.T, m *mayfly) {
	file, token := artifact(t), filepath.Join(t.TempDir(), "token")
	write(t, token, []byte(m.token(t)))
	d := documents{trustedRoot: m.HTTP + "/tuf", signingConfig: m.download(t, t.TempDir(), "/tuf/1.root.json"), stamped: true, home: t.TempDir()}
	if err := cosignBegins(t, m, d); err != nil {
		t.Fatal(err)
	}
	other := artifact(t)
	write(t, other, []byte("other bytes"))
	for _, kind := range []string{"p256", "p384", "p521", "rsa2048"} {
		made := filepath.Join(d.home, kind+".json")
		command(t, nil, setting(t, "MAYFLY_BIN"), "request", "--ca", m.HTTP, "--token-file", token, "--trusted-root", m.trustedRoot,
			"--key-type", kind, "--sign", file, "--bundle", made)
		byCosign := append([]string{"verify-blob", "--bundle", made, "--insecure-ignore-tlog", "--use-signed-timestamps"}, m.signedAs(aliceEmail)...)
		command(t, at(m, d), cosign(t, cosign3), append(byCosign, file)...)
		if output, err := attempt(t, at(m, d), cosign(t, cosign3), append(byCosign, other)...); err == nil {
			t.Errorf("%s: accepted for another file: %s", kind, output)
		}
		if err := sigstoreJS.verify(t, m, d, aliceEmail, made, file); err != nil {
			t.Errorf("%s: sigstore-js: %v", kind, err)
		}
		trust, err := trustByTUF(caller(t), d)
		if err != nil {
			t.Fatal(err)
		}
		entity, err := bundle.LoadJSONFromPath(made)
		if err != nil {
			t.Fatal(err)
		}
		verifiesLater(t, m, trust, entity, readFile(t, file))
	}
}

// testCosignStamps has cosign sign with the documents alone, and verify by the
// timestamp alone.
func testCosignStamps(t *testing.T, m *mayfly) {
	file, made := artifact(t), filepath.Join(t.TempDir(), "bundle.json")
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, []byte(m.token(t)))
	command(t, nil, cosign(t, cosign3), "sign-blob", "--yes", "--signing-config", m.signingConfig, "--trusted-root", m.trustedRoot,
		"--identity-token", token, "--bundle", made, file)
	args := append([]string{"verify-blob", "--bundle", made, "--trusted-root", m.trustedRoot, "--insecure-ignore-tlog", "--use-signed-timestamps"}, m.signedAs(aliceEmail)...)
	command(t, nil, cosign(t, cosign3), append(args, file)...)
}

// testStampVerifies asks the verifier of sigstore's own authority, of every part.
func testStampVerifies(t *testing.T, m *mayfly) {
	var chain []*x509.Certificate
	for rest := get(t, m.HTTP+timestamp.ChainPath); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	signature := []byte("a signature")
	stamp, err := sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: m.HTTP + timestamp.Path}).GetTimestamp(t.Context(), signature)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := verification.VerifyTimestampResponse(stamp, bytes.NewReader(signature), verification.VerifyOpts{
		TSACertificate: chain[0], Roots: chain[1:], CommonName: chain[0].Subject.CommonName, OID: []int{1, 3, 6, 1, 4, 1, 57264, 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	if since := time.Since(verified.Time); since < 0 || since > time.Minute || verified.Accuracy != 2*time.Second {
		t.Errorf("stamped at %v, within %v", verified.Time, verified.Accuracy)
	}
	if _, err := verification.VerifyTimestampResponse(stamp, strings.NewReader("another"), verification.VerifyOpts{TSACertificate: chain[0], Roots: chain[1:]}); err == nil {
		t.Error(errors.New("it verifies for another signature"))
	}
}
