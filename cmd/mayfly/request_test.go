package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client/clienttest"
)

func aliceToken(t *testing.T) string {
	t.Helper()
	return clienttest.Token(t, map[string]any{"iss": "https://issuer.example.com", "sub": "alice", "email": "alice@example.com"})
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// outputs are the flags that put the answer into dir.
func outputs(dir string) []string {
	return []string{"--output-key", filepath.Join(dir, "k.pem"), "--output-certificate", filepath.Join(dir, "c.pem")}
}

// steady replaces what differs from run to run.
func steady(ca *clienttest.CA, dir, text string) string {
	text = strings.NewReplacer(ca.URL, "http://CA", dir, "DIR").Replace(text)
	for pattern, with := range map[string]string{
		`SHA-256 [0-9a-f]{64}`:                 "SHA-256 DIGEST",
		`serial( +)[0-9a-f]+`:                  "serial${1}SERIAL",
		`log [A-Za-z0-9+/]{43}=`:               "log LOGID",
		`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC`:   "TIME",
		`ends \d+ (minutes|seconds) from now`:  "ends SPAN from now",
		`validity( +)TIME to TIME \(\d+ \w+\)`: "validity${1}TIME to TIME (10 minutes)",
	} {
		text = regexp.MustCompile(pattern).ReplaceAllString(text, with)
	}
	return text
}

func TestRequest(t *testing.T) {
	running := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, running) }) // after the CA's own clean-up
	ca := clienttest.New(t)
	dir := t.TempDir()
	args := append([]string{"request", "--ca", ca.URL, "--token-stdin"}, outputs(dir)...)
	code, out, errText := mayfly(t, aliceToken(t)+"\n", args...)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, errText)
	}
	golden(t, "request.out", steady(ca, dir, out))
	golden(t, "request.err", steady(ca, dir, errText))
	info, err := os.Stat(filepath.Join(dir, "k.pem"))
	if err != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("the key: %v, %v", info, err)
	}

	// A second run replaces nothing.
	before := ca.Requests()
	code, _, errText = mayfly(t, aliceToken(t), args...)
	if code != exitFailed || !strings.Contains(errText, "k.pem exists already") || ca.Requests() != before {
		t.Errorf("second run: code %d, %s", code, errText)
	}
	if code, _, errText = mayfly(t, aliceToken(t), append(args, "--force")...); code != exitOK {
		t.Errorf("--force: code %d, %s", code, errText)
	}
}

// TestAmbientTokensGoToNamedCAs: a token of the environment isn't sent to whoever
// listens on the default port.
func TestAmbientTokensGoToNamedCAs(t *testing.T) {
	ca := clienttest.New(t)
	dir := t.TempDir()
	for _, name := range []string{"GITLAB_CI", "GITHUB_ACTIONS", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"} {
		t.Setenv(name, "")
	}
	t.Setenv("SIGSTORE_ID_TOKEN", aliceToken(t))
	trust := writeFile(t, filepath.Join(dir, "root.json"), string(ca.TrustedRoot()))
	args := append([]string{"request", "--force", "--trusted-root", trust}, outputs(dir)...)
	code, _, errText := mayfly(t, "", args...)
	if code == exitOK || !strings.Contains(errText, "no CA was named to send it to (--ca or MAYFLY_CA)") || strings.Contains(errText, "asking the CA") {
		t.Errorf("no CA was named: code %d, %s", code, errText)
	}
	if code, _, errText := mayfly(t, "", append(args, "--ca", ca.URL)...); code != exitOK {
		t.Errorf("--ca: code %d, %s", code, errText)
	}
	t.Setenv(caEnv, ca.URL)
	if code, _, errText := mayfly(t, "", args...); code != exitOK {
		t.Errorf("%s: code %d, %s", caEnv, code, errText)
	}
	t.Setenv(caEnv, "http://127.0.0.1:1")
	if code, _, errText := mayfly(t, "", append(args, "--ca", ca.URL)...); code != exitOK {
		t.Errorf("--ca beside %s: code %d, %s", caEnv, code, errText)
	}
}

