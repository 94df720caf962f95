package conformance

import (
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// startRekor runs Rekor v1 on the Trillian that trillian.sh keeps.
func startRekor(t *testing.T) *rekor {
	t.Helper()
	const host = "127.0.0.1"
	at, trillian, err := net.SplitHostPort(setting(t, "TRILLIAN_RPC"))
	if err != nil {
		t.Fatal(err)
	}
	port, redis := freePort(t), freePort(t)
	// The index of searches, by which gitsign finds a commit's entry.
	index := start(t, "redis-server", "--bind", host, "--port", redis, "--save", "", "--dir", t.TempDir())
	index.until(t, "it is ready", func() bool { return strings.Contains(index.output.String(), "Ready to accept connections") })
	r := &rekor{url: "http://" + host + ":" + port, version: 1, key: filepath.Join(t.TempDir(), "rekor.pub")}
	p := start(t, tool(t, "rekor-server-v1.5.4"), "serve", "--host", host, "--port", port, "--scheme", "http",
		"--rekor_server.address", host, "--rekor_server.hostname", host, "--rekor_server.signer", "memory",
		"--trillian_log_server.address", at, "--trillian_log_server.port", trillian,
		"--redis_server.address", host, "--redis_server.port", redis)
	p.until(t, "it has a key", func() bool { return answers(t, r.url+"/api/v1/log/publicKey") })
	write(t, r.key, get(t, r.url+"/api/v1/log/publicKey"))
	return r
}

// TestRekorV1 has the clients work that want a Rekor v1 beside Mayfly, first of all
// gitsign. run.sh starts it beside a Trillian.
func TestRekorV1(t *testing.T) {
	issuer, log := startDev(t), startRekor(t)
	m := startServe(t, issuer.asIssuer())
	m.Issuer = issuer.Issuer
	d := m.trusts(t, nil, log)
	people := newSigners(t, 1)
	m.publish(t, people.private, append([]string{"init", "--threshold", "1"}, people.named()...)...)
	t.Run("gitsign", func(t *testing.T) { testGitsign(t, m, log) })
	t.Run("sigstore-python-rekor-v1", func(t *testing.T) { sigstorePython.signsAndVerifies(t, m, d) })
}

// testGitsign signs a commit and a tag. It verifies with what TUF says; to sign it
// wants keys and chain in files, since it asks its older client of TUF for them, which
// `gitsign initialize` leaves out where there is a trusted root.
func testGitsign(t *testing.T, m *mayfly, log *rekor) {
	binary, dir := tool(t, "gitsign-v0.14.0"), t.TempDir()
	chain, logKey := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "ctlog.pub")
	write(t, chain, get(t, m.HTTP+"/api/v1/rootCert"))
	write(t, logKey, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: m.logKey(t)}))
	settings := filepath.Join(dir, "gitconfig")
	write(t, settings, []byte("[user]\nname = Alice\nemail = "+aliceEmail+"\n[gpg]\nformat = x509\n[gpg \"x509\"]\nprogram = "+
		binary+"\n[commit]\ngpgsign = true\n[tag]\ngpgsign = true\n"))
	said := filepath.Join(dir, "gitsign.log") // git shows nothing of it
	t.Cleanup(func() {
		if content, err := os.ReadFile(said); t.Failed() {
			t.Logf("gitsign said %s (%v)", content, err)
		}
	})
	environment := []string{
		"HOME=" + dir, "SIGSTORE_NO_CACHE=false", "GIT_CONFIG_GLOBAL=" + settings, "GIT_CONFIG_SYSTEM=" + os.DevNull,
		"GITSIGN_FULCIO_URL=" + m.HTTP, "GITSIGN_REKOR_URL=" + log.url, "GITSIGN_FULCIO_ROOT=" + chain,
		"SIGSTORE_CT_LOG_PUBLIC_KEY_FILE=" + logKey, "SIGSTORE_REKOR_PUBLIC_KEY=" + log.key,
		"GITSIGN_LOG=" + said, "GITSIGN_TOKEN_PROVIDER=envvar", "SIGSTORE_ID_TOKEN=" + m.token(t),
	}
	first := m.download(t, t.TempDir(), "/tuf/1.root.json")
	command(t, environment, binary, "initialize", "--mirror", m.HTTP+"/tuf", "--root", first)
	repository := filepath.Join(dir, "repository")
	git := func(args ...string) {
		t.Helper()
		command(t, environment, "git", append([]string{"-C", repository}, args...)...)
	}
	verify := func(what, name, object string) (string, error) {
		t.Helper()
		args := append([]string{"--chdir=" + repository, binary, what}, m.signedAs(name)...)
		return attempt(t, environment, "env", append(args, object)...)
	}
	command(t, environment, "git", "init", "--quiet", repository)
	git("commit", "--quiet", "--allow-empty", "--message", "signed")
	git("tag", "--message", "signed", "v1")
	for what, object := range map[string]string{"verify": "HEAD", "verify-tag": "v1"} {
		if output, err := verify(what, aliceEmail, object); err != nil {
			t.Errorf("%s %s: %v\n%s", what, object, err, output)
		}
		if output, err := verify(what, "mallory@example.com", object); err == nil {
			t.Errorf("%s %s: accepted for another name: %s", what, object, output)
		}
	}
	git("commit", "--quiet", "--allow-empty", "--message", "not signed", "--no-gpg-sign")
	if output, err := verify("verify", aliceEmail, "HEAD"); err == nil {
		t.Errorf("accepted without a signature: %s", output)
	}
}
