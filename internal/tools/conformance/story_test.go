package conformance

import (
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// story is what becomes of an image: people and machines sign it, it moves to
// another registry, and somebody verifies it there much later.
type story struct {
	*mayfly
	documents
	home, away string   // registries
	versions   []string // of the image at home: v1, v2, v3
	statements int      // signatures and attestations of v3
	copied     string   // v3, away
}

// TestStory tells it with cosign. Each step needs those before it, and a step that
// is added at the end finds an image that was signed, copied and signed again.
func TestStory(t *testing.T) {
	m := startDev(t)
	s := &story{
		mayfly: m, documents: m.documents(t),
		home: startRegistry(t, true), away: startRegistry(t, false),
	}
	for _, step := range []struct {
		name string
		tell func(s *story, t *testing.T)
	}{
		{"image-signed-after-browser-login", func(s *story, t *testing.T) { s.signNext(t, s.byBrowser) }},
		{"image-signed-after-device-login", func(s *story, t *testing.T) { s.signNext(t, s.byDevice) }},
		{"image-signed-with-token", func(s *story, t *testing.T) { s.signNext(t, s.byToken) }},
		{"image-attestations-by-type", (*story).attest},
		{"image-copied-with-referrers", (*story).copyAway},
		{"image-verified-a-month-later", (*story).verifyLater},
		{"image-signed-again-by-kms-key", (*story).signByKMS},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.tell(s, t) }) {
			t.FailNow()
		}
	}
}

