package conformance

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/mayfly-ca/mayfly/ca/revocation"
	"github.com/mayfly-ca/mayfly/ca/revocation/guard"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

// verified is what mayfly-verify prints of a signature.
type verified struct {
	Good       bool
	Signatures []struct {
		Result, Words, SAN, Serial, Authority string
		Timestamps                            []time.Time
	}
}

// revocationStory is three versions of an image, of which the second is to be invalid.
type revocationStory struct {
	*story
	stranger *mayfly  // another CA
	copies   []string // of the versions, in a registry without the API of referrers
	files    []string // and of a file with a bundle beside it
	signed   []time.Time
	serial   string // of the second's certificate
	folder   string // home, and of the files
	people   signers
}

// TestRevoked has stock cosign sign images and files, and then the second of three
// refused: by lists, which mayfly-verify and the Go package ask, and by an excision from
// the trust root, which stock cosign heeds.
func TestRevoked(t *testing.T) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer(), func(_ *testing.T, _, config string) string {
		rule := ": [{name: alice, when: claims.email == \"" + aliceEmail + "\"}]\n"
		return config + "\naccess:\n  admins" + rule + "  readers" + rule
	})
	m.Issuer = issuer.Issuer
	s := &revocationStory{
		people: newSigners(t, 1),
		story:  &story{mayfly: m, documents: m.documents(t), home: startRegistry(t, true), away: startRegistry(t, false)},
		folder: t.TempDir(), stranger: issuer,
	}
	for _, step := range []struct {
		name string
		tell func(*testing.T)
	}{
		{"three are signed", s.sign}, {"the second is listed", s.listed}, {"lists that don't count", s.refused},
		{"a month later", s.later}, {"revoked by the CA", s.revoked},
		{"of cosign 2, by the image", s.byImage}, {"excised", s.excised},
	} {
		if !t.Run(step.name, step.tell) {
			t.FailNow()
		}
	}
}

// sign signs each version in a second of its own: timestamps have no finer time.
func (s *revocationStory) sign(t *testing.T) {
	binary := cosign(t, cosign3)
	for range 3 {
		if n := len(s.signed); n > 0 {
			after := time.NewTimer(time.Until(s.signed[n-1].Add(2 * time.Second)))
			<-after.C
		}
		s.signNext(t, s.byToken)
		image := s.versions[len(s.versions)-1]
		there := strings.Replace(image, s.home, s.away, 1)
		command(t, nil, tool(t, "oras-v1.3.6"), "cp", "--recursive", "--from-plain-http", "--to-plain-http", image, there)
		file := filepath.Join(s.folder, there[len(there)-12:]) // outlives this step
		write(t, file, []byte(there))
		command(t, nil, binary, append([]string{"sign-blob", "--yes", "--identity-token", s.token(t), "--bundle", file + ".json", file}, s.asTold()...)...)
		s.copies, s.files = append(s.copies, there), append(s.files, file)
		for _, what := range s.of(len(s.files) - 1) {
			v := s.verify(t, 0, what, "--crl", "none")
			one := v.Signatures[0]
			if len(v.Signatures) != 1 || one.Result != "good" || one.SAN != aliceEmail || len(one.Timestamps) != 1 {
				t.Fatalf("%s: %+v", what, v)
			}
			if what[0] == image {
				s.signed = append(s.signed, one.Timestamps[0])
			}
			if len(s.signed) == 2 && what[0] == image {
				s.serial = one.Serial
			}
		}
	}
	s.verify(t, 1, []string{s.versions[0]}, "--crl", "none", "--certificate-identity", "mallory@example.com")
	s.verify(t, 1, []string{push(t, s.home, "unsigned")}, "--crl", "none")
	s.verify(t, 1, []string{"--bundle", s.files[0] + ".json", s.files[1]}, "--crl", "none")
	s.verify(t, 1, []string{s.versions[0]}, "--crl", "tuf") // there is no --tuf-url
	s.verify(t, 1, []string{s.versions[0], s.versions[1]}, "--crl", "none")
}

