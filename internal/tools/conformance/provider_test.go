package conformance

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// startNodeProvider runs the npm oidc-provider. Its forms take any password; claims may
// be a file with those of its tokens for jobs.
func startNodeProvider(t *testing.T, claims ...string) account {
	t.Helper()
	p := start(t, node(t), append([]string{filepath.Join(setting(t, "CONFORMANCE_NODE"), "provider.mjs"), aliceEmail}, claims...)...)
	a := account{client: "sigstore", scope: "openid email", fill: url.Values{"login": {"alice"}, "password": {"any"}}}
	p.until(t, "it says its issuer URL", func() bool {
		for line := range strings.Lines(p.output.String()) {
			if strings.HasPrefix(line, "http://127.0.0.1:") && strings.HasSuffix(line, "\n") {
				a.issuer = strings.TrimSpace(line)
				return true
			}
		}
		return false
	})
	return a
}

// zitadelOP is the name that tools.sh gives to the example server of the
// OpenID-certified library github.com/zitadel/oidc.
const zitadelOP = "zitadel-op-v3.51.17"

// startZitadel runs it. Its issuer ends with a slash, and its ID tokens name
// people by `sub` alone.
func startZitadel(t *testing.T) account {
	t.Helper()
	a := account{
		client: "native", scope: "openid",
		fill: url.Values{"username": {"alice"}, "password": {"a password"}},
	}
	users := filepath.Join(t.TempDir(), "users.json")
	write(t, users, []byte(`{"alice": {"ID": "alice", "Username": "alice", "Password": "a password"}}`))
	port := freePort(t)
	p := startIn(t, []string{"PORT=" + port, "REDIRECT_URI=" + callback, "USERS_FILE=" + users},
		filepath.Join(setting(t, "CONFORMANCE_BIN"), zitadelOP))
	a.issuer = "http://localhost:" + port + "/"
	p.until(t, "it answers", func() bool { return answers(t, a.issuer+".well-known/openid-configuration") })
	return a
}

// freePort is for a program that can't choose one by itself.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// change edits the configuration of a CA in a folder before it first runs.
type change func(t *testing.T, dir, config string) string

// startServe runs `mayfly serve` with a new CA that accepts these issuers
// alone, the entries of a YAML list.
func startServe(t *testing.T, issuers string, changes ...change) *mayfly {
	t.Helper()
	binary, dir := setting(t, "MAYFLY_BIN"), filepath.Join(t.TempDir(), "ca")
	address := "127.0.0.1:" + freePort(t) // which the documents for clients name
	command(t, nil, binary, "init", "--dir", dir, "--organization", "Conformance", "--url", "http://"+address)
	path := filepath.Join(dir, "mayfly.yaml")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	config := strings.Replace(string(content), "\nserver:\n", `
server:
  http_address: `+address+`
  grpc_address: 127.0.0.1:0
  metrics_address: ""
  rate_limits:
    per_address: {rate: 0, burst: 0} # one person asks for thousands of certificates
    per_principal: {rate: 0, burst: 0}
`, 1) + "\nissuers:\n" + issuers
	for _, change := range changes {
		config = change(t, dir, config)
	}
	write(t, path, []byte(config))
	command(t, nil, binary, "check", "--config", path)
	return serve(t, dir, path)
}

// serve runs `mayfly serve` with a configuration, until it is ready.
func serve(t *testing.T, dir, path string) *mayfly {
	t.Helper()
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	scheme := "http://"
	if strings.Contains(string(config), withTLSLine) {
		scheme = "https://"
	}
	p := start(t, setting(t, "MAYFLY_BIN"), "serve", "--config", path)
	m := &mayfly{dir: dir, process: p}
	p.until(t, "it says that it serves", func() bool {
		for line := range strings.Lines(p.output.String()) {
			var record struct{ Msg, HTTP, GRPC string }
			if json.Unmarshal([]byte(line), &record) == nil && record.Msg == "serving" {
				m.HTTP, m.GRPC = scheme+record.HTTP, record.GRPC
				return true
			}
		}
		return false
	})
	p.until(t, "it is ready", func() bool { return answers(t, m.HTTP+"/readyz") })
	m.trustedRoot = m.download(t, t.TempDir(), "/trusted_root.json")
	m.CTLog = m.HTTP + logPath(t, string(config))
	return m
}

