package conformance

import (
	"os"
	"path/filepath"
	"testing"
)

// tool is a foreign program that tools.sh installed. run.sh leaves out the tests of those
// that only `make conformance-full` builds.
func tool(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(setting(t, "CONFORMANCE_BIN"), name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s isn't there: make conformance-full builds it", name)
	}
	return path
}

// foreign is a client that signs and verifies files by commands of its own. Each takes the documents
// of an instance, and ends with an error where it refuses.
type foreign struct {
	sign   func(t *testing.T, m *mayfly, d documents, bundle, file string) error
	verify func(t *testing.T, m *mayfly, d documents, name, bundle, file string) error
}

// signsAndVerifies holds a client to what all must do: what it signed it accepts,
// and so does cosign; it refuses another file and another name.
func (c foreign) signsAndVerifies(t *testing.T, m *mayfly, d documents) {
	t.Helper()
	file, bundle := artifact(t), filepath.Join(t.TempDir(), "bundle.json")
	if err := c.sign(t, m, d, bundle, file); err != nil {
		t.Fatal("signing: ", err)
	}
	if err := c.verify(t, m, d, aliceEmail, bundle, file); err != nil {
		t.Error("verifying: ", err)
	}
	other := filepath.Join(t.TempDir(), "other.txt")
	write(t, other, []byte("other bytes\n"))
	if c.verify(t, m, d, aliceEmail, bundle, other) == nil {
		t.Error("accepted for another file")
	}
	if c.verify(t, m, d, "mallory@example.com", bundle, file) == nil {
		t.Error("accepted for another name")
	}
	if err := cosignClient.verify(t, m, d, aliceEmail, bundle, file); err != nil {
		t.Error("cosign verifies it: ", err)
	}
	// And the other way round.
	byCosign := filepath.Join(t.TempDir(), "cosign.json")
	if err := cosignClient.sign(t, m, d, byCosign, file); err != nil {
		t.Fatal("cosign signing: ", err)
	}
	if err := c.verify(t, m, d, aliceEmail, byCosign, file); err != nil {
		t.Error("verifying what cosign signed: ", err)
	}
}

// cosignClient is cosign v3.
var cosignClient = foreign{
	sign: func(t *testing.T, m *mayfly, d documents, bundle, file string) error {
		t.Helper()
		return run(t, m.environment, cosign(t, cosign3), "sign-blob", "--yes", "--signing-config", d.signingConfig,
			"--trusted-root", d.trustedRoot, "--identity-token", m.token(t), "--bundle", bundle, file)
	},
	verify: func(t *testing.T, m *mayfly, d documents, name, bundle, file string) error {
		t.Helper()
		args := append([]string{"verify-blob", "--bundle", bundle, "--trusted-root", d.trustedRoot}, m.signedAs(name)...)
		if !d.logged {
			args = append(args, "--insecure-ignore-tlog")
		}
		if d.stamped {
			args = append(args, "--use-signed-timestamps")
		}
		return run(t, m.environment, cosign(t, cosign3), append(args, file)...)
	},
}

// sigstorePython is the program of the Python package.
var sigstorePython = foreign{
	sign: func(t *testing.T, m *mayfly, d documents, bundle, file string) error {
		t.Helper()
		return run(t, m.environment, python(t, "sigstore"), "--trust-config", d.trustConfig,
			"sign", "--identity-token", m.token(t), "--bundle", bundle, file)
	},
	verify: func(t *testing.T, m *mayfly, d documents, name, bundle, file string) error {
		t.Helper()
		return run(t, m.environment, python(t, "sigstore"), "--trust-config", d.trustConfig,
			"verify", "identity", "--cert-identity", name, "--cert-oidc-issuer", m.Issuer, "--bundle", bundle, file)
	},
}

// python is a program of the Python packages that tools.sh installed.
func python(t *testing.T, name string) string {
	t.Helper()
	return filepath.Join(setting(t, "CONFORMANCE_PYTHON"), "bin", name)
}

