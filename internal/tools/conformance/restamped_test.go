package conformance

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/ca/timestamp"
)

// TestOwnTimestampsFollow has Mayfly's timestamp authority followed by another, as
// docs/timestamps.md says it. Clients that know 1.root.json alone sign and verify before
// and after, what was stamped before too; meanwhile somebody signs without a pause, and
// each signature is good at once.
func TestOwnTimestampsFollow(t *testing.T) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer(), withTLS)
	m.Issuer, m.environment = issuer.Issuer, trustingTLS(t)
	m.trusts(t, nil, startRekorTiles(t))
	people := newSigners(t, 1)
	m.publish(t, people.private, append([]string{"init", "--threshold", "1"}, people.named()...)...)
	told := documents{trustedRoot: m.HTTP + "/tuf", signingConfig: m.download(t, t.TempDir(), "/tuf/1.root.json"), logged: true, stamped: true}
	all := make(map[string]*following)
	for name, client := range followers {
		if name == "cosign-v2-tuf" { // takes no timestamps
			continue
		}
		all[name] = &following{follower: client, documents: told.at(t)}
		t.Run(name, func(t *testing.T) { all[name].goesOn(t, m) })
	}
	load := m.stampAndVerify(t, told.at(t))
	m.restamp(t, people)
	for name, client := range all {
		t.Run(name+"-restamped", func(t *testing.T) { client.goesOn(t, m) })
	}
	t.Run("timestamps-under-load", load)
}

// restamp has another timestamp authority told, and then stamp.
func (m *mayfly) restamp(t *testing.T, people signers) {
	t.Helper()
	dir := t.TempDir()
	chain, key := filepath.Join(dir, "stamps.pem"), "file:"+filepath.Join(dir, "stamps.key.pem")
	command(t, nil, setting(t, "MAYFLY_BIN"), "ca", "intermediate", "--purpose", "timestamp", "--issuer", filepath.Join(m.dir, "authority", "root.pem"),
		"--issuer-key", "file:"+filepath.Join(m.dir, "authority", "root.key.pem"), "--key", key, "--generate", "ECDSA-P384",
		"--name", "Conformance next stamps", "--out", chain)
	path := filepath.Join(m.dir, "mayfly.yaml")
	config := string(readFile(t, path))
	beside := func(config string, entry string) []byte {
		return []byte(strings.Replace(config, "\ntrust:\n", "\ntrust:\n  timestamp_authorities:\n    - "+entry+"\n", 1))
	}
	listed := func() int { return strings.Count(string(get(t, m.HTTP+"/trusted_root.json")), "stamps") }
	before := listed()
	write(t, path, beside(config, "{chain: "+chain+"}"))
	m.process.until(t, "the next authority is listed", func() bool { return listed() > before })
	m.publish(t, people.private, "stage")

	const old, oldKey = "authority/timestamp.pem", "file:authority/timestamp.key.pem"
	if strings.Count(config, old) != 1 || strings.Count(config, oldKey) != 1 {
		t.Fatalf("the configuration has another form:\n%s", config)
	}
	end := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	write(t, path, beside(strings.NewReplacer(old, chain, oldKey, key).Replace(config), "{chain: "+old+", end: '"+end+"'}"))
	pem := readFile(t, chain)
	m.process.until(t, "the next authority stamps", func() bool { return bytes.HasPrefix(get(t, m.HTTP+timestamp.ChainPath), pem[:len(pem)/3]) })
	m.publish(t, people.private, "stage")
}

