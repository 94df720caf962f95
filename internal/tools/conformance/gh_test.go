package conformance

import (
	"path/filepath"
	"testing"
)

// testGH has GitHub's own program verify what a workflow attested: it knows a
// repository by the certificate's extensions.
func testGH(t *testing.T, dev *mayfly, _ *timestampAuthority) {
	binary, workflow := tool(t, "gh-v2.83.0"), vendors[0]
	m := startServe(t, issuerEntry(account{issuer: dev.Issuer, client: workflow.name}, `
    type: ci-provider
    preset: `+workflow.name+`
    allow: 'principal.san == "`+workflow.san+`"'`))
	d := m.documents(t)

	file, dir := artifact(t), t.TempDir()
	predicate, bundle := filepath.Join(dir, "predicate.json"), filepath.Join(dir, "bundle.json")
	write(t, predicate, []byte(provenance))
	token, _ := workflow.token(t, dev)
	command(t, nil, cosign(t, cosign3), "attest-blob", "--yes", "--signing-config", d.signingConfig, "--trusted-root", d.trustedRoot,
		"--identity-token", token, "--type", "slsaprovenance1", "--predicate", predicate, "--bundle", bundle, file)

	verify := func(owner, root, file string) (string, error) {
		return attempt(t, nil, binary, "attestation", "verify", file, "--bundle", bundle, "--custom-trusted-root", root,
			"--owner", owner, "--cert-oidc-issuer", dev.Issuer, "--predicate-type", "https://slsa.dev/provenance/v1")
	}
	if output, err := verify("octo-org", d.trustedRoot, file); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
	if output, err := verify("another", d.trustedRoot, file); err == nil {
		t.Errorf("accepted for another owner: %s", output)
	}
	other := filepath.Join(dir, "other.txt")
	write(t, other, []byte("other bytes\n"))
	if output, err := verify("octo-org", d.trustedRoot, other); err == nil {
		t.Errorf("accepted for another file: %s", output)
	}
	if output, err := verify("octo-org", dev.trustedRoot, file); err == nil {
		t.Errorf("accepted by the trusted root of another Mayfly: %s", output)
	}
}
