package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/theupdateframework/go-tuf/v2/metadata/fetcher"
	"golang.org/x/sync/errgroup"
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
	trust, err := trustByTUF(caller(t), d)
	if err != nil {
		return err
	}
	return verifyWith(t, m, trust, name, bundle, file)
}

func trustByTUF(c *http.Client, d documents) (*root.TrustedRoot, error) {
	first, err := os.ReadFile(d.signingConfig)
	if err != nil {
		return nil, err
	}
	fetch := fetcher.NewDefaultFetcher()
	fetch.SetHTTPClient(c)
	client, err := tuf.New(&tuf.Options{
		Root: first, RepositoryBaseURL: d.trustedRoot, CachePath: filepath.Join(d.home, "tuf-go"), Fetcher: fetch,
	})
	if err != nil {
		return nil, err
	}
	target, err := client.GetTarget("trusted_root.json")
	if err != nil {
		return nil, err
	}
	return root.NewTrustedRootFromJSON(target)
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
// two more roots, signed by other people, to another certificate authority, CT log,
// timestamp authority and transparency log. Nobody tells it anything, and what was
// signed before stays good. Meanwhile somebody asks for certificates without a pause,
// and each is good by the trust root of its moment.
func TestTUF(t *testing.T) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer(), withTLS)
	m.Issuer, m.environment = issuer.Issuer, trustingTLS(t)
	log := startRekorTiles(t)
	m.trusts(t, nil, log)
	people := newSigners(t, 4)
	first, later := people.from(0, 3), people.from(1, 4)
	m.publish(t, first.private[:2], append([]string{"init"}, first.named()...)...)
	told := documents{
		trustedRoot: m.HTTP + "/tuf", signingConfig: m.download(t, t.TempDir(), "/tuf/1.root.json"), logged: true, stamped: true,
	}
	all := make(map[string]*following)
	for name, client := range followers {
		all[name] = &following{follower: client, documents: told.at(t)}
		t.Run(name, func(t *testing.T) { all[name].goesOn(t, m) })
	}
	load := m.issueAndVerify(t, told.at(t))
	m.publish(t, people.private[1:3], append([]string{"rotate-root"}, later.named()...)...)
	m.publish(t, later.private[1:], "rotate-root")
	m.rotate(t, func() {
		startTimestampAuthority(t, m, log, startRekorTiles(t))
		m.publish(t, later.private[:2], "stage")
	})
	for name, client := range all {
		t.Run(name+"-rotated", func(t *testing.T) { client.goesOn(t, m) })
	}
	t.Run("certificates-under-load", load)
}

// at is d for a client with a home of its own.
func (d documents) at(t *testing.T) documents {
	t.Helper()
	d.home = t.TempDir()
	return d
}

// rotate prepares another certificate authority and another CT log, has them told, and
// goes over to both: sooner than clients would fetch the trust root by themselves, which
// these do each time.
func (m *mayfly) rotate(t *testing.T, tell func()) {
	t.Helper()
	binary, config, dir := setting(t, "MAYFLY_BIN"), filepath.Join(m.dir, "mayfly.yaml"), filepath.Join(m.dir, "next")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	chain, key := filepath.Join(dir, "chain.pem"), "file:"+filepath.Join(dir, "issuing.key.pem")
	command(t, nil, binary, "ca", "intermediate", "--issuer", filepath.Join(m.dir, "authority", "root.pem"),
		"--issuer-key", "file:"+filepath.Join(m.dir, "authority", "root.key.pem"), "--key", key, "--generate", "ECDSA-P384",
		"--name", "Conformance next", "--out", chain)
	command(t, nil, binary, "authority", "prepare", "next", "--config", config, "--chain", chain, "--key", key)
	command(t, nil, binary, "authority", "publish", "next", "--config", config)
	const lead = 25 * time.Second // in which the trust root is signed and published
	begins := time.Now().Add(lead).UTC().Truncate(time.Second)
	command(t, nil, binary, "log", "rotate", "--config", config, "--force", "--at", begins.Format(time.RFC3339))
	tell()
	if !time.Now().Before(begins) {
		t.Fatalf("the log began before clients were told, within %v: the machine is too busy", lead)
	}
	command(t, nil, binary, "authority", "activate", "next", "--config", config, "--force")
	m.process.until(t, "the next authority signs, into the next log", func() bool {
		der, err := m.certificate(t.Context(), m.token(t))
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return leaf.Issuer.CommonName == "Conformance next" && time.Now().After(begins.Add(time.Second))
	})
}

// issueAndVerify asks for one certificate after the other, and verifies each by the
// trust root that TUF has then, until the test that it answers with runs.
func (m *mayfly) issueAndVerify(t *testing.T, d documents) func(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	token, client := m.token(t), caller(t)
	issuers := make(map[string]int)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for ctx.Err() == nil {
			der, err := m.certificate(ctx, token)
			if ctx.Err() != nil {
				return nil //nolint:nilerr // ended by the test, not by a failure
			}
			if err != nil {
				return err
			}
			leaf, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			trust, err := trustByTUF(client, d)
			if err == nil {
				err = provenIn(leaf, trust)
			}
			if err != nil {
				return fmt.Errorf("certificate %x of %s: %w", leaf.SerialNumber, leaf.Issuer, err)
			}
			issuers[leaf.Issuer.CommonName]++
			select { // a machine has other things to do
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		return nil
	})
	t.Cleanup(cancel)
	return func(t *testing.T) {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
		if len(issuers) != 2 {
			t.Errorf("certificates of %v, want those of two authorities", issuers)
		}
		t.Logf("certificates that were good at once: %v", issuers)
	}
}

// from are some of the people.
func (s signers) from(i, j int) signers { return signers{s.private[i:j], s.public[i:j]} }
