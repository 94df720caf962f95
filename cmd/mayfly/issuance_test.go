package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// backendKey is a key in some backend, as commands and configuration name it.
type backendKey struct {
	ref     string
	access  [][2]string   // options of the configuration, which are flags too
	env     []string      // what the backend reads from the environment
	made    bool          // it is there: not to be generated
	signed  func() int    // how many signatures the backend made; nil if it doesn't count
	secrets []string      // what no file may hold
	algo    kms.Algorithm // to generate
}

// backendKeys make a key in each backend; PKCS #11 adds its own where it is built in.
var backendKeys = map[string]func(t *testing.T, a kms.Algorithm) backendKey{
	"file": func(t *testing.T, a kms.Algorithm) backendKey {
		return backendKey{
			ref: "file:" + filepath.Join(t.TempDir(), "issuing.key.pem"), algo: a,
			access: [][2]string{{"passphrase-env", "ISSUING_PASS"}}, env: []string{"ISSUING_PASS=correct horse"}, secrets: []string{"correct horse"},
		}
	},
	"aws": vendorKey("aws"), "azure": vendorKey("azure"), "gcp": vendorKey("gcp"), "vault": vendorKey("vault"),
}

// vendorKey is a key in a vendor's stand-in.
func vendorKey(vendor string) func(*testing.T, kms.Algorithm) backendKey {
	return func(t *testing.T, a kms.Algorithm) backendKey {
		key, err := a.Generate()
		if err != nil {
			t.Fatal(err)
		}
		s := kmstest.Vendors[vendor](t, key)
		k := backendKey{ref: s.Ref, made: true, signed: func() int { return s.Count(s.Sign) }, secrets: []string{kmstest.Secret}}
		for name, value := range map[string]string{
			"credential": string(s.Options.Access.Credential), "region": s.Options.Access.Region, "endpoint": s.Options.Access.Endpoint,
			"identity-endpoint": s.Options.Access.IdentityEndpoint, "ca-file": string(s.Options.Access.CAFile),
		} {
			if value != "" {
				k.access = append(k.access, [2]string{name, value})
			}
		}
		for _, name := range []string{
			"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET",
			"GCE_METADATA_HOST", "VAULT_TOKEN", "VAULT_ADDR",
		} {
			if value := s.Options.Getenv(name); value != "" {
				k.env = append(k.env, name+"="+value)
			}
		}
		return k
	}
}

// flags reach the key from the command line, by flags with a prefix or none.
func (k backendKey) flags(prefix string) []string {
	all := []string{"--" + prefix + "key", k.ref}
	for _, o := range k.access {
		all = append(all, "--"+prefix+o[0], o[1])
	}
	return all
}

// yaml reaches the key from an entry of a configuration's ca.authorities.
func (k backendKey) yaml() string {
	var b strings.Builder
	fmt.Fprintf(&b, "      key: '%s'\n", strings.ReplaceAll(k.ref, "'", "''"))
	for _, o := range k.access {
		switch name := strings.ReplaceAll(o[0], "-", "_"); name {
		case "passphrase_env":
			fmt.Fprintf(&b, "      passphrase: {env: %s}\n", o[1])
		case "passphrase_file":
			fmt.Fprintf(&b, "      passphrase: {file: '%s'}\n", o[1])
		default:
			fmt.Fprintf(&b, "      %s: '%s'\n", name, o[1])
		}
	}
	return b.String()
}

// commandLine runs the program in a folder of its own, with an environment that
// holds nothing of the machine's.
type commandLine struct {
	t       *testing.T
	dir     string
	program string
	env     []string
}

func newCommands(t *testing.T, env ...string) commandLine {
	t.Helper()
	program, err := exec.LookPath("mayfly")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	env = append(env, "PATH="+os.Getenv("PATH"), "HOME="+dir, "GORACE="+quickExit, "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null")
	return commandLine{t, dir, program, env}
}

func (c commandLine) run(name string, args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), name, args...) // #nosec G204 -- a test's own programs
	cmd.Dir, cmd.Env = c.dir, c.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (c commandLine) mayfly(args ...string) string { c.t.Helper(); return c.run(c.program, args...) }

func (c commandLine) path(name string) string { return filepath.Join(c.dir, name) }

