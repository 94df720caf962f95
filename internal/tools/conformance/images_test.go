package conformance

import (
	"path/filepath"
	"testing"
)

// TestImagesByTUF has cosign sign an image, say what it is made of and how, and verify
// all of it, with no URL and nothing about trust beside 1.root.json, which it was given once.
func TestImagesByTUF(t *testing.T) {
	m := startDev(t)
	d := documents{trustedRoot: m.HTTP + "/tuf", signingConfig: m.download(t, t.TempDir(), "/tuf/1.root.json"), home: t.TempDir()}
	if err := cosignBegins(t, m, d); err != nil {
		t.Fatal(err)
	}
	image := push(t, startRegistry(t, true), "v1")
	does := func(args ...string) (string, error) {
		t.Helper()
		return attempt(t, at(m, d), cosign(t, cosign3), args...)
	}
	verifies := func(name string, args ...string) (string, error) {
		t.Helper()
		return does(append(append(args, "--insecure-ignore-tlog", "--use-signed-timestamps"), m.signedAs(name)...)...)
	}
	spdx, slsa := filepath.Join(d.home, "spdx"), filepath.Join(d.home, "slsa")
	write(t, spdx, []byte(sbom))
	write(t, slsa, []byte(provenance))
	for _, c := range []struct {
		name            string
		makes, verifies []string
	}{ // in this order: cosign takes an attestation for a signature, too
		{"image-by-tuf", []string{"sign", image}, []string{"verify", image}},
		{"spdx-by-tuf", []string{"attest", "--type", "spdxjson", "--predicate", spdx, image}, []string{"verify-attestation", "--type", "spdxjson", image}},
		{"slsa-by-tuf", []string{"attest", "--type", "slsaprovenance1", "--predicate", slsa, image}, []string{"verify-attestation", "--type", "slsaprovenance1", image}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if output, err := verifies(aliceEmail, c.verifies...); err == nil {
				t.Errorf("accepted before it was made: %s", output)
			}
			if output, err := does(append(c.makes, "--yes", "--identity-token", m.token(t))...); err != nil {
				t.Fatalf("%v\n%s", err, output)
			}
			if output, err := verifies(aliceEmail, c.verifies...); err != nil {
				t.Errorf("%v\n%s", err, output)
			}
			if output, err := verifies("mallory@example.com", c.verifies...); err == nil {
				t.Errorf("accepted for another name: %s", output)
			}
		})
	}
}
