package conformance

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func cosign(t *testing.T, version string) string {
	t.Helper()
	return filepath.Join(setting(t, "CONFORMANCE_BIN"), "cosign-"+version)
}

const (
	cosign3 = "v3.1.3"
	cosign2 = "v2.6.5"
)

// signedAs are the flags that pin who signed.
func (m *mayfly) signedAs(email string) []string {
	return []string{"--certificate-identity", email, "--certificate-oidc-issuer", m.Issuer}
}

// testCosign3 signs and verifies with nothing but the two documents, and checks
// that what must be refused is.
func testCosign3(t *testing.T, m *mayfly, _ *timestampAuthority) {
	binary, file := cosign(t, cosign3), artifact(t)
	bundle := filepath.Join(t.TempDir(), "bundle.json")
	command(t, nil, binary, "sign-blob", "--yes",
		"--signing-config", m.signingConfig, "--trusted-root", m.trustedRoot,
		"--identity-token", m.token(t), "--bundle", bundle, file)

	verify := []string{"verify-blob", "--bundle", bundle, "--trusted-root", m.trustedRoot, "--insecure-ignore-tlog"}
	verify = append(verify, m.signedAs(aliceEmail)...)
	command(t, nil, binary, append(verify, file)...)

	t.Run("refuses another file", func(t *testing.T) {
		if output, err := attempt(t, nil, binary, append(verify, artifact(t))...); err == nil {
			t.Errorf("accepted: %s", output)
		}
	})
	t.Run("refuses another identity", func(t *testing.T) {
		other := []string{"verify-blob", "--bundle", bundle, "--trusted-root", m.trustedRoot, "--insecure-ignore-tlog"}
		other = append(other, m.signedAs("mallory@example.com")...)
		if output, err := attempt(t, nil, binary, append(other, file)...); err == nil {
			t.Errorf("accepted: %s", output)
		}
	})
	t.Run("refuses a root without the log", func(t *testing.T) {
		verify[4] = amend(t, m.trustedRoot, func(document map[string]any) { delete(document, "ctlogs") })
		if output, err := attempt(t, nil, binary, append(verify, file)...); err == nil {
			t.Errorf("accepted: %s", output)
		}
	})
}

// testCosign3Keys has cosign make each kind of client key that it can.
func testCosign3Keys(t *testing.T, m *mayfly, _ *timestampAuthority) {
	for _, algorithm := range []string{
		"ecdsa-sha2-256-nistp256", "ecdsa-sha2-384-nistp384", "ecdsa-sha2-512-nistp521",
		"rsa-sign-pkcs1-2048-sha256", "rsa-sign-pkcs1-3072-sha256", "rsa-sign-pkcs1-4096-sha256",
	} {
		t.Run(algorithm, func(t *testing.T) {
			binary, file := cosign(t, cosign3), artifact(t)
			bundle := filepath.Join(t.TempDir(), "bundle.json")
			command(t, nil, binary, "sign-blob", "--yes", "--signing-algorithm", algorithm,
				"--signing-config", m.signingConfig, "--trusted-root", m.trustedRoot,
				"--identity-token", m.token(t), "--bundle", bundle, file)
			verify := []string{"verify-blob", "--bundle", bundle, "--trusted-root", m.trustedRoot, "--insecure-ignore-tlog"}
			command(t, nil, binary, append(append(verify, m.signedAs(aliceEmail)...), file)...)
		})
	}
}

// testCosign3Timestamp signs with a time stamp, which lets the signature
// outlive the certificate, and demands it when verifying.
func testCosign3Timestamp(t *testing.T, m *mayfly, tsa *timestampAuthority) {
	binary, file := cosign(t, cosign3), artifact(t)
	bundle := filepath.Join(t.TempDir(), "bundle.json")
	command(t, nil, binary, "sign-blob", "--yes",
		"--signing-config", tsa.signingConfig, "--trusted-root", tsa.trustedRoot,
		"--identity-token", m.token(t), "--bundle", bundle, file)
	verify := []string{
		"verify-blob", "--bundle", bundle, "--trusted-root", tsa.trustedRoot,
		"--insecure-ignore-tlog", "--use-signed-timestamps",
	}
	command(t, nil, binary, append(append(verify, m.signedAs(aliceEmail)...), file)...)
}

