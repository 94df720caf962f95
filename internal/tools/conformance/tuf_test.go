package conformance

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/theupdateframework/go-tuf/v2/metadata/fetcher"
)

// signers are people whose keys sign the trust root.
type signers struct {
	private, public []string // paths
}

func newSigners(t *testing.T, n int) signers {
	t.Helper()
	var s signers
	dir := t.TempDir()
	for i := range n {
		private, public := filepath.Join(dir, strconv.Itoa(i)+".key.pem"), filepath.Join(dir, strconv.Itoa(i)+".pem")
		command(t, nil, "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private)
		command(t, nil, "openssl", "pkey", "-in", private, "-pubout", "-out", public)
		if err := os.Chmod(private, 0o600); err != nil {
			t.Fatal(err)
		}
		s.private, s.public = append(s.private, private), append(s.public, public)
	}
	return s
}

// named are the flags that make these people the ones who sign.
func (s signers) named() (flags []string) {
	for _, file := range s.public {
		flags = append(flags, "--key", file)
	}
	return flags
}

// publish has people sign a draft of the trust root, which a command of `mayfly tuf`
// makes, and waits until it is served.
func (m *mayfly) publish(t *testing.T, by []string, draft ...string) {
	t.Helper()
	binary, config, file := setting(t, "MAYFLY_BIN"), filepath.Join(m.dir, "mayfly.yaml"), filepath.Join(t.TempDir(), "draft.json")
	command(t, nil, binary, append(append([]string{"tuf"}, draft...), "--config", config, "--out", file)...)
	for _, key := range by {
		command(t, nil, binary, "tuf", "sign", file, "--key", "file:"+key, "--yes")
	}
	before := m.snapshot(t)
	command(t, nil, binary, "tuf", "publish", "--config", config, file)
	m.process.until(t, "it serves what was published", func() bool { return m.snapshot(t) != before })
}

// snapshot is what the repository's timestamp names, nothing before the first.
func (m *mayfly) snapshot(t *testing.T) string {
	t.Helper()
	if !answers(t, m.HTTP+"/tuf/timestamp.json") {
		return ""
	}
	var timestamp struct {
		Signed struct{ Meta json.RawMessage }
	}
	if err := json.Unmarshal(get(t, m.HTTP+"/tuf/timestamp.json"), &timestamp); err != nil {
		t.Fatal(err)
	}
	return string(timestamp.Signed.Meta)
}

// follower is a client that learns of an instance from its TUF repository. Its
// documents are the URL of the repository and the path of its first root.
type follower struct {
	foreign
	begin func(t *testing.T, m *mayfly, d documents) error // once
}

// followers are the clients of TUF. gitsign has a test of its own.
var followers = map[string]follower{
	"cosign-v3-tuf": {
		begin: cosignBegins,
		foreign: foreign{
			sign: cosignSigns,
			verify: func(t *testing.T, m *mayfly, d documents, name, bundle, file string) error {
				t.Helper()
				return run(t, at(m, d), cosign(t, cosign3), append([]string{"verify-blob", "--bundle", bundle, "--use-signed-timestamps", file}, m.signedAs(name)...)...)
			},
		},
	},
	"cosign-v2-tuf": {
		begin: func(t *testing.T, m *mayfly, d documents) error {
			t.Helper()
			return run(t, at(m, d), cosign(t, cosign2), "initialize", "--mirror", d.trustedRoot, "--root", d.signingConfig)
		},
		foreign: foreign{sign: cosign2Signs, verify: cosign2Verifies},
	},
	"sigstore-python-tuf": {
		begin: func(t *testing.T, m *mayfly, d documents) error {
			t.Helper()
			return run(t, at(m, d), python(t, "sigstore"), "--instance", d.trustedRoot, "trust-instance", d.signingConfig)
		},
		foreign: foreign{
			sign: func(t *testing.T, m *mayfly, d documents, bundle, file string) error {
				t.Helper()
				return run(t, at(m, d), python(t, "sigstore"), "--instance", d.trustedRoot,
					"sign", "--identity-token", m.token(t), "--bundle", bundle, file)
			},
			verify: func(t *testing.T, m *mayfly, d documents, name, bundle, file string) error {
				t.Helper()
				return run(t, at(m, d), python(t, "sigstore"), "--instance", d.trustedRoot,
					"verify", "identity", "--cert-identity", name, "--cert-oidc-issuer", m.Issuer, "--bundle", bundle, file)
			},
		},
	},
	"sigstore-go-tuf":   {begin: cosignBegins, foreign: foreign{sign: cosignSigns, verify: sigstoreGoFollows}},
	"sigstore-js-tuf":   {foreign: sigstoreJS},
	"sigstore-java-tuf": {foreign: sigstoreJava},
	"sigstore-rust-tuf": {foreign: sigstoreRust},
}

func cosignBegins(t *testing.T, m *mayfly, d documents) error {
	t.Helper()
	return run(t, at(m, d), cosign(t, cosign3), "initialize", "--mirror", d.trustedRoot, "--root", d.signingConfig)
}

func cosignSigns(t *testing.T, m *mayfly, d documents, bundle, file string) error {
	t.Helper()
	return run(t, at(m, d), cosign(t, cosign3), "sign-blob", "--yes", "--identity-token", m.token(t), "--bundle", bundle, file)
}

// cosign2Signs and cosign2Verifies keep signature and certificate in files of their own,
// and take each key from a target of its own.
func cosign2Signs(t *testing.T, m *mayfly, d documents, bundle, file string) error {
	t.Helper()
	return run(t, at(m, d), cosign(t, cosign2), "sign-blob", "--yes", "--fulcio-url", m.HTTP, "--tlog-upload=false",
		"--identity-token", m.token(t), "--output-signature", bundle+".sig", "--output-certificate", bundle+".crt", file)
}

func cosign2Verifies(t *testing.T, m *mayfly, d documents, name, bundle, file string) error {
	t.Helper()
	return run(t, at(m, d), cosign(t, cosign2), append([]string{
		"verify-blob", "--signature", bundle + ".sig", "--certificate", bundle + ".crt", "--insecure-ignore-tlog", file,
	}, m.signedAs(name)...)...)
}

// sigstoreGoFollows verifies with the Go library, from the trusted root that its own
// client of TUF brings.
func sigstoreGoFollows(t *testing.T, m *mayfly, d documents, name, bundle, file string) error {
	t.Helper()
	first, err := os.ReadFile(d.signingConfig)
	if err != nil {
		return err
	}
	fetch := fetcher.NewDefaultFetcher()
	fetch.SetHTTPClient(caller(t))
	client, err := tuf.New(&tuf.Options{
		Root: first, RepositoryBaseURL: d.trustedRoot, CachePath: filepath.Join(d.home, "tuf-go"), Fetcher: fetch,
	})
	if err != nil {
		return err
	}
	target, err := client.GetTarget("trusted_root.json")
	if err != nil {
		return err
	}
	trust, err := root.NewTrustedRootFromJSON(target)
	if err != nil {
		return err
	}
	return verifyWith(t, m, trust, name, bundle, file)
}

// verifyWith verifies a bundle of a file with sigstore-go.
func verifyWith(t *testing.T, m *mayfly, trust root.TrustedMaterial, name, path, file string) error {
	t.Helper()
	entity, err := bundle.LoadJSONFromPath(path)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	verifier, err := verify.NewVerifier(trust, verify.WithSignedCertificateTimestamps(1), verify.WithSignedTimestamps(1), verify.WithTransparencyLog(1))
	if err != nil {
		return err
	}
	identity, err := verify.NewShortCertificateIdentity(m.Issuer, "", name, "")
	if err != nil {
		return err
	}
	_, err = verifier.Verify(entity, verify.NewPolicy(verify.WithArtifact(bytes.NewReader(content)), verify.WithCertificateIdentity(identity)))
	return err
}

// following is a client on its way: what it was told once, and what it has signed.
type following struct {
	follower
	documents
	signed []string // bundles, each beside its file
}

// goesOn signs once more, and verifies that and all from before.
func (f *following) goesOn(t *testing.T, m *mayfly) {
	t.Helper()
	if f.begin != nil && len(f.signed) == 0 {
		if err := f.begin(t, m, f.documents); err != nil {
			t.Fatal("beginning: ", err)
		}
	}
	file := filepath.Join(f.home, rand.Text())
	write(t, file, []byte("signed by "+t.Name()))
	if err := f.sign(t, m, f.documents, file+".json", file); err != nil {
		t.Fatal("signing: ", err)
	}
	f.signed = append(f.signed, file)
	for i, file := range f.signed {
		if err := f.verify(t, m, f.documents, aliceEmail, file+".json", file); err != nil {
			t.Errorf("verifying signature %d of %d: %v", i+1, len(f.signed), err)
		}
	}
	if f.verify(t, m, f.documents, "mallory@example.com", file+".json", file) == nil {
		t.Error("accepted for another name")
	}
}

// TestTUF has each client follow the trust root from its first version alone: through
// two more roots, signed by other people, and to another timestamp authority and
// another transparency log. Nobody tells it anything, and what was signed before stays
// good.
func TestTUF(t *testing.T) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer(), withTLS)
	m.Issuer, m.environment = issuer.Issuer, trustingTLS(t)
	log := startRekorTiles(t)
	m.trusts(t, nil, log)
	people := newSigners(t, 4)
	first, later := people.from(0, 3), people.from(1, 4)
	m.publish(t, first.private[:2], append([]string{"init"}, first.named()...)...)
	pinned := m.download(t, t.TempDir(), "/tuf/1.root.json")

	all := make(map[string]*following)
	for name, client := range followers {
		all[name] = &following{follower: client, documents: documents{
			trustedRoot: m.HTTP + "/tuf", signingConfig: pinned, home: t.TempDir(), logged: true, stamped: true,
		}}
		t.Run(name, func(t *testing.T) { all[name].goesOn(t, m) })
	}
	t.Run("policy-controller", func(t *testing.T) { testPolicyController(t, m, pinned) })
	t.Run("kyverno", func(t *testing.T) { testKyverno(t, m, pinned) })
	m.publish(t, people.private[1:3], append([]string{"rotate-root"}, later.named()...)...)
	m.publish(t, later.private[1:], "rotate-root")
	startTimestampAuthority(t, m, log, startRekorTiles(t))
	m.publish(t, later.private[:2], "stage")
	for name, client := range all {
		t.Run(name+"-rotated", func(t *testing.T) { client.goesOn(t, m) })
	}
}

// from are some of the people.
func (s signers) from(i, j int) signers { return signers{s.private[i:j], s.public[i:j]} }