func (c commandLine) read(name string) string {
	c.t.Helper()
	b, err := os.ReadFile(c.path(name))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// TestWholeIssuance goes from a ceremony to a served certificate, by command,
// with the issuing key in each backend: an offline root signs the request, a real
// Mayfly with a log of its own issues, and OpenSSL and the client verify. With
// MAYFLY_ISSUANCES it leaves what came out in that folder, for foreign clients
// to verify (internal/tools/conformance).
func TestWholeIssuance(t *testing.T) {
	root := newCommands(t)
	root.mayfly("ca", "init", "--organization", "Example", "--key", "file:root.key.pem", "--generate", "ECDSA-P384", "--path-length", "1", "--out", "root.pem")
	issuer := start(t, workshop(t), "issuer", append([]string{"dev", "--dir", "data"}, freePorts()...)...)
	e, err := issuer.endpoints(filepath.Join(filepath.Dir(issuer.stderr), "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("of", func(t *testing.T) {
		for backend, newKey := range backendKeys {
			for _, a := range []kms.Algorithm{kms.ECDSAP256, kms.ECDSAP384, kms.RSA3072} {
				t.Run(backend+"/"+string(a), func(t *testing.T) {
					t.Parallel()
					wholeIssuance(t, root, e.Issuer, newKey(t, a), a, backend)
				})
			}
		}
	})
}

var (
	fingerprintOf = regexp.MustCompile(`--fingerprint ([0-9a-f]{64})\n`)
	madeKey       = regexp.MustCompile(`(?m)^made the key (.*)$`)
)

// wholeIssuance is one of them.
func wholeIssuance(t *testing.T, root commandLine, issuer string, k backendKey, a kms.Algorithm, backend string) {
	c := newCommands(t, k.env...)
	// The ceremony: a request where the key is, signed at the root's machine.
	args := append([]string{"ca", "csr", "--out", "issuing.csr.pem"}, k.flags("")...)
	if !k.made {
		args = append(args, "--generate", string(k.algo))
	}
	said := c.mayfly(args...)
	fingerprint := fingerprintOf.FindStringSubmatch(said)
	if fingerprint == nil {
		t.Fatalf("no fingerprint in %s", said)
	}
	if made := madeKey.FindStringSubmatch(said); made != nil {
		k.ref = made[1]
	}
	signer := root
	signer.t = t
	chain := c.path("chain.pem")
	signer.mayfly("ca", "sign-csr", c.path("issuing.csr.pem"), "--issuer", "root.pem", "--issuer-key", "file:root.key.pem",
		"--name", "Issuing with "+backend+" "+string(a), "--out", chain, "--fingerprint", fingerprint[1])
	c.mayfly(append([]string{"ca", "verify", "chain.pem", "--root", root.path("root.pem")}, k.flags("")...)...)

	// A Mayfly whose issuing key is that one.
	c.mayfly("init", "--dir", "ca", "--issuer", "https://accounts.google.com", "--audience", "sigstore", "--allow", "true")
	c.configure(issuer, k)
	c.mayfly("log", "create", "--config", "ca/mayfly.yaml")
	before := k.count()
	p, err := launch(c.dir, "ca", c.env, c.program, "serve", "--config", "ca/mayfly.yaml")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	at, err := p.serving()
	if err != nil {
		t.Fatal(err)
	}
	c.save("trusted_root.json", at.HTTP+"/trusted_root.json")
	c.save("token", issuer+"/dev/token?email=alice@example.com")
	c.firstList(at.HTTP)
	opened := k.count()
	c.mayfly("request", "--ca", at.HTTP, "--trusted-root", "trusted_root.json", "--token-file", "token", "--output-key", "key.pem", "--output-certificate", "cert.pem")
	if k.signed != nil {
		t.Logf("signatures by the backend: %d to start, %d for the certificate", opened-before, k.count()-opened)
		if k.count()-opened != 1 {
			t.Errorf("%d signatures by the backend for one certificate: the precertificate signing certificate's key should sign the other", k.count()-opened)
		}
	}

	// Second opinions.
	if said := c.run("openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", root.path("root.pem"), "-untrusted", "chain.pem", "cert.pem"); !strings.Contains(said, "cert.pem: OK") {
		t.Errorf("openssl verify: %s", said)
	}
	if said := c.mayfly("cert", "show", "cert.pem", "--trusted-root", "trusted_root.json"); !strings.Contains(said, "verified for code signing") || strings.Contains(said, "not verified") {
		t.Errorf("cert show: %s", said)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
	c.keepsSecret(k.secrets)
	c.leave(backend, a)
}

// TestRootInEveryBackend has the root's key in each backend sign itself and an
// intermediate, by command.
func TestRootInEveryBackend(t *testing.T) {
	t.Parallel()
	for backend, newKey := range backendKeys {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			k := newKey(t, kms.ECDSAP384)
			c := newCommands(t, k.env...)
			args := append([]string{"ca", "init", "--organization", "Example", "--out", "root.pem"}, k.flags("")...)
			if !k.made {
				args = append(args, "--generate", string(k.algo))
			}
			said := c.mayfly(args...)
			if made := madeKey.FindStringSubmatch(said); made != nil {
				k.ref = made[1]
			}
			c.mayfly(append([]string{"ca", "intermediate", "--issuer", "root.pem", "--key", "file:issuing.key.pem", "--generate", "ECDSA-P256", "--out", "chain.pem"}, k.flags("issuer-")...)...)
			c.mayfly("ca", "verify", "chain.pem", "--root", "root.pem", "--key", "file:issuing.key.pem")
			if said := c.run("openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", "root.pem", "chain.pem"); !strings.Contains(said, "chain.pem: OK") {
				t.Errorf("openssl verify: %s", said)
			}
			if record := c.read("chain.record.txt"); !strings.Contains(record, "signed by") || !strings.Contains(record, "certified             file:issuing.key.pem") {
				t.Errorf("the record:\n%s", record)
			}
			c.keepsSecret(k.secrets)
		})
	}
}