// stampAndVerify signs one thing after the other, stamped by Mayfly, and verifies each by
// the trust root that TUF has then, until the test that it answers with runs.
func (m *mayfly) stampAndVerify(t *testing.T, d documents) func(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	token, client := m.token(t), caller(t)
	identity, err := verify.NewShortCertificateIdentity(m.Issuer, "", aliceEmail, "")
	if err != nil {
		t.Fatal(err)
	}
	stamps := make(map[string]int)
	once := func() error {
		content := []byte("signed without a pause")
		keypair, err := sign.NewEphemeralKeypair(nil)
		if err != nil {
			return err
		}
		signed, err := sign.Bundle(&sign.PlainData{Data: content}, keypair, sign.BundleOptions{
			CertificateProvider:        sign.NewFulcio(&sign.FulcioOptions{BaseURL: m.HTTP, Timeout: startWithin, Transport: client.Transport}),
			CertificateProviderOptions: &sign.CertificateProviderOptions{IDToken: token},
			TimestampAuthorities: []*sign.TimestampAuthority{sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{
				URL: m.HTTP + timestamp.Path, Timeout: startWithin, Transport: client.Transport,
			})},
			Context: ctx,
		})
		if err != nil {
			return err
		}
		entity, err := bundle.NewBundle(signed)
		if err != nil {
			return err
		}
		trust, err := trustByTUF(client, d)
		if err != nil {
			return err
		}
		verifier, err := verify.NewVerifier(trust, verify.WithSignedCertificateTimestamps(1), verify.WithSignedTimestamps(1))
		if err != nil {
			return err
		}
		if _, err = verifier.Verify(entity, verify.NewPolicy(verify.WithArtifact(bytes.NewReader(content)), verify.WithCertificateIdentity(identity))); err != nil {
			return err
		}
		stamp := signed.GetVerificationMaterial().GetTimestampVerificationData().GetRfc3161Timestamps()[0].GetSignedTimestamp()
		stamps[map[bool]string{true: "next", false: "first"}[bytes.Contains(stamp, []byte("Conformance next stamps"))]]++
		return nil
	}
	group := new(errgroup.Group)
	group.Go(func() error {
		for n := 0; ctx.Err() == nil; n++ {
			if err := once(); err != nil && ctx.Err() == nil {
				return fmt.Errorf("signature %d: %w", n, err)
			}
			select { // a machine has other things to do
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		return nil
	})
	return func(t *testing.T) {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
		if stamps["first"] == 0 || stamps["next"] == 0 {
			t.Errorf("stamped by %v, want both", stamps)
		}
		t.Logf("signatures that were good at once, by who stamped them: %v", stamps)
	}
}

// unstamped is a bundle without its timestamps, or with those of another.
func unstamped(t *testing.T, path string, from ...string) string {
	t.Helper()
	stamps := any(map[string]any{"rfc3161Timestamps": []any{}})
	for _, other := range from {
		amend(t, other, func(document map[string]any) {
			stamps = document["verificationMaterial"].(map[string]any)["timestampVerificationData"]
		})
	}
	return amend(t, path, func(document map[string]any) {
		document["verificationMaterial"].(map[string]any)["timestampVerificationData"] = stamps
	})
}

// testPythonStamps shows that it is our timestamp by which sigstore-python verifies: a
// Rekor v2 says no time.
func testPythonStamps(t *testing.T, m *mayfly, d documents) {
	file, dir := artifact(t), t.TempDir()
	one, other := filepath.Join(dir, "one.json"), filepath.Join(dir, "other.json")
	for _, made := range []string{one, other} {
		if err := sigstorePython.sign(t, m, d, made, file); err != nil {
			t.Fatal(err)
		}
	}
	if err := sigstorePython.verify(t, m, d, aliceEmail, one, file); err != nil {
		t.Error(err)
	}
	if err := sigstorePython.verify(t, m, d, aliceEmail, unstamped(t, one), file); err == nil {
		t.Error("accepted without a timestamp")
	}
	if err := sigstorePython.verify(t, m, d, aliceEmail, unstamped(t, one, other), file); err == nil {
		t.Error("accepted with the timestamp of another signature")
	}
	d.trustConfig = amend(t, d.trustConfig, func(document map[string]any) {
		document["trustedRoot"].(map[string]any)["timestampAuthorities"] = []any{}
	})
	if err := sigstorePython.verify(t, m, d, aliceEmail, one, file); err == nil {
		t.Error("accepted by a trusted root without the timestamp authority")
	}
}