func TestRequestJSONAndCertShow(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t)
	dir := t.TempDir()
	root := writeFile(t, filepath.Join(dir, "root.json"), string(ca.TrustedRoot()))
	token := writeFile(t, filepath.Join(dir, "token"), aliceToken(t))
	for _, extra := range [][]string{{"--key-type", "ed25519"}, {"--csr", "--force"}} {
		args := append(append([]string{"request", "--ca", ca.URL, "--token-file", token, "--trusted-root", root, "--json"}, outputs(dir)...), extra...)
		code, out, errText := mayfly(t, "", args...)
		if code != exitOK {
			t.Fatalf("exit code %d: %s", code, errText)
		}
		var got outcome
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		if got.Identity[0].Value != "alice@example.com" || got.Subject != "alice" || len(got.SCTs) != 1 || !got.SCTs[0].Verified ||
			strings.Count(got.Chain, "BEGIN CERTIFICATE") != 3 || got.TrustedRoot != root || strings.Contains(out+errText, "PRIVATE KEY") {
			t.Errorf("got %+v", got)
		}
	}
	file := filepath.Join(dir, "c.pem")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"cert", "show", file}, exitOK, "not verified: no trusted root was given"},
		{[]string{"cert", "show", file, "--trusted-root", root}, exitOK, "verified for code signing"},
		{[]string{"cert", "show", "--json", file, "--trusted-root", root}, exitOK, `"verified": true`},
		{[]string{"cert", "show", file, "--trusted-root", writeFile(t, filepath.Join(dir, "other.json"), string(clienttest.New(t).TrustedRoot()))}, exitUnverified, "does not chain"},
		{[]string{"cert", "show", filepath.Join(dir, "k.pem")}, exitFailed, "holds no certificate"},
		{[]string{"cert", "show", filepath.Join(dir, "nothing")}, exitFailed, "no such file"},
		{[]string{"cert", "show", file, "--trusted-root", file}, exitFailed, "trusted_root.json"},
	} {
		code, out, errText := mayfly(t, "", c.args...)
		if code != c.code || !strings.Contains(out+errText, c.want) {
			t.Errorf("%v: code %d\n%s%s", c.args, code, out, errText)
		}
	}
	chain, err := os.ReadFile(file) // #nosec G304 -- a test's own file
	if err != nil {
		t.Fatal(err)
	}
	if code, out, _ := mayfly(t, string(chain), "cert", "show", "-"); code != exitOK || !strings.Contains(out, "alice@example.com (email)") {
		t.Errorf("standard input: code %d, %s", code, out)
	}
}

func TestRequestExitCodes(t *testing.T) {
	t.Parallel()
	refuse := func(status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			w.Header().Set("X-Request-Id", "id-1")
			w.WriteHeader(status)
			_, _ = fmt.Fprint(w, `{"code":16,"message":"the audience is wrong","details":[{"reason":"TOKEN_AUDIENCE"}]}`)
			return true
		}
	}
	for name, c := range map[string]struct {
		knobs clienttest.Knobs
		args  []string
		code  int
		want  string
	}{
		"refused":            {clienttest.Knobs{Answer: refuse(401)}, nil, exitRefused, "(HTTP 401, TOKEN_AUDIENCE): the audience is wrong\n  request id id-1\n"},
		"unavailable":        {clienttest.Knobs{Answer: refuse(503)}, nil, exitUnavailable, "fix: try again later"},
		"rate limited":       {clienttest.Knobs{Answer: refuse(429)}, nil, exitUnavailable, "HTTP 429"},
		"unverified":         {clienttest.Knobs{BadSCT: true}, nil, exitUnverified, "no SCT of the certificate could be verified"},
		"another key":        {clienttest.Knobs{OtherKey: true}, nil, exitUnverified, "another key"},
		"unlogged":           {clienttest.Knobs{NoSCT: true}, nil, exitUnverified, "--accept-unlogged"},
		"accepted":           {clienttest.Knobs{NoSCT: true}, []string{"--accept-unlogged"}, exitOK, ""},
		"key type":           {clienttest.Knobs{}, []string{"--key-type", "dsa"}, exitUsage, "p256"},
		"plaintext":          {clienttest.Knobs{}, []string{"--ca", "http://ca.example.com"}, exitUsage, "without encryption"},
		"no trust":           {clienttest.Knobs{}, []string{"--ca", "https://ca.example.com"}, exitUsage, "--trusted-root"},
		"gRPC without trust": {clienttest.Knobs{}, []string{"--grpc", "ca.example.com:443"}, exitUsage, "--trusted-root"},
		"gRPC nobody":        {clienttest.Knobs{}, []string{"--grpc", "127.0.0.1:1", "--timeout", "300ms"}, exitUnavailable, "the CA"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := clienttest.New(t)
			ca.Set(c.knobs)
			dir := t.TempDir()
			token := aliceToken(t)
			args := append(append([]string{"request", "--ca", ca.URL, "--token-stdin"}, outputs(dir)...), c.args...)
			code, out, errText := mayfly(t, token, args...)
			if code != c.code || !strings.Contains(errText, c.want) {
				t.Errorf("exit code %d, %s", code, errText)
			}
			if strings.Contains(out+errText, strings.Split(token, ".")[1]) {
				t.Error("the token is printed")
			}
			if entries, err := os.ReadDir(dir); err != nil || (code != exitOK && len(entries) != 0) {
				t.Errorf("files are left: %v, %v", entries, err)
			}
		})
	}
}