// of are the arguments that name version i, wherever it is.
func (s *revocationStory) of(i int) [][]string {
	return [][]string{{s.versions[i]}, {s.copies[i]}, {"--bundle", s.files[i] + ".json", s.files[i]}}
}

// verify runs mayfly-verify, which is to end with a code.
func (s *revocationStory) verify(t *testing.T, code int, args []string, flags ...string) (v verified) {
	t.Helper()
	binary := filepath.Join(filepath.Dir(setting(t, "MAYFLY_BIN")), "mayfly-verify")
	base := append([]string{"--json", "--certificate-oidc-issuer", s.Issuer}, args...)
	all := strings.Join(flags, " ")
	if !strings.Contains(all, "--certificate-identity") {
		base = append(base, "--certificate-identity", aliceEmail)
	}
	if !strings.Contains(all, "--tuf-url") {
		base = append(base, "--trusted-root", s.documents.trustedRoot)
	}
	output, err := attempt(t, []string{"HOME=" + s.folder}, binary, append(base, flags...)...)
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if got != code && code >= 0 {
		t.Errorf("%v %v ends with %d, want %d:\n%s", args, flags, got, code, output)
	}
	if at := strings.Index(output, `{"`); at >= 0 {
		if err := json.NewDecoder(strings.NewReader(output[at:])).Decode(&v); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
	}
	return v
}

// list is a list by the instance's key, as its operator would have it made.
func (s *revocationStory) list(t *testing.T, number int64, made time.Time, serials ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "authority", "issuing.key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := pemfile.PrivateKey(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := asn1.MarshalWithParams(made.AddDate(-1, 0, 0).UTC(), "generalized")
	if err != nil {
		t.Fatal(err)
	}
	list := &x509.RevocationList{
		Number: big.NewInt(number), ThisUpdate: made, NextUpdate: made.AddDate(0, 0, 7),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 60}, Value: kept}},
	}
	for _, text := range serials {
		serial, _ := new(big.Int).SetString(text, 16)
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: made, ReasonCode: 1})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, s.chain(t)[0], key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// listed refuses the second image and takes the others: by a file, a URL, and without
// a network.
func (s *revocationStory) listed(t *testing.T) {
	authority := hex.EncodeToString(s.chain(t)[0].SubjectKeyId)
	file, yesterday := filepath.Join(t.TempDir(), "list.crl"), time.Now().Add(-24*time.Hour)
	der := s.list(t, 5, yesterday, s.serial)
	write(t, file, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	served := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/crl/"+authority+".crl" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(der) // whoever asks sees what is missing
	}))
	defer served.Close()
	for _, flags := range [][]string{{"--crl", file}, {"--crl", file, "--offline"}, {"--crl", served.URL + "/crl/"}, {"--crl", served.URL + "/crl/" + authority + ".crl"}} {
		for i, code := range []int{0, 3, 0} {
			for at, what := range s.of(i) {
				if i == 1 && at == 2 {
					continue // the file of the second has a certificate of its own
				}
				v := s.verify(t, code, what, flags...)
				if code == 3 && (len(v.Signatures) != 1 || v.Signatures[0].Result != "revoked" || v.Signatures[0].Serial != s.serial || v.Signatures[0].Authority != authority ||
					!strings.Contains(v.Signatures[0].Words, "is revoked (reason code 1)")) {
					t.Errorf("%v says %+v", what, v)
				}
			}
		}
	}
	s.verify(t, 4, []string{s.versions[0]}, "--crl", served.URL+"/other/")
	s.verify(t, 4, []string{s.versions[0]}, "--crl", served.URL+"/crl/", "--offline")
	// Revoked is said of what is good otherwise alone.
	s.verify(t, 1, []string{s.versions[1]}, "--crl", file, "--certificate-identity", "mallory@example.com")
	s.verify(t, 0, []string{"--bundle", s.files[1] + ".json", s.files[1]}, "--crl", file)
}