// startRegistry runs an OCI registry, with the API that lists an image's referrers
// or without: clients then keep the list under a tag.
func startRegistry(t *testing.T, referrers bool) string {
	t.Helper()
	server := httptest.NewServer(registry.New(
		registry.WithReferrersSupport(referrers), registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// push makes an image of random bytes, and answers with its reference by digest.
func push(t *testing.T, registry, tag string) string {
	t.Helper()
	const size = 256
	image, err := random.Image(size, 1)
	if err != nil {
		t.Fatal(err)
	}
	reference, err := name.NewTag(registry + "/app:" + tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(reference, image, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return registry + "/app@" + digest.String()
}

// signNext pushes the next version, signs it as the caller says, and verifies it.
func (s *story) signNext(t *testing.T, sign func(t *testing.T, args []string)) {
	t.Helper()
	image := push(t, s.home, fmt.Sprintf("v%d", len(s.versions)+1))
	if output, err := s.verify(t, image, aliceEmail); err == nil {
		t.Errorf("accepted before it was signed: %s", output)
	}
	sign(t, append([]string{"sign", "--yes", image}, s.asTold()...))
	s.versions = append(s.versions, image)
	for _, signed := range s.versions {
		s.accepted(t, signed)
	}
	if output, err := s.verify(t, image, "mallory@example.com"); err == nil {
		t.Errorf("accepted for another name: %s", output)
	}
}

// asTold are the flags of what signs.
func (s *story) asTold() []string {
	return []string{"--signing-config", s.documents.signingConfig, "--trusted-root", s.documents.trustedRoot}
}

// verify looks for a signature of somebody's on an image.
func (s *story) verify(t *testing.T, image, by string) (string, error) {
	t.Helper()
	return attempt(t, nil, cosign(t, cosign3), append(append([]string{"verify", image}, s.signedAs(by)...), s.timestamped()...)...)
}

func (s *story) accepted(t *testing.T, image string) {
	t.Helper()
	if output, err := s.verify(t, image, aliceEmail); err != nil {
		t.Errorf("%s: %v\n%s", image, err, output)
	}
}

// timestamped are the flags of what verifies.
func (s *story) timestamped() []string {
	return []string{"--trusted-root", s.documents.trustedRoot, "--insecure-ignore-tlog", "--use-signed-timestamps"}
}

func (s *story) byToken(t *testing.T, args []string) {
	t.Helper()
	command(t, nil, cosign(t, cosign3), append(args, "--identity-token", s.token(t))...)
}

// byBrowser signs in with the authorization code flow and PKCE: cosign opens the
// page by the program xdg-open.
func (s *story) byBrowser(t *testing.T, args []string) {
	t.Helper()
	opens := browser(t)
	environment := []string{"PATH=" + filepath.Dir(opens) + ":" + os.Getenv("PATH")}
	command(t, environment, cosign(t, cosign3), append(args, "--fulcio-auth-flow", "normal")...)
}

// browser is a program xdg-open in which Alice signs in. It comes back at once, as a
// real one does: its caller serves the page that it ends at.
func browser(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	opens, said := filepath.Join(dir, "xdg-open"), filepath.Join(dir, "said")
	script := "#!/bin/sh\n" + strings.Join(signIn(t, `"$1"`), " ") + " >" + said + ` 2>&1 </dev/null &` + "\n"
	if err := os.WriteFile(opens, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if content, err := os.ReadFile(said); t.Failed() {
			t.Logf("the browser said %s (%v)", content, err)
		}
	})
	return opens
}

// signIn is the command with which Alice signs in at an address.
func signIn(t *testing.T, address string) []string {
	t.Helper()
	return []string{node(t), filepath.Join(setting(t, "CONFORMANCE_NODE"), "browser.mjs"), address, aliceEmail}
}

// deviceAddress is where cosign sends people with the code that it shows.
var deviceAddress = regexp.MustCompile(`http://[0-9.:]+/device\?user_code=[A-Z-]+`)

// byDevice signs in with the device flow: cosign shows a code, which Alice enters
// elsewhere.
func (s *story) byDevice(t *testing.T, args []string) {
	t.Helper()
	p := startIn(t, []string{"HOME=" + t.TempDir()}, cosign(t, cosign3), append(args, "--fulcio-auth-flow", "device")...)
	var address string
	p.until(t, "it shows a code", func() bool {
		address = deviceAddress.FindString(p.output.String())
		return address != ""
	})
	alice := signIn(t, address)
	if said := command(t, nil, alice[0], alice[1:]...); !strings.Contains(said, "You are signed in") {
		t.Errorf("the browser shows %s", said)
	}
	err := <-p.ended
	p.ended <- err // for the end of the test
	if err != nil {
		t.Fatalf("%v\n%s", err, p.output)
	}
}

// The least documents of their types.
const (
	sbom = `{"spdxVersion": "SPDX-2.3", "SPDXID": "SPDXRef-DOCUMENT", "name": "app", "dataLicense": "CC0-1.0",
	"documentNamespace": "https://example.com/app", "creationInfo": {"created": "2026-01-01T00:00:00Z", "creators": ["Tool: test"]},
	"packages": []}`
	provenance = `{"buildDefinition": {"buildType": "https://example.com/build", "externalParameters": {}},
	"runDetails": {"builder": {"id": "https://example.com/builder"}}}`
)

// attest attests what v3 is made of and how, and finds each by its type.
func (s *story) attest(t *testing.T) {
	image := s.versions[len(s.versions)-1]
	binary := cosign(t, cosign3)
	verify := func(kind string) (string, error) {
		args := append([]string{"verify-attestation", "--type", kind, image}, s.signedAs(aliceEmail)...)
		return attempt(t, nil, binary, append(args, s.timestamped()...)...)
	}
	for kind, predicate := range map[string]string{"spdxjson": sbom, "slsaprovenance1": provenance} {
		if output, err := verify(kind); err == nil {
			t.Errorf("%s: accepted before it was attested: %s", kind, output)
		}
		file := filepath.Join(t.TempDir(), kind)
		write(t, file, []byte(predicate))
		command(t, nil, binary, append([]string{
			"attest", "--yes", "--identity-token", s.token(t), "--type", kind, "--predicate", file, image,
		}, s.asTold()...)...)
		if output, err := verify(kind); err != nil {
			t.Errorf("%s: %v\n%s", kind, err, output)
		}
	}
	if output, err := verify("cyclonedx"); err == nil {
		t.Errorf("accepted as a type that it isn't: %s", output)
	}
	s.statements = 3 // a signature and two attestations
}

// copyAway copies v3 with all that refers to it.
func (s *story) copyAway(t *testing.T) {
	image := s.versions[len(s.versions)-1]
	s.copied = strings.Replace(image, s.home, s.away, 1)
	command(t, nil, tool(t, "oras-v1.3.6"), "cp", "--recursive", "--from-plain-http", "--to-plain-http",
		image, s.away+"/app:v3")
	s.accepted(t, s.copied)
	if got := len(s.bundles(t)); got != s.statements {
		t.Errorf("%d statements arrived, want %d", got, s.statements)
	}
}

// bundles are the statements on the copied image.
func (s *story) bundles(t *testing.T) (bundles []*bundle.Bundle) {
	t.Helper()
	image, err := name.NewDigest(s.copied)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(image, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, referrer := range manifest.Manifests {
		artifact, err := remote.Image(image.Context().Digest(referrer.Digest.String()), remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		layers, err := artifact.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers: %v", len(layers), err)
		}
		reader, err := layers[0].Compressed() // as it is stored
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		b := new(bundle.Bundle)
		if err := b.UnmarshalJSON(content); err != nil {
			t.Fatalf("%v: %s", err, content)
		}
		bundles = append(bundles, b)
	}
	return bundles
}

// verifyLater verifies the copy by a clock that is a month ahead: not the machine's,
// but that of a synctest bubble, in which sigstore-go looks at the time.
func (s *story) verifyLater(t *testing.T) {
	const month = 30 * 24 * time.Hour
	trust, err := root.NewTrustedRootFromPath(s.documents.trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := verify.NewShortCertificateIdentity(s.Issuer, "", aliceEmail, "")
	if err != nil {
		t.Fatal(err)
	}
	_, digest, _ := strings.Cut(s.copied, "@sha256:")
	raw, err := hex.DecodeString(digest)
	if err != nil {
		t.Fatal(err)
	}
	policy := verify.NewPolicy(verify.WithArtifactDigest("sha256", raw), verify.WithCertificateIdentity(identity))
	bundles, now := s.bundles(t), time.Now()
	for _, test := range []struct {
		name     string
		when     time.Time
		by       verify.VerifierOption
		accepted bool
	}{
		{"now, by the clock", now, verify.WithCurrentTime(), true},
		{"a month later, by the clock", now.Add(month), verify.WithCurrentTime(), false},
		{"a month later, by its time stamp", now.Add(month), verify.WithSignedTimestamps(1), true},
	} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Until(test.when)) //nolint:forbidigo // moves the bubble's clock, and takes no time
			verifier, err := verify.NewVerifier(trust, verify.WithSignedCertificateTimestamps(1), test.by)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range bundles {
				if _, err := verifier.Verify(b, policy); (err == nil) != test.accepted {
					t.Errorf("%s: accepted: %t: %v", test.name, err == nil, err)
				}
			}
		})
	}
}

// signByKMS signs the copy with a key in a KMS as well, by whoever runs the second
// registry.
func (s *story) signByKMS(t *testing.T) {
	const key = "awskms:///alias/story"
	environment, binary, public := startMoto(t), cosign(t, cosign3), filepath.Join(t.TempDir(), "key.pub")
	command(t, environment, binary, "generate-key-pair", "--kms", key)
	command(t, environment, binary, "public-key", "--key", key, "--outfile", public)
	verify := append([]string{"verify", "--key", public, s.copied}, s.timestamped()...)
	if output, err := attempt(t, nil, binary, verify...); err == nil {
		t.Errorf("accepted before it was signed by the key: %s", output)
	}
	command(t, environment, binary, append([]string{"sign", "--yes", "--key", key, s.copied}, s.asTold()...)...)
	command(t, nil, binary, verify...)
	s.accepted(t, s.copied)
	if got := len(s.bundles(t)); got != s.statements+1 {
		t.Errorf("%d statements on the copy, want %d", got, s.statements+1)
	}
}

// motoAddress is what aws_kms.py says when it listens.
var motoAddress = regexp.MustCompile(`http://127\.0\.0\.1:[0-9]+`)

// startMoto runs a stand-in for AWS KMS, and answers with the environment in which
// AWS's SDK calls it.
func startMoto(t *testing.T) []string {
	t.Helper()
	script, err := filepath.Abs("aws_kms.py")
	if err != nil {
		t.Fatal(err)
	}
	p := startIn(t, []string{"AWS_EC2_METADATA_DISABLED=true"}, filepath.Join(setting(t, "CONFORMANCE_MOTO"), "bin", "python"), script)
	var address string
	p.until(t, "it says its address", func() bool {
		address = motoAddress.FindString(p.output.String())
		return address != ""
	})
	none := filepath.Join(t.TempDir(), "none")
	return []string{
		"AWS_ENDPOINT_URL_KMS=" + address, "AWS_REGION=eu-central-1", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_CONFIG_FILE=" + none, "AWS_SHARED_CREDENTIALS_FILE=" + none,
	}
}
