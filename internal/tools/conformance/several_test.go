package conformance

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// TestSeveralSCTs measures which clients take a certificate with the SCTs of two
// logs: when they know both, when they know the one or the other alone, and when the
// first of the list is unknown to them. docs/ctlog.md has the outcome.
func TestSeveralSCTs(t *testing.T) {
	issuer := startDev(t)
	one := startServe(t, issuer.asIssuer(), openLog)
	two := startServe(t, issuer.asIssuer(), sameAuthority(one), openLog)
	m := startServe(t, issuer.asIssuer(), sameAuthority(one), bothLogs(one, two))
	m.Issuer = issuer.Issuer
	m.signingConfig = m.download(t, t.TempDir(), "/signing_config.json")

	// How the clients fare that know both logs, the first alone, the second alone.
	const (
		both = iota
		first
		second
	)
	for name, c := range map[string]struct {
		try  func(t *testing.T, m *mayfly, keys []byte) error
		want [3]bool
	}{
		"cosign-v3":        {tryCosign3, [3]bool{true, true, true}},
		"cosign-v2":        {tryCosign2, [3]bool{false, false, false}}, // takes one key, and wants that of each SCT
		"cosign-v2-bundle": {tryCosign2Bundle, [3]bool{true, true, true}},
		"sigstore-go":      {trySigstoreGo(1), [3]bool{true, true, true}},
		"sigstore-go-two":  {trySigstoreGo(2), [3]bool{true, false, false}},
		"sigstore-js":      {trySigstoreJS, [3]bool{true, false, false}},
		"mayfly-request":   {tryRequest, [3]bool{true, true, true}},
	} {
		t.Run(name, func(t *testing.T) {
			for knows, want := range c.want {
				trusting, keys := *m, m.keys(t)
				if knows != both {
					trusting.trustedRoot = amend(t, m.trustedRoot, func(document map[string]any) {
						document["ctlogs"] = document["ctlogs"].([]any)[knows-1 : knows]
					})
					keys = keys[knows-1 : knows]
				}
				err := c.try(t, &trusting, bytes.Join(keys, nil))
				t.Logf("%s: %v", [...]string{both: "knows both", first: "knows the first", second: "knows the second"}[knows], err)
				if (err == nil) != want {
					t.Errorf("accepted: %t, want %t", err == nil, want)
				}
			}
		})
	}
}

// openLog opens the log of a CA to submissions.
func openLog(_ *testing.T, _, config string) string {
	return strings.Replace(config, "\n  embedded:\n", "\n  embedded:\n    submission: true\n", 1)
}

// sameAuthority has a CA sign as another one does.
func sameAuthority(as *mayfly) change {
	return func(t *testing.T, dir, config string) string {
		to := filepath.Join(dir, "authority")
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(to, os.DirFS(filepath.Join(as.dir, "authority"))); err != nil {
			t.Fatal(err)
		}
		keys, err := filepath.Glob(filepath.Join(to, "*.key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			if err := os.Chmod(key, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return config
	}
}

// bothLogs has a CA log in the embedded logs of two others. These have the same
// name, which is told apart by the host: what is looked at here are their SCTs alone.
func bothLogs(logs ...*mayfly) change {
	return func(t *testing.T, dir, config string) string {
		before, rest, _ := strings.Cut(config, "\nctlog:\n")
		_, after, found := strings.Cut(rest, "\naudit:\n")
		if !found {
			t.Fatalf("the configuration has another form: %s", config)
		}
		section := "\nctlog:\n  mode: external\n  scts: 2\n  operators: 2\n  logs:\n"
		for i, l := range logs {
			at, err := url.Parse(l.CTLog)
			if err != nil {
				t.Fatal(err)
			}
			key := filepath.Join(dir, fmt.Sprintf("log%d.pub.pem", i))
			write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: l.logKey(t)}))
			section += fmt.Sprintf("    - url: http://log%d.localhost:5555%s\n      allow_http: true\n      address: %s\n      key_file: %s\n      operator: operator%d\n",
				i, at.Path, at.Host, key, i)
		}
		return before + section + "audit:\n" + after
	}
}

// keys are those of the logs in the trusted root, in PEM.
func (m *mayfly) keys(t *testing.T) (keys [][]byte) {
	t.Helper()
	content, err := os.ReadFile(m.trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	var document trusted
	if err := json.Unmarshal(content, &document); err != nil || len(document.CTLogs) != 2 {
		t.Fatalf("want two logs: %s, %v", content, err)
	}
	for _, l := range document.CTLogs {
		keys = append(keys, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: l.PublicKey.RawBytes}))
	}
	return keys
}

// run is attempt with the end of the output in its error.
func run(t *testing.T, environment []string, name string, args ...string) error {
	t.Helper()
	if output, err := attempt(t, environment, name, args...); err != nil {
		const most = 400
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, output[max(0, len(output)-most):])
	}
	return nil
}