func (k backendKey) count() int {
	if k.signed == nil {
		return 0
	}
	return k.signed()
}

// configure puts the chain and the key of a ceremony in the place of those that
// mayfly init made, and the issuer of tokens in that of the example.
func (c commandLine) configure(issuer string, k backendKey) {
	c.t.Helper()
	file := c.path("ca/mayfly.yaml")
	if err := useFreePorts(file); err != nil {
		c.t.Fatal(err)
	}
	text := c.read("ca/mayfly.yaml")
	for _, change := range [][2]string{
		{"  - url: https://accounts.google.com\n", "  - url: " + issuer + "\n    allow_insecure_loopback: true\n"},
		{"      chain: authority/chain.pem\n      key: file:authority/issuing.key.pem\n", "      chain: ../chain.pem\n" + k.yaml()},
	} {
		if !strings.Contains(text, change[0]) {
			c.t.Fatalf("the configuration has no %q:\n%s", change[0], text)
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	for _, name := range []string{"ca/authority/chain.pem", "ca/authority/issuing.key.pem", "ca/authority/root.key.pem", "ca/ctlog", "ca/ctlog.mark"} {
		if err := os.RemoveAll(c.path(name)); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := os.Mkdir(c.path("ca/ctlog"), 0o700); err != nil {
		c.t.Fatal(err)
	}
}

// save fetches a document into a file.
func (c commandLine) save(name, url string) {
	c.t.Helper()
	code, body, err := get(c.t.Context(), url)
	if err == nil && code != 200 {
		err = fmt.Errorf("%d: %s", code, body)
	}
	if err == nil {
		err = os.WriteFile(c.path(name), body, 0o600)
	}
	if err != nil {
		c.t.Fatalf("%s: %v", url, err)
	}
}

// firstList waits for the list of revocations that the issuing key signs beside the start.
func (c commandLine) firstList(ca string) {
	c.t.Helper()
	block, _ := pem.Decode([]byte(c.read("chain.pem")))
	issuing, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for {
		code, _, err := get(ctx, ca+revoke.ListPath+revoke.ID(issuing)+".crl")
		if err == nil && code == http.StatusOK {
			return
		}
		if err == nil {
			err = wait.For(ctx, 20*time.Millisecond)
		}
		if err != nil {
			c.t.Fatalf("no list of revocations: %v", err)
		}
	}
}

// keepsSecret looks for secrets in every file that the commands left.
func (c commandLine) keepsSecret(secrets []string) {
	c.t.Helper()
	err := filepath.WalkDir(c.dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if slices.ContainsFunc(secrets, func(s string) bool { return strings.Contains(string(b), s) }) {
			c.t.Errorf("%s holds a secret", path)
		}
		return err
	})
	if err != nil {
		c.t.Error(err)
	}
}

// leave copies what came out for whoever asked for it.
func (c commandLine) leave(backend string, a kms.Algorithm) {
	c.t.Helper()
	to := os.Getenv("MAYFLY_ISSUANCES")
	if to == "" || c.t.Failed() {
		return
	}
	to = filepath.Join(to, backend+"-"+string(a))
	if err := os.MkdirAll(to, 0o700); err != nil {
		c.t.Fatal(err)
	}
	for _, name := range []string{"trusted_root.json", "key.pem", "cert.pem"} {
		if err := os.WriteFile(filepath.Join(to, name), []byte(c.read(name)), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
}
