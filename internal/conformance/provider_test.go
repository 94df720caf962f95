package conformance

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const callback = "http://127.0.0.1/callback"

// foreignToken has somebody log in at a running oidc-provider by the
// authorization code flow with PKCE, in a browser without a window, and answers
// with the ID token.
func foreignToken(t *testing.T, issuer string) string {
	t.Helper()
	var metadata struct {
		Issuer                string `json:"issuer"`
		AuthorizationEndpoint string `json:"authorization_endpoint"`
		TokenEndpoint         string `json:"token_endpoint"`
	}
	if err := json.Unmarshal(get(t, issuer+"/.well-known/openid-configuration"), &metadata); err != nil {
		t.Fatal(err)
	}
	if metadata.Issuer != issuer {
		t.Fatalf("the provider calls itself %s, not %s", metadata.Issuer, issuer)
	}

	verifier, state := rand.Text()+rand.Text(), rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	code := logIn(t, metadata.AuthorizationEndpoint+"?"+url.Values{
		"client_id":             {"sigstore"},
		"response_type":         {"code"},
		"redirect_uri":          {callback},
		"scope":                 {"openid email"},
		"state":                 {state},
		"nonce":                 {rand.Text()},
		"code_challenge":        {base64.RawURLEncoding.EncodeToString(challenge[:])},
		"code_challenge_method": {"S256"},
	}.Encode(), state)

	response, err := http.PostForm(metadata.TokenEndpoint, url.Values{
		"grant_type":    {"authorization_code"},
		"client_id":     {"sigstore"},
		"code":          {code},
		"redirect_uri":  {callback},
		"code_verifier": {verifier},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct {
		IDToken string `json:"id_token"`
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || json.Unmarshal(body, &answer) != nil || answer.IDToken == "" {
		t.Fatalf("no ID token: %s %v %s", response.Status, err, body)
	}
	return answer.IDToken
}

// logIn follows the provider's pages, filling in its login and consent forms,
// until it redirects to the callback; the answer is the code.
func logIn(t *testing.T, address, state string) string {
	t.Helper()
	cookies, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: cookies, CheckRedirect: func(request *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(request.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	forms := []url.Values{
		{"prompt": {"login"}, "login": {"alice"}, "password": {"any"}},
		{"prompt": {"consent"}},
	}
	response, err := browser.Get(address)
	for {
		if err != nil {
			t.Fatal(err)
		}
		page, readErr := io.ReadAll(response.Body)
		response.Body.Close()
		if readErr != nil {
			t.Fatal(readErr)
		}
		if location, redirected := response.Header["Location"]; redirected {
			target, parseErr := url.Parse(location[0])
			if parseErr != nil {
				t.Fatal(parseErr)
			}
			if got := target.Query().Get("state"); got != state {
				t.Fatalf("state %q came back as %q: %s", state, got, location[0])
			}
			return target.Query().Get("code")
		}
		if response.StatusCode != http.StatusOK || len(forms) == 0 {
			t.Fatalf("the provider answered %s: %s", response.Status, page)
		}
		response, err = browser.PostForm(response.Request.URL.String(), forms[0])
		forms = forms[1:]
	}
}

// startProvider runs the npm oidc-provider and answers with its issuer URL.
func startProvider(t *testing.T) string {
	t.Helper()
	p := start(t, node(t), filepath.Join(setting(t, "CONFORMANCE_NODE"), "provider.mjs"), aliceEmail)
	var issuer string
	p.until(t, "it says its issuer URL", func() bool {
		for line := range strings.Lines(p.output.String()) {
			if strings.HasPrefix(line, "http://127.0.0.1:") && strings.HasSuffix(line, "\n") {
				issuer = strings.TrimSpace(line)
				return true
			}
		}
		return false
	})
	return issuer
}

// startServe runs `mayfly serve` with a new CA that accepts this issuer alone.
func startServe(t *testing.T, issuer string) *mayfly {
	t.Helper()
	binary, dir := setting(t, "MAYFLY_BIN"), filepath.Join(t.TempDir(), "ca")
	command(t, nil, binary, "init", "--dir", dir, "--organization", "Conformance")
	path := filepath.Join(dir, "mayfly.yaml")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The development issuer is https everywhere but here.
	config := strings.Replace(string(content), "\nserver:\n", `
server:
  http_address: 127.0.0.1:0
  grpc_address: 127.0.0.1:0
  metrics_address: ""
`, 1) + `
issuers:
  - url: ` + issuer + `
    type: email
    audiences: [sigstore]
    allow: "true"
    allow_insecure_loopback: true
`
	write(t, path, []byte(config))
	command(t, nil, binary, "check", "--config", path)

	p := start(t, binary, "serve", "--config", path)
	m := &mayfly{endpoints: endpoints{Issuer: issuer}, dir: dir}
	p.until(t, "it says that it serves", func() bool {
		for line := range strings.Lines(p.output.String()) {
			var record struct{ Msg, HTTP, GRPC string }
			if json.Unmarshal([]byte(line), &record) == nil && record.Msg == "serving" {
				m.HTTP, m.GRPC = "http://"+record.HTTP, record.GRPC
				return true
			}
		}
		return false
	})
	p.until(t, "it is ready", func() bool { return answers(t, m.HTTP+"/readyz") })
	m.trustedRoot = m.download(t, t.TempDir(), "/trusted_root.json")
	return m
}

// testOIDCProvider has Mayfly accept an identity that a foreign, certified
// OpenID provider vouches for, over REST and gRPC.
func testOIDCProvider(t *testing.T, _ *mayfly, _ *timestampAuthority) {
	issuer := startProvider(t)
	m := startServe(t, issuer)
	dir := t.TempDir()
	for name, endpoint := range map[string][]string{"rest": {"--ca", m.HTTP}, "grpc": {"--grpc", m.GRPC}} {
		t.Run(name, func(t *testing.T) {
			token, certificate := filepath.Join(dir, name+".token"), filepath.Join(dir, name+".crt")
			write(t, token, []byte(foreignToken(t, issuer)))
			command(t, nil, setting(t, "MAYFLY_BIN"), append([]string{
				"request", "--token-file", token, "--trusted-root", m.trustedRoot,
				"--output-key", filepath.Join(dir, name+".key"), "--output-certificate", certificate,
			}, endpoint...)...)
			said := command(t, nil, setting(t, "MAYFLY_BIN"), "cert", "show", "--trusted-root", m.trustedRoot, certificate)
			for _, want := range []string{aliceEmail, issuer} {
				if !strings.Contains(said, want) {
					t.Errorf("the certificate does not say %s:\n%s", want, said)
				}
			}
		})
	}
	t.Run("refuses a changed token", func(t *testing.T) {
		token := filepath.Join(dir, "changed.token")
		parts := strings.Split(foreignToken(t, issuer), ".")
		claims, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		parts[1] = base64.RawURLEncoding.EncodeToString(bytes.ReplaceAll(claims, []byte("alice@"), []byte("mallory@")))
		write(t, token, []byte(strings.Join(parts, ".")))
		said, err := attempt(t, nil, setting(t, "MAYFLY_BIN"), "request", "--ca", m.HTTP, "--token-file", token,
			"--trusted-root", m.trustedRoot, "--output-key", filepath.Join(dir, "changed.key"),
			"--output-certificate", filepath.Join(dir, "changed.crt"))
		const refused = 3 // the exit code of a refusal by the CA
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != refused {
			t.Errorf("ended with %v, want exit code %d:\n%s", err, refused, said)
		}
	})
}