func tryCosign3(t *testing.T, m *mayfly, _ []byte) error {
	t.Helper()
	binary, file, bundle := cosign(t, cosign3), artifact(t), filepath.Join(t.TempDir(), "bundle.json")
	if err := run(t, nil, binary, "sign-blob", "--yes", "--signing-config", m.signingConfig, "--trusted-root", m.trustedRoot,
		"--identity-token", m.token(t), "--bundle", bundle, file); err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	verify := []string{"verify-blob", "--bundle", bundle, "--trusted-root", m.trustedRoot, "--insecure-ignore-tlog"}
	return run(t, nil, binary, append(append(verify, m.signedAs(aliceEmail)...), file)...)
}

func tryCosign2(t *testing.T, m *mayfly, keys []byte) error {
	t.Helper()
	binary, file, dir := cosign(t, cosign2), artifact(t), t.TempDir()
	chain, logs := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "ctlog.pub")
	write(t, chain, get(t, m.HTTP+"/api/v1/rootCert"))
	write(t, logs, keys)
	environment := []string{"SIGSTORE_ROOT_FILE=" + chain, "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE=" + logs}
	signature, certificate := filepath.Join(dir, "signature"), filepath.Join(dir, "certificate")
	if err := run(t, environment, binary, "sign-blob", "--yes", "--fulcio-url", m.HTTP, "--tlog-upload=false",
		"--identity-token", m.token(t), "--output-signature", signature, "--output-certificate", certificate, file); err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	verify := []string{"verify-blob", "--signature", signature, "--certificate", certificate, "--insecure-ignore-tlog"}
	return run(t, environment, binary, append(append(verify, m.signedAs(aliceEmail)...), file)...)
}

func tryCosign2Bundle(t *testing.T, m *mayfly, _ []byte) error {
	t.Helper()
	binary, file, bundle := cosign(t, cosign2), artifact(t), filepath.Join(t.TempDir(), "bundle.json")
	if err := run(t, nil, binary, "sign-blob", "--yes", "--fulcio-url", m.HTTP, "--tlog-upload=false",
		"--trusted-root", m.trustedRoot, "--new-bundle-format", "--identity-token", m.token(t), "--bundle", bundle, file); err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	verify := []string{"verify-blob", "--bundle", bundle, "--new-bundle-format", "--trusted-root", m.trustedRoot, "--insecure-ignore-tlog"}
	return run(t, nil, binary, append(append(verify, m.signedAs(aliceEmail)...), file)...)
}

// trySigstoreGo wants so many SCTs.
func trySigstoreGo(threshold int) func(t *testing.T, m *mayfly, keys []byte) error {
	return func(t *testing.T, m *mayfly, _ []byte) error {
		t.Helper()
		trust, err := root.NewTrustedRootFromPath(m.trustedRoot)
		if err != nil {
			return err
		}
		keypair, err := sign.NewEphemeralKeypair(nil)
		if err != nil {
			return err
		}
		content := []byte("signed by " + t.Name())
		signed, err := sign.Bundle(&sign.PlainData{Data: content}, keypair, sign.BundleOptions{
			CertificateProvider:        sign.NewFulcio(&sign.FulcioOptions{BaseURL: m.HTTP}),
			CertificateProviderOptions: &sign.CertificateProviderOptions{IDToken: m.token(t)},
			Context:                    t.Context(),
		})
		if err != nil {
			return err
		}
		entity, err := bundle.NewBundle(signed)
		if err != nil {
			return err
		}
		verifier, err := verify.NewVerifier(trust, verify.WithSignedCertificateTimestamps(threshold), verify.WithCurrentTime())
		if err != nil {
			return err
		}
		identity, err := verify.NewShortCertificateIdentity(m.Issuer, "", aliceEmail, "")
		if err != nil {
			return err
		}
		_, err = verifier.Verify(entity, verify.NewPolicy(verify.WithArtifact(bytes.NewReader(content)), verify.WithCertificateIdentity(identity)))
		return err
	}
}

func trySigstoreJS(t *testing.T, m *mayfly, _ []byte) error {
	t.Helper()
	d, file, bundle := m.documents(t), artifact(t), filepath.Join(t.TempDir(), "bundle.json")
	d.trustedRoot = m.trustedRoot
	if err := sigstoreJS.sign(t, m, d, bundle, file); err != nil {
		return err
	}
	return sigstoreJS.verify(t, m, d, aliceEmail, bundle, file)
}

func tryRequest(t *testing.T, m *mayfly, _ []byte) error {
	t.Helper()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	write(t, token, []byte(m.token(t)))
	return run(t, nil, setting(t, "MAYFLY_BIN"), "request", "--ca", m.HTTP, "--token-file", token,
		"--trusted-root", m.trustedRoot, "--output-key", filepath.Join(dir, "key.pem"), "--output-certificate", filepath.Join(dir, "cert.pem"))
}
