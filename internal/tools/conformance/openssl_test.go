package conformance

import (
	"encoding/json"
	"encoding/pem"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// testOpenSSL is a second opinion on the certificate that `mayfly request` got:
// the chain verifies to the root, and openssl reads in it what was asked for.
func testOpenSSL(t *testing.T, m *mayfly, _ *timestampAuthority) {
	dir := t.TempDir()
	token, key, certificate := filepath.Join(dir, "token"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	write(t, token, []byte(m.token(t)))
	command(t, nil, setting(t, "MAYFLY_BIN"), "request", "--ca", m.HTTP, "--token-file", token,
		"--trusted-root", m.trustedRoot, "--output-key", key, "--output-certificate", certificate)

	m.leaf = leafIndex(t, m, certificate)

	chain := m.chain(t)
	var intermediates, root []byte
	for i, issuer := range chain {
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Raw})
		if i == len(chain)-1 {
			root = block
		} else {
			intermediates = append(intermediates, block...)
		}
	}
	rootFile, intermediateFile := filepath.Join(dir, "root.pem"), filepath.Join(dir, "intermediates.pem")
	write(t, rootFile, root)
	write(t, intermediateFile, intermediates)

	said := command(t, nil, "openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore",
		"-CAfile", rootFile, "-untrusted", intermediateFile, certificate)
	if !strings.HasSuffix(said, ": OK") {
		t.Errorf("openssl verify said %s", said)
	}

	text := command(t, nil, "openssl", "x509", "-in", certificate, "-noout", "-text")
	for _, want := range []string{
		`Version: 3 `,
		`Subject: *\n`, // empty
		`X509v3 Subject Alternative Name: critical\s+email:alice@example\.com\n`,
		`X509v3 Key Usage: critical\s+Digital Signature\n`,
		`X509v3 Extended Key Usage:\s+Code Signing\n`,
		`X509v3 Subject Key Identifier:`,
		`X509v3 Authority Key Identifier:`,
		`1\.3\.6\.1\.4\.1\.57264\.1\.1:\s+` + regexp.QuoteMeta(m.Issuer) + `\n`,
		`1\.3\.6\.1\.4\.1\.57264\.1\.8:\s+.*` + regexp.QuoteMeta(m.Issuer) + `\n`,
		`1\.3\.6\.1\.4\.1\.57264\.1\.24:\s+.*alice\n`,
		`CT Precertificate SCTs:\s+Signed Certificate Timestamp:\s+Version\s+: v1 \(0x0\)`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("openssl does not show %s in:\n%s", want, text)
		}
	}
	for _, unwanted := range []string{"CT Precertificate Poison", "CRL Distribution", "Authority Information Access", "Basic Constraints"} {
		if strings.Contains(text, unwanted) {
			t.Errorf("openssl shows %s in:\n%s", unwanted, text)
		}
	}

	// The key that was written is the certificate's.
	ofKey := command(t, nil, "openssl", "pkey", "-in", key, "-pubout")
	if ofCertificate := command(t, nil, "openssl", "x509", "-in", certificate, "-noout", "-pubkey"); ofKey != ofCertificate {
		t.Errorf("key and certificate differ:\n%s\n%s", ofKey, ofCertificate)
	}
}

// leafIndex reads where in the log a certificate stands from its SCT.
func leafIndex(t *testing.T, m *mayfly, certificate string) uint64 {
	t.Helper()
	said := command(t, nil, setting(t, "MAYFLY_BIN"), "cert", "show", "--json", "--trusted-root", m.trustedRoot, certificate)
	var shown struct {
		SCTs []struct {
			LeafIndex uint64 `json:"index"`
			Verified  bool   `json:"verified"`
		} `json:"scts"`
	}
	if err := json.Unmarshal([]byte(said), &shown); err != nil || len(shown.SCTs) != 1 || !shown.SCTs[0].Verified {
		t.Fatalf("want one verified SCT: %v\n%s", err, said)
	}
	return shown.SCTs[0].LeafIndex
}
