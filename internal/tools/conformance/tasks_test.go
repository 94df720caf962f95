package conformance

import (
	"crypto"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
)

// pageLaptops signs by logins in Chromium, with cosign and with mayfly.
func pageLaptops(t *testing.T, blocks map[string]string) {
	m := startDev(t)
	opens := browser(t)
	d := newDesk(t, m)
	d.environment = append(d.environment, strings.Replace(d.environment[0], "PATH=", "PATH="+filepath.Dir(opens)+":", 1))
	write(t, filepath.Join(d.dir, "page.sh"), []byte(d.here.Replace(blocks["laptop"])))
	said := d.run(t, "script --quiet --return --command 'bash -eux page.sh' /dev/null") // at a terminal, or cosign shows a code
	for _, want := range []string{"Verified OK", "again.json", "  root       1, valid to "} {
		if !strings.Contains(said, want) {
			t.Errorf("the commands don't say %q:\n%s", want, said)
		}
	}
	d.run(t, "cosign verify-blob --bundle again.json --insecure-ignore-tlog --use-signed-timestamps "+
		"--certificate-identity alice@example.com --certificate-oidc-issuer https://accounts.google.com hello.txt")
}

// vendorClaims are the claims of a vendor's job (identity/presets/testdata), some of them changed.
func vendorClaims(t *testing.T, vendor string, changed map[string]string) string {
	t.Helper()
	var claims map[string]any
	if err := json.Unmarshal(readFile(t, filepath.Join("..", "..", "..", "identity", "presets", "testdata", vendor+".json")), &claims); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"iss", "aud", "iat", "nbf", "exp", "jti"} {
		delete(claims, name)
	}
	for name, value := range changed {
		claims[name] = value
	}
	content, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "claims.json")
	write(t, file, content)
	return file
}

var servedAt = regexp.MustCompile(`http_address: (127\.0\.0\.1:[0-9]+)`)

// startForJobs is a Mayfly with the issuers of a page, and the trust root published. A
// foreign OpenID provider stands for the vendor.
func startForJobs(t *testing.T, config, claims string) *mayfly {
	t.Helper()
	vendor := startNodeProvider(t, claims)
	entry := regexp.MustCompile(`url: \S+`).ReplaceAllString(strings.TrimPrefix(config, "issuers:\n"), "url: "+vendor.issuer)
	m := startServe(t, entry+"    allow_insecure_loopback: true\n", func(_ *testing.T, _, config string) string {
		return strings.ReplaceAll(config, "https://ca.example.com", "http://"+servedAt.FindStringSubmatch(config)[1])
	})
	m.Issuer = vendor.issuer
	people := newSigners(t, 1)
	m.publish(t, people.private, append([]string{"init", "--threshold", "1"}, people.named()...)...)
	return m
}

// atRunner is the desk of a job's runner, with what it has built.
func atRunner(t *testing.T, m *mayfly, environment ...string) *desk {
	t.Helper()
	sum := command(t, nil, "sha256sum", m.download(t, t.TempDir(), "/tuf/1.root.json"))
	d := newDesk(t, m, append(environment, "CI=true", "MAYFLY_ROOT="+strings.Fields(sum)[0])...)
	write(t, filepath.Join(d.dir, "app"), []byte("built by "+t.Name()))
	return d
}

// verifies runs a page's verification, twice: of what cosign has signed, and of what
// mayfly signs then.
func (d *desk) verifies(t *testing.T, blocks map[string]string) {
	t.Helper()
	d.run(t, "cosign initialize --mirror https://ca.example.com/tuf --root 1.root.json")
	d.holds(t, "Verified OK", blocks["verify"])
	d.run(t, "rm app.tar.gz.sigstore.json\n"+blocks["mayfly"])
	d.holds(t, "Verified OK", blocks["verify"])
	if said, err := d.attempt(t, strings.Replace(blocks["verify"], "refs/", "reds/", 1)); err == nil {
		t.Errorf("accepted for another ref: %s", said)
	}
}