// logPath is where below the CA its embedded log is served: the path of its URL.
func logPath(t *testing.T, config string) string {
	t.Helper()
	for line := range strings.Lines(config) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "url: "); ok && strings.Contains(text, "/ctlog/") {
			return text[strings.Index(text, "/ctlog/"):]
		}
	}
	return ""
}

// testOIDCProvider and testZitadel have Mayfly accept identities that foreign,
// certified OpenID providers vouch for, over REST and gRPC.
func testOIDCProvider(t *testing.T, _ *mayfly, _ *timestampAuthority) {
	testProvider(t, startNodeProvider(t), aliceEmail, "alice@", "mallory@", `
    type: email
    allow: principal.san == "`+aliceEmail+`" && claims.email_verified`)
}

func testZitadel(t *testing.T, _ *mayfly, _ *timestampAuthority) {
	testProvider(t, startZitadel(t), "alice!people.example.com", `"alice"`, `"mallory"`, `
    type: username
    subject_domain: people.example.com
    allow: principal.subject in ["alice", "mallory"] && claims.amr == ["pwd"]`)
}

// testProvider issues certificates to the account under a name, and none when
// its token was changed.
func testProvider(t *testing.T, alice account, name, before, after, entry string) {
	m := startServe(t, issuerEntry(alice, entry))
	binary, dir := setting(t, "MAYFLY_BIN"), t.TempDir()
	idToken := func(t *testing.T) string {
		t.Helper()
		token, err := alice.token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for route, endpoint := range map[string][]string{"rest": {"--ca", m.HTTP}, "grpc": {"--grpc", m.GRPC}} {
		t.Run(route, func(t *testing.T) {
			token, certificate := filepath.Join(dir, route+".token"), filepath.Join(dir, route+".crt")
			write(t, token, []byte(idToken(t)))
			command(t, nil, binary, append([]string{
				"request", "--token-file", token, "--trusted-root", m.trustedRoot,
				"--output-key", filepath.Join(dir, route+".key"), "--output-certificate", certificate,
			}, endpoint...)...)
			said := command(t, nil, binary, "cert", "show", "--trusted-root", m.trustedRoot, certificate)
			for _, want := range []string{name, alice.issuer} {
				if !strings.Contains(said, want) {
					t.Errorf("the certificate does not say %s:\n%s", want, said)
				}
			}
		})
	}
	t.Run("refuses a changed token", func(t *testing.T) {
		token := filepath.Join(dir, "changed.token")
		parts := strings.Split(idToken(t), ".")
		claims, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.ReplaceAll(claims, []byte(before), []byte(after))
		if bytes.Equal(changed, claims) {
			t.Fatalf("no %s in %s", before, claims)
		}
		parts[1] = base64.RawURLEncoding.EncodeToString(changed)
		write(t, token, []byte(strings.Join(parts, ".")))
		said, err := attempt(t, nil, binary, "request", "--ca", m.HTTP, "--token-file", token,
			"--trusted-root", m.trustedRoot, "--output-key", filepath.Join(dir, "changed.key"),
			"--output-certificate", filepath.Join(dir, "changed.crt"))
		const refused = 3 // the exit code of a refusal by the CA
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != refused {
			t.Errorf("ended with %v, want exit code %d:\n%s", err, refused, said)
		}
	})
}

// asIssuer is the entry that accepts the development issuer's Alice.
func (m *mayfly) asIssuer() string {
	return issuerEntry(account{issuer: m.Issuer, client: "sigstore"}, `
    type: email
    allow: principal.san == "`+aliceEmail+`"`)
}

// issuerEntry is the configuration that accepts the accounts of a provider.
func issuerEntry(a account, more string) string {
	return `
  - url: ` + a.issuer + `
    audiences: [` + a.client + `]
    allow_insecure_loopback: true` + more + "\n"
}
