package conformance

import "testing"

// TestClients lets every foreign program work with one Mayfly, and ends with
// the readers of its log, which then holds what the clients did.
func TestClients(t *testing.T) {
	m := startDev(t)
	tsa := startTimestampAuthority(t, m)
	for _, client := range []struct {
		name string
		test func(t *testing.T, m *mayfly, tsa *timestampAuthority)
	}{
		{"cosign-v3", testCosign3},
		{"cosign-v3-keys", testCosign3Keys},
		{"cosign-v3-timestamp", testCosign3Timestamp},
		{"cosign-v2", testCosign2},
		{"cosign-v2-bundle", testCosign2Bundle},
		{"sigstore-go", testSigstoreGo},
		{"sigstore-js", testSigstoreJS},
		{"oidc-provider", testOIDCProvider},
		{"oidc-provider-rotation", testRotation},
		{"zitadel-oidc", testZitadel},
		{"ci-presets", testPresets},
		{"gh", testGH},
		{"openssl", testOpenSSL},
		{"ct-go", testCTClient},
		{"tessera-fsck", testFsck},
		{"precertificate-signer", testPresigned},
	} {
		t.Run(client.name, func(t *testing.T) { client.test(t, m, tsa) })
	}
}