func TestRequestSaysWhichSourcesItTried(t *testing.T) {
	for _, name := range []string{client.SigstoreEnv, "GITLAB_CI", "GITHUB_ACTIONS", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"} {
		t.Setenv(name, "")
	}
	ca := clienttest.New(t)
	dir := t.TempDir()
	args := append([]string{"request", "--ca", ca.URL}, outputs(dir)...)
	code, _, errText := mayfly(t, "", args...)
	if code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	golden(t, "no-token.err", steady(ca, dir, errText))

	t.Setenv(client.SigstoreEnv, aliceToken(t))
	code, _, errText = mayfly(t, "", args...)
	if code != exitOK {
		t.Errorf("exit code %d: %s", code, errText)
	}
	golden(t, "env-token.err", steady(ca, dir, errText))
}

// runner is GitHub's token service for a job: it gives anybody a token, and its
// environment says where it is.
func runner(t *testing.T) (asked func() string) {
	t.Helper()
	audience := ""
	token := aliceToken(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		audience = r.URL.Query().Get("audience")
		_, _ = fmt.Fprintf(w, `{"value":%q}`, token)
	}))
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"GITLAB_CI": "", client.SigstoreEnv: "", "GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://github.com",
		"ACTIONS_ID_TOKEN_REQUEST_URL": server.URL, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "secret",
	} {
		t.Setenv(name, value)
	}
	return func() string { return audience }
}