// testCosign2 speaks the v1 API and takes chain and log key as files.
func testCosign2(t *testing.T, m *mayfly, _ *timestampAuthority) {
	binary, file, dir := cosign(t, cosign2), artifact(t), t.TempDir()
	chain, logKey := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "ctlog.pub")
	write(t, chain, get(t, m.HTTP+"/api/v1/rootCert"))
	write(t, logKey, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: m.logKey(t)}))
	environment := []string{"SIGSTORE_ROOT_FILE=" + chain, "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE=" + logKey}

	signature, certificate := filepath.Join(dir, "signature"), filepath.Join(dir, "certificate")
	command(t, environment, binary, "sign-blob", "--yes", "--fulcio-url", m.HTTP, "--tlog-upload=false",
		"--identity-token", m.token(t), "--output-signature", signature, "--output-certificate", certificate, file)
	verify := []string{"verify-blob", "--signature", signature, "--certificate", certificate, "--insecure-ignore-tlog"}
	command(t, environment, binary, append(append(verify, m.signedAs(aliceEmail)...), file)...)
}

// testCosign2Bundle is cosign v2 with the newer bundle and a trusted root.
func testCosign2Bundle(t *testing.T, m *mayfly, _ *timestampAuthority) {
	binary, file := cosign(t, cosign2), artifact(t)
	bundle := filepath.Join(t.TempDir(), "bundle.json")
	command(t, nil, binary, "sign-blob", "--yes", "--fulcio-url", m.HTTP, "--tlog-upload=false",
		"--trusted-root", m.trustedRoot, "--new-bundle-format",
		"--identity-token", m.token(t), "--bundle", bundle, file)
	verify := []string{
		"verify-blob", "--bundle", bundle, "--new-bundle-format", "--trusted-root", m.trustedRoot, "--insecure-ignore-tlog",
	}
	command(t, nil, binary, append(append(verify, m.signedAs(aliceEmail)...), file)...)
}

// trusted is what the tests read of trusted_root.json.
type trusted struct {
	CTLogs []struct {
		BaseURL   string `json:"baseUrl"`
		PublicKey struct {
			RawBytes []byte `json:"rawBytes"`
		} `json:"publicKey"`
	} `json:"ctlogs"`
	CertificateAuthorities []struct {
		CertChain struct {
			Certificates []struct {
				RawBytes []byte `json:"rawBytes"`
			} `json:"certificates"`
		} `json:"certChain"`
	} `json:"certificateAuthorities"`
}

func (m *mayfly) trust(t *testing.T) trusted {
	t.Helper()
	content, err := os.ReadFile(m.trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	var document trusted
	if err := json.Unmarshal(content, &document); err != nil {
		t.Fatal(err)
	}
	if len(document.CTLogs) != 1 || len(document.CertificateAuthorities) != 1 {
		t.Fatalf("want one log and one authority: %s", content)
	}
	return document
}

// logKey is the log's SubjectPublicKeyInfo, DER.
func (m *mayfly) logKey(t *testing.T) []byte {
	t.Helper()
	return m.trust(t).CTLogs[0].PublicKey.RawBytes
}

// chain is the authority's chain, from the issuing certificate to the root.
func (m *mayfly) chain(t *testing.T) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, certificate := range m.trust(t).CertificateAuthorities[0].CertChain.Certificates {
		parsed, err := x509.ParseCertificate(certificate.RawBytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, parsed)
	}
	if len(chain) < 2 || !strings.EqualFold(chain[0].Issuer.String(), chain[1].Subject.String()) {
		t.Fatalf("not a chain to a root: %d certificates", len(chain))
	}
	return chain
}