// sigstoreJava and sigstoreRust are programs of ours around the libraries, with the
// same arguments.
var (
	sigstoreJava = library(func(t *testing.T) []string {
		t.Helper()
		lib := setting(t, "CONFORMANCE_JAVA")
		return []string{"java", "-cp", filepath.Join(lib, "*") + ":" + lib, "Sigstore"}
	})
	sigstoreRust = library(func(t *testing.T) []string {
		t.Helper()
		return []string{tool(t, "sigstore-rust-0.15.1")}
	})
)

func library(program func(t *testing.T) []string) foreign {
	return foreign{
		sign: libraryDoes("sign", program),
		verify: func(t *testing.T, m *mayfly, d documents, name, bundle, file string) error {
			t.Helper()
			p := program(t)
			return run(t, at(m, d), p[0], append(p[1:], "verify", d.trustedRoot, d.signingConfig, m.Issuer, name, bundle, file)...)
		},
	}
}

// libraryDoes is what such a program does with a token.
func libraryDoes(what string, program func(t *testing.T) []string) func(t *testing.T, m *mayfly, d documents, bundle, file string) error {
	return func(t *testing.T, m *mayfly, d documents, bundle, file string) error {
		t.Helper()
		p, token := program(t), filepath.Join(t.TempDir(), "token")
		write(t, token, []byte(m.token(t)))
		return run(t, at(m, d), p[0], append(p[1:], what, d.trustedRoot, d.signingConfig, token, bundle, file)...)
	}
}

// at is the environment of a client that may keep what it learns.
func at(m *mayfly, d documents) []string {
	if d.home == "" {
		return m.environment
	}
	return append([]string{"HOME=" + d.home, "SIGSTORE_NO_CACHE=false"}, m.environment...)
}

// TestBesideRekor has the clients that can't do without a log of signatures work
// with a Rekor v2 and a Mayfly that speaks TLS: sigstore-java asks over gRPC on the
// port of REST.
func TestBesideRekor(t *testing.T) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer(), withTLS)
	m.Issuer, m.environment = issuer.Issuer, trustingTLS(t)
	d := m.trusts(t, nil, startRekorTiles(t))
	for name, c := range map[string]foreign{
		"cosign-v3-rekor":   cosignClient,
		"sigstore-js-rekor": sigstoreJS,
		"sigstore-python":   sigstorePython,
		"sigstore-java":     sigstoreJava,
		"sigstore-rust":     sigstoreRust,
	} {
		t.Run(name, func(t *testing.T) { c.signsAndVerifies(t, m, d) })
	}
	t.Run("sigstore-python-timestamps", func(t *testing.T) { testPythonStamps(t, m, d) })
	t.Run("model-signing", func(t *testing.T) { testModelSigning(t, m, d) })
	t.Run("sigstore-python-browser-login", func(t *testing.T) {
		logsIn := sigstorePython
		logsIn.sign = func(t *testing.T, m *mayfly, d documents, bundle, file string) error {
			t.Helper()
			return run(t, append([]string{"BROWSER=" + browser(t)}, m.environment...), python(t, "sigstore"),
				"--trust-config", d.trustConfig, "sign", "--bundle", bundle, file)
		}
		logsIn.signsAndVerifies(t, m, d)
	})
}

// testModelSigning signs a folder, the weights of a model.
func testModelSigning(t *testing.T, m *mayfly, d documents) {
	binary, model := python(t, "model_signing"), t.TempDir()
	signature := filepath.Join(t.TempDir(), "model.sig")
	write(t, filepath.Join(model, "weights"), []byte("1 2 3"))
	write(t, filepath.Join(model, "config.json"), []byte("{}"))
	command(t, m.environment, binary, "sign", "sigstore", "--trust_config", d.trustConfig, "--identity_token", m.token(t),
		"--signature", signature, model)
	verify := []string{
		"verify", "sigstore", "--trust_config", d.trustConfig, "--signature", signature,
		"--identity_provider", m.Issuer, "--identity",
	}
	command(t, m.environment, binary, append(verify, aliceEmail, model)...)
	if output, err := attempt(t, m.environment, binary, append(verify, "mallory@example.com", model)...); err == nil {
		t.Errorf("accepted for another name: %s", output)
	}
	write(t, filepath.Join(model, "weights"), []byte("1 2 4"))
	if output, err := attempt(t, m.environment, binary, append(verify, aliceEmail, model)...); err == nil {
		t.Errorf("accepted with other weights: %s", output)
	}
}