// TestAudienceOfARequest: a token is asked for --client-id, for the CA where it names
// itself, or for every Sigstore service; never for what else a CA names.
func TestAudienceOfARequest(t *testing.T) {
	asked := runner(t)
	ca := clienttest.New(t)
	const github = "https://token.actions.githubusercontent.com"
	to, err := url.Parse(ca.URL)
	if err != nil {
		t.Fatal(err)
	}
	gateway := httptest.NewServer(http.StripPrefix("/ca", httputil.NewSingleHostReverseProxy(to))) // a host shared by path
	t.Cleanup(gateway.Close)
	for name, c := range map[string]struct {
		issuer, audience, server string
		args                     []string
		want, says               string
	}{
		"nothing named":           {github, "", "https://github.com", nil, "sigstore", ""},
		"of every service":        {github, "sigstore", "https://github.com", nil, "sigstore", ""},
		"its own":                 {github, ca.URL, "https://github.com", nil, ca.URL, "audience " + ca.URL + ", which the CA names as its own"},
		"below its own":           {github, ca.URL + "/ca", "", nil, ca.URL + "/ca", "names as its own"},
		"a third service":         {github, "sts.amazonaws.com", "https://github.com", nil, "sigstore", `the CA names "sts.amazonaws.com" for this issuer: where that is right, give --client-id sts.amazonaws.com`},
		"a host that looks alike": {github, ca.URL + ".example.com", "https://github.com", nil, "sigstore", "give --client-id"},
		"itself at a gateway":     {github, gateway.URL + "/ca", "", []string{"--ca", gateway.URL + "/ca/"}, gateway.URL + "/ca", "as its own"},
		"beside it, by path":      {github, gateway.URL + "/other", "", []string{"--ca", gateway.URL + "/ca"}, "sigstore", "give --client-id"},
		"looks alike, by path":    {github, gateway.URL + "/ca2", "", []string{"--ca", gateway.URL + "/ca"}, "sigstore", "give --client-id"},
		"above it, by path":       {github, gateway.URL, "", []string{"--ca", gateway.URL + "/ca"}, "sigstore", "give --client-id"},
		"out of its path":         {github, gateway.URL + "/ca/%2e%2e/other", "", []string{"--ca", gateway.URL + "/ca"}, "sigstore", "give --client-id"},
		"told by the person":      {github, "sts.amazonaws.com", "https://github.com", []string{"--client-id", "mine"}, "mine", ""},
		"another issuer's":        {"https://login.example.com", ca.URL, "https://github.com", nil, "sigstore", ""},
		"a company's own GitHub":  {"https://github.example.com/_services/token", ca.URL, "https://github.example.com", nil, ca.URL, "as its own"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GITHUB_SERVER_URL", c.server)
			ca.Set(clienttest.Knobs{Issuers: []string{c.issuer}, Audience: c.audience})
			code, _, errText := mayfly(t, "", slices.Concat([]string{"request", "--ca", ca.URL}, outputs(t.TempDir()), c.args)...)
			if code != exitOK || asked() != c.want || !strings.Contains(errText, c.says) || c.says == "" && strings.Contains(errText, "audience") {
				t.Errorf("code %d, asked for %q, said\n%s", code, asked(), errText)
			}
		})
	}
	t.Setenv("GITLAB_CI", "true")
	t.Setenv("CI_SERVER_URL", "https://gitlab.example.com")
	t.Setenv("ACTIONS_ID_TOKEN_REQUEST_URL", "")
	ca.Set(clienttest.Knobs{Issuers: []string{"https://gitlab.example.com"}, Audience: "https://ca.example.com"})
	if code, _, errText := mayfly(t, "", append([]string{"request", "--ca", ca.URL}, outputs(t.TempDir())...)...); code != exitFailed || !strings.Contains(errText, "{aud: https://ca.example.com}") {
		t.Errorf("GitLab without a token: code %d, %s", code, errText)
	}
}

// TestServiceNamesItsAudience: what the service says of its issuers is what the client reads.
func TestServiceNamesItsAudience(t *testing.T) {
	asked := runner(t)
	dir := workshop(t)
	shell(t, dir, "bin/mayfly init --dir ca --issuer https://accounts.google.com --allow true")
	file := filepath.Join(dir, "ca", configName)
	shell(t, dir, `sed -i 's|url: https://accounts.google.com|url: https://token.actions.githubusercontent.com|; s/type: email/type: ci-provider\n    preset: github/' ca/mayfly.yaml`)
	if err := useFreePorts(file); err != nil {
		t.Fatal(err)
	}
	p := start(t, dir, "serve", "serve", "--config", file)
	e, err := p.serving()
	if err != nil {
		t.Fatal(err)
	}
	code, _, errText := mayfly(t, "", append([]string{"request", "--ca", e.HTTP}, outputs(dir)...)...)
	if code != exitRefused || asked() != "sigstore" || !strings.Contains(errText, `the CA names "http://127.0.0.1:5555" for this issuer`) {
		t.Errorf("code %d, asked for %q, said\n%s", code, asked(), errText)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

// Only a CA on this machine may name the issuer to log in at, and only when it
// has a single one.
func TestIssuerToLogInAt(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t)
	for _, c := range []struct {
		accept []string
		code   int
		want   string
	}{
		{nil, exitUsage, "give --issuer URL"},
		{[]string{"https://one.example.com", "https://two.example.com"}, exitUsage, "the CA accepts:\n  https://one.example.com\n  https://two.example.com\n"},
		{[]string{"http://issuer.example.com"}, exitUsage, "without encryption"},
		{[]string{ca.URL}, exitUnavailable, "issuer " + ca.URL + ", the one that the CA accepts"},
	} {
		ca.Set(clienttest.Knobs{Issuers: c.accept})
		args := append([]string{"request", "--ca", ca.URL, "--device"}, outputs(t.TempDir())...)
		code, _, errText := mayfly(t, "", args...)
		if code != c.code || !strings.Contains(errText, c.want) {
			t.Errorf("%v: exit code %d, %s", c.accept, code, errText)
		}
	}
}