// pageGitHub has actionlint read the workflow, and runs its steps as a runner does: with
// GitHub's environment variables, and a service that gives tokens.
func pageGitHub(t *testing.T, blocks map[string]string) {
	var workflow struct {
		Jobs map[string]struct {
			Steps []struct {
				Uses, Run string
				With, Env map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(blocks["workflow"]), &workflow); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "release.yml")
	write(t, file, []byte(blocks["workflow"]))
	pins, err := filepath.Abs("../pins")
	if err != nil {
		t.Fatal(err)
	}
	command(t, []string{"HOME=" + os.Getenv("HOME")}, "go", "-C", pins, "tool", "actionlint", file)

	const ref = "refs/tags/v1.0.0"
	m := startForJobs(t, blocks["config"], vendorClaims(t, "github", map[string]string{
		"ref": ref, "job_workflow_ref": "octo-org/octo-repo/.github/workflows/release.yml@" + ref,
	}))
	d := atRunner(t, m, "GITHUB_ACTIONS=true", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=job",
		"ACTIONS_ID_TOKEN_REQUEST_URL="+m.Issuer+"/job/token?api-version=2.0")
	for _, step := range workflow.Jobs["sign"].Steps {
		if version, sets := step.With["cosign-release"]; sets && version != cosign3 {
			t.Errorf("the workflow installs cosign %s, the tests %s", version, cosign3)
		}
		for name, value := range step.Env {
			if value != "${{ vars."+name+" }}" { // which atRunner has set
				t.Errorf("%s is %s", name, value)
			}
		}
		d.run(t, step.Run)
	}
	d.verifies(t, blocks)
	// Without id-token: write.
	d.environment = append(d.environment, "ACTIONS_ID_TOKEN_REQUEST_TOKEN=", "ACTIONS_ID_TOKEN_REQUEST_URL=")
	if said, err := d.attempt(t, "rm app.tar.gz.sigstore.json\n"+blocks["mayfly"]); err == nil || !strings.Contains(said, "permissions: {id-token: write}") {
		t.Errorf("without permission: %s", said)
	}
}

// pageGitLab runs the job's script with tokens in the variables that it names.
func pageGitLab(t *testing.T, blocks map[string]string) {
	var file map[string]struct {
		Image    string
		IDTokens map[string]struct{ Aud string } `yaml:"id_tokens"`
		Script   []string
	}
	if err := yaml.Unmarshal([]byte(blocks["job"]), &file); err != nil {
		t.Fatal(err)
	}
	job := file["sign"]
	if !strings.HasSuffix(job.Image, ":"+strings.TrimPrefix(cosign3, "v")) {
		t.Errorf("the job's cosign is %s, that of the tests %s", job.Image, cosign3)
	}
	m := startForJobs(t, blocks["config"], vendorClaims(t, "gitlab", nil))
	d := atRunner(t, m, "GITLAB_CI=true", "CI_SERVER_URL="+m.Issuer)
	given := func() { // a runner gives each job its own
		for name, token := range job.IDTokens {
			d.environment = append(d.environment, name+"="+jobToken(t, m.Issuer, d.here.Replace(token.Aud)))
		}
	}
	given()
	d.run(t, strings.Join(job.Script, "\n"))
	if said, err := d.attempt(t, "rm app.tar.gz.sigstore.json\n"+blocks["mayfly"]); err == nil {
		t.Errorf("a token that was used is accepted: %s", said)
	}
	d.run(t, "touch app.tar.gz.sigstore.json && SIGSTORE_ID_TOKEN="+jobToken(t, m.Issuer, m.HTTP)+" "+job.Script[len(job.Script)-1])
	given()
	d.verifies(t, blocks)
}

// jobToken is what the provider gives a job.
func jobToken(t *testing.T, issuer, audience string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, issuer+"/job/token?audience="+url.QueryEscape(audience), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer job")
	response, err := caller(t).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct{ Value string }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Value == "" {
		t.Fatalf("%s: %v", response.Status, err)
	}
	return answer.Value
}

// signsHello has mayfly sign what pages call hello.txt.
func (d *desk) signsHello(t *testing.T, m *mayfly, token string) {
	t.Helper()
	write(t, filepath.Join(d.dir, "token"), []byte(token))
	d.run(t, "date > hello.txt\nmayfly request --ca "+m.HTTP+" --token-file token --sign hello.txt")
}

// pageAirGapped verifies where there is no network.
func pageAirGapped(t *testing.T, blocks map[string]string) {
	m := startDev(t)
	d := newDesk(t, m)
	d.signsHello(t, m, m.token(t))
	d.run(t, blocks["outside"])
	isolated := []string{"unshare", "--net"}
	if said, err := d.attempt(t, "curl -sS "+m.HTTP+"/healthz", isolated...); err == nil {
		t.Fatalf("there is a network: %s", said)
	}
	d.holds(t, "Verified OK", blocks["inside"], isolated...)
}

// pageExpired begins with targets that were published 181 days ago.
func pageExpired(t *testing.T, blocks map[string]string) {
	issuer := startDev(t)
	m := startServe(t, issuer.asIssuer())
	m.Issuer = issuer.Issuer
	ago := time.Now().Add(-181 * 24 * time.Hour)
	open := func(name string) kms.Signer {
		t.Helper()
		file := filepath.Join(m.dir, name)
		if _, err := os.Stat(file); err != nil {
			command(t, nil, setting(t, "MAYFLY_BIN"), "kms", "keygen", "file:"+file)
		}
		key, err := keystore.Open(t.Context(), "file:"+file, kms.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	root, online := open("tuf.root.key.pem"), open("tuf.online.key.pem")
	people := []crypto.PublicKey{root.Public()}
	draft, err := tuf.Init(tuf.Keys{Root: people, Targets: people, Threshold: 1, Online: online.Public()}, trustroot.Documents{
		TrustedRoot: get(t, m.HTTP+"/trusted_root.json"), SigningConfig: get(t, m.HTTP+"/signing_config.json"), TrustConfig: get(t, m.HTTP+"/trust_config.json"),
	}, ago)
	if err == nil {
		_, err = draft.Sign(t.Context(), root)
	}
	if err == nil {
		_, err = tuf.Publish(t.Context(), filepath.Join(m.dir, "tuf"), draft, online, ago)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.process.until(t, "it serves the root", func() bool { return answers(t, m.HTTP+"/tuf/1.root.json") })
	d := newDesk(t, m)
	d.signsHello(t, m, issuer.token(t))
	const begin = "cosign initialize --mirror https://ca.example.com/tuf --root 1.root.json"
	if said, err := d.attempt(t, begin); err == nil || !strings.Contains(said, "503") {
		t.Fatalf("cosign says %s", said)
	}
	d.holds(t, "Verified OK", blocks["meanwhile"])
	if said, err := d.attempt(t, blocks["status"]); err == nil || !strings.Contains(said, "EXPIRED") {
		t.Errorf("the status is %s", said)
	}
	d.holds(t, "Published.", blocks["mend"])
	m.process.until(t, "it serves a timestamp", func() bool { return answers(t, m.HTTP+"/tuf/timestamp.json") })
	d.run(t, begin)
}