// refused are lists that don't count.
func (s *revocationStory) refused(t *testing.T) {
	now := time.Now()
	stale := s.list(t, 6, now.AddDate(0, 0, -8))
	for name, test := range map[string]struct {
		list   []byte
		flags  []string
		code   int
		result string
	}{
		"stale":          {stale, nil, 4, "stale"},
		"stale, allowed": {stale, []string{"--allow-stale-crl"}, 0, "good"},
		"cut short":      {stale[:100], nil, 4, "malformed"},
	} {
		file := filepath.Join(t.TempDir(), "list.crl")
		write(t, file, test.list)
		v := s.verify(t, test.code, []string{s.versions[0]}, append(test.flags, "--crl", file)...)
		if len(v.Signatures) != 1 || v.Signatures[0].Result != test.result {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// later verifies by the Go package, and a clock that is a month ahead, with a fresh list.
func (s *revocationStory) later(t *testing.T) {
	now := time.Now()
	then := now.AddDate(0, 1, 0)
	list, err := revocation.Parse(s.list(t, 9, then.Add(-time.Hour), s.serial))
	if err != nil {
		t.Fatal(err)
	}
	trust, err := root.NewTrustedRootFromPath(s.documents.trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := verify.NewShortCertificateIdentity(s.Issuer, "", aliceEmail, "")
	if err != nil {
		t.Fatal(err)
	}
	for i, image := range s.copies {
		s.copied = image
		bundles := s.bundles(t)
		_, digest, _ := strings.Cut(image, "@sha256:")
		raw, err := hex.DecodeString(digest)
		if err != nil {
			t.Fatal(err)
		}
		policy := verify.NewPolicy(verify.WithArtifactDigest("sha256", raw), verify.WithCertificateIdentity(identity))
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Until(then)) //nolint:forbidigo // moves the bubble's clock, and takes no time
			guarded := guard.New(trust, revocation.From(list), revocation.Terms{Now: time.Now()})
			verifier, err := verify.NewVerifier(guarded, verify.WithSignedCertificateTimestamps(1), verify.WithSignedTimestamps(1))
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range bundles {
				_, err := verifier.Verify(b, policy)
				if revoked := i == 1; (err != nil) != revoked || revoked != errors.Is(guarded.Refusal(), &revocation.Refusal{Kind: revocation.Revoked}) {
					t.Errorf("v%d: %v; %v", i+1, err, guarded.Refusal())
				}
			}
		})
	}
}

// revoked has the CA revoke v2, and follows it by TUF and by its URL.
func (s *revocationStory) revoked(t *testing.T) {
	s.publish(t, s.people.private, append([]string{"init", "--threshold", "1"}, s.people.named()...)...)
	first := s.download(t, t.TempDir(), "/tuf/1.root.json")
	token := filepath.Join(t.TempDir(), "token")
	for _, flags := range [][]string{{"--tuf-url", s.HTTP + "/tuf", "--tuf-root", first}, {"--crl", s.HTTP + "/crl/"}} {
		s.process.until(t, "there is a list", func() bool {
			return s.verify(t, -1, []string{s.versions[1]}, flags...).Good
		})
	}
	write(t, token, []byte(s.token(t)))
	command(t, nil, setting(t, "MAYFLY_BIN"), "revoke", "--ca", s.HTTP, "--serial", s.serial, "--reference", s.versions[1], "--token-file", token)
	asked := time.Now()
	for _, flags := range [][]string{{"--tuf-url", s.HTTP + "/tuf", "--tuf-root", first}, {"--crl", s.HTTP + "/crl/"}} {
		s.process.until(t, "it is refused", func() bool {
			return !s.verify(t, -1, []string{s.versions[1]}, flags...).Good
		})
		t.Logf("refused after %v", time.Since(asked).Round(time.Second))
		for i, code := range []int{0, 3, 0} {
			s.verify(t, code, []string{s.versions[i]}, flags...)
			s.verify(t, code, []string{s.copies[i]}, flags...)
		}
	}
	for i, code := range []int{0, 3, 0} {
		s.verify(t, code, []string{s.copies[i]}, "--tuf-url", s.HTTP+"/tuf", "--tuf-root", first, "--offline")
	}
}

// byImage has cosign 2 sign an image, and its certificate found and revoked by the image's name.
func (s *revocationStory) byImage(t *testing.T) {
	image, other, binary := push(t, s.home, "old"), push(t, s.home, "other"), setting(t, "MAYFLY_BIN")
	chain, logKey, token := filepath.Join(t.TempDir(), "chain.pem"), filepath.Join(t.TempDir(), "ctlog.pub"), filepath.Join(t.TempDir(), "token")
	write(t, chain, get(t, s.HTTP+"/api/v1/rootCert"))
	write(t, logKey, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: s.logKey(t)}))
	command(t, []string{"SIGSTORE_ROOT_FILE=" + chain, "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE=" + logKey}, cosign(t, cosign2), "sign", "--yes", "--fulcio-url", s.HTTP,
		"--tlog-upload=false", "--timestamp-server-url", s.HTTP+timestamp.Path, "--identity-token", s.token(t), image)
	lists := []string{"--crl", s.HTTP + "/crl/"}
	v := s.verify(t, 0, []string{image}, lists...)
	if len(v.Signatures) != 1 || v.Signatures[0].SAN != aliceEmail || len(v.Signatures[0].Timestamps) != 1 {
		t.Fatalf("%+v", v)
	}
	serial := v.Signatures[0].Serial
	s.verify(t, 1, []string{image}, append(lists, "--certificate-identity", "mallory@example.com")...)

	// Another image, beside which the same signature is put, has none.
	tag := func(of string) name.Tag {
		repository, digest, _ := strings.Cut(of, "@sha256:")
		at, err := name.NewTag(repository + ":sha256-" + digest + ".sig")
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	stored, err := remote.Image(tag(image), remote.WithContext(t.Context()))
	if err == nil {
		err = remote.Write(tag(other), stored, remote.WithContext(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
	if v := s.verify(t, 1, []string{other}, lists...); len(v.Signatures) != 1 || !strings.Contains(v.Signatures[0].Words, "and no image of sha256:") {
		t.Errorf("%+v", v)
	}

	// And a good signature of the first version beside this image is none of it, either.
	at, err := name.ParseReference(image)
	if err != nil {
		t.Fatal(err)
	}
	is, err := remote.Head(at, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	first, err := name.NewDigest(s.versions[0])
	if err != nil {
		t.Fatal(err)
	}
	refer, err := remote.Referrers(first, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := refer.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	stored, err = remote.Image(first.Digest(manifest.Manifests[0].Digest.String()), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(first.Tag("replayed"), mutate.Subject(stored, *is).(v1.Image), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}

	// A stranger signs it as well, whose certificate is another CA's.
	command(t, nil, cosign(t, cosign3), "sign", "--yes", "--signing-config", s.stranger.signingConfig, "--trusted-root", s.stranger.trustedRoot,
		"--identity-token", s.stranger.token(t), image)
	s.verify(t, 4, []string{image}, "--crl", filepath.Join(t.TempDir(), "missing.crl")) // though the last is bad
	write(t, token, []byte(s.token(t)))
	with := []string{"--ca", s.HTTP, "--token-file", token, "--image"}
	s.process.until(t, "it is found", func() bool {
		found, err := attempt(t, nil, binary, append([]string{"search", "--json"}, append(with, image)...)...)
		return err == nil && strings.Contains(found, `"serial":"`+serial+`"`) && strings.Count(found, `"serial"`) == 1
	})
	for name, says := range map[string]string{other: "no certificate has signed it", s.home + "/app:old": "is a tag"} {
		if said, err := attempt(t, nil, binary, append([]string{"revoke"}, append(with, name)...)...); err == nil || !strings.Contains(said, says) {
			t.Errorf("%s: %v\n%s", name, err, said)
		}
	}
	said := command(t, nil, binary, append([]string{"revoke"}, append(with, image)...)...)
	if !strings.Contains(said, "left out, as this CA hasn't issued it") || !strings.Contains(said, serial) || !strings.Contains(said, "\n1 revoked, for good") {
		t.Errorf("%s", said)
	}
	s.process.until(t, "it is refused", func() bool { return !s.verify(t, -1, []string{image}, lists...).Good })
	s.verify(t, 3, []string{image}, lists...)
	s.verify(t, 0, []string{s.versions[0]}, lists...)
}

// excised takes the second in which v2 was signed out of the trust root: stock cosign,
// which asks no list, refuses v2 then and takes the others.
func (s *revocationStory) excised(t *testing.T) {
	binary, config := setting(t, "MAYFLY_BIN"), filepath.Join(s.dir, "mayfly.yaml")
	d := documents{home: t.TempDir(), trustedRoot: s.HTTP + "/tuf", signingConfig: s.download(t, t.TempDir(), "/tuf/1.root.json")}
	verdicts := func() (all []bool) {
		if err := cosignBegins(t, s.mayfly, d); err != nil {
			t.Fatal(err)
		}
		for _, image := range s.versions {
			err := run(t, at(s.mayfly, d), cosign(t, cosign3), append([]string{"verify", image, "--insecure-ignore-tlog", "--use-signed-timestamps"}, s.signedAs(aliceEmail)...)...)
			all = append(all, err == nil)
		}
		return all
	}
	if got := fmt.Sprint(verdicts()); got != "[true true true]" {
		t.Fatalf("before it: %s", got)
	}
	moment := s.signed[1].UTC().Format(time.RFC3339)
	gap := moment + "/" + moment
	draft := filepath.Join(t.TempDir(), "draft.json")
	// Those of v1 can sign then too; the file beside v2 may have been signed a second later.
	counted, hits := regexp.MustCompile("could sign in "+gap+": ([34])\n +[34] "+aliceEmail), ""
	for _, guess := range []string{"-1", "5"} {
		said, err := attempt(t, nil, binary, "tuf", "stage", "--config", config, "--out", draft, "--excise", gap, "--hits", guess)
		found := counted.FindStringSubmatch(said)
		if err == nil || found == nil || !strings.Contains(said, "--hits "+found[1]) {
			t.Fatalf("what else is hit: %v\n%s", err, said)
		}
		hits = found[1]
	}
	s.publish(t, s.people.private, "stage", "--excise", gap, "--hits", hits)
	if got := fmt.Sprint(verdicts()); got != "[true false true]" {
		t.Errorf("after it: %s", got)
	}
	byTUF := []string{"--tuf-url", d.trustedRoot, "--tuf-root", d.signingConfig, "--crl", "none"}
	for i, code := range []int{0, 1, 0} {
		s.verify(t, code, []string{s.versions[i]}, byTUF...)
		s.verify(t, code, []string{s.copies[i]}, append(byTUF, "--offline")...)
	}
	said, err := attempt(t, nil, binary, "tuf", "stage", "--config", config, "--out", draft)
	if err == nil || !strings.Contains(said, "was excised and would count again: keep it under trust.excised") {
		t.Errorf("forgotten in the next draft: %v\n%s", err, said)
	}
	content, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	write(t, config, append(content, []byte("\ntrust:\n  excised:\n    - {from: "+moment+", to: "+moment+"}\n")...))
	s.process.until(t, "the document has it too", func() bool {
		h, err := trustroot.Parse(get(t, s.HTTP+"/trusted_root.json"))
		return err == nil && len(h.Authorities) == 2
	})
	s.publish(t, s.people.private, "stage")
	if got := fmt.Sprint(verdicts()); got != "[true false true]" {
		t.Errorf("after the next draft: %s", got)
	}
}
