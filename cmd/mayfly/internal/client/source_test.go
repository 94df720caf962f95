package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client/clienttest"
)

// instant never waits, and counts.
type instant struct{ waits []time.Duration }

func (i *instant) wait(_ context.Context, d time.Duration) error {
	i.waits = append(i.waits, d)
	return nil
}

func newHTTP(t *testing.T) *http.Client {
	t.Helper()
	hc := NewHTTPClient()
	t.Cleanup(hc.CloseIdleConnections)
	return hc
}

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func outcomes(attempts []Attempt) string {
	var b strings.Builder
	for _, a := range attempts {
		fmt.Fprintf(&b, "%s: %s\n", a.Source, a.Outcome)
	}
	return b.String()
}

func TestAmbientSources(t *testing.T) {
	t.Parallel()
	token := clienttest.Token(t, map[string]any{"sub": "ambient"})
	const noGitLab, noGitHub = "GitLab CI: not a GitLab job (GITLAB_CI is not true)\n", "GitHub Actions: not a GitHub job (ACTIONS_ID_TOKEN_REQUEST_URL is not set)\n"
	for name, c := range map[string]struct {
		env  func(string) string
		want string
		ok   bool
	}{
		"nothing":          {env(), noGitLab + "SIGSTORE_ID_TOKEN: not set\n" + noGitHub, false},
		"variable":         {env(SigstoreEnv, token), noGitLab + "SIGSTORE_ID_TOKEN: used\n", true},
		"GitLab":           {env("GITLAB_CI", "true", SigstoreEnv, token), "GitLab CI: used\n", true},
		"GitLab, unnamed":  {env("GITLAB_CI", "true"), "GitLab CI: the job has no `id_tokens: {SIGSTORE_ID_TOKEN: {aud: sigstore}}`\nSIGSTORE_ID_TOKEN: not set\n" + noGitHub, false},
		"GitHub, no right": {env("GITHUB_ACTIONS", "true"), noGitLab + "SIGSTORE_ID_TOKEN: not set\nGitHub Actions: the job has no `permissions: {id-token: write}`\n", false},
		"broken variable":  {env(SigstoreEnv, "nonsense"), noGitLab + "SIGSTORE_ID_TOKEN: failed\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, attempts, err := FindToken(t.Context(), Ambient(c.env, newHTTP(t), Retry{}, fixedAudience("sigstore")))
			if outcomes(attempts) != c.want {
				t.Errorf("tried:\n%swant:\n%s", outcomes(attempts), c.want)
			}
			if (err == nil) != c.ok || (c.ok && got.Subject != "ambient") {
				t.Errorf("got %v, %v", got, err)
			}
			if err != nil && name != "broken variable" && !strings.Contains(err.Error(), "GitHub Actions: ") {
				t.Errorf("the error doesn't say what was tried: %v", err)
			}
		})
	}
}

// fixedAudience is one audience, whatever the issuer.
type fixedAudience string

func (a fixedAudience) Named(context.Context, string) string { return string(a) }
func (a fixedAudience) Ask(context.Context, string) string   { return string(a) }

func TestGitHubActionsToken(t *testing.T) {
	t.Parallel()
	token := clienttest.Token(t, map[string]any{"sub": "repo:o/r"})
	for name, c := range map[string]struct {
		statuses []int
		body     string
		kind     Kind
		ok       bool
		requests int
	}{
		"answers":        {[]int{200}, `{"value":"` + token + `"}`, 0, true, 1},
		"recovers":       {[]int{503, 500, 200}, `{"value":"` + token + `"}`, 0, true, 3},
		"stays down":     {[]int{503, 503, 503, 503, 503}, ``, Unavailable, false, 4},
		"refuses":        {[]int{403}, `no`, Refused, false, 1},
		"redirects":      {[]int{302}, ``, Refused, false, 1},
		"no value":       {[]int{200}, `{}`, Failed, false, 1},
		"not JSON":       {[]int{200}, `<html>`, Failed, false, 1},
		"endless answer": {[]int{200}, strings.Repeat(" ", maxAnswer+1), Failed, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer runner-secret" || r.URL.Query().Get("audience") != "sigstore" || r.URL.Query().Get("api") != "1" {
					t.Errorf("asked %s with %v", r.URL, r.Header)
				}
				w.Header().Set("Location", "https://elsewhere.example/")
				w.WriteHeader(c.statuses[n])
				_, _ = io.WriteString(w, c.body)
				n++
			}))
			defer server.Close()
			waits := &instant{}
			sources := Ambient(env("ACTIONS_ID_TOKEN_REQUEST_URL", server.URL+"/?api=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "runner-secret"),
				newHTTP(t), Retry{Wait: waits.wait}, fixedAudience("sigstore"))
			got, _, err := FindToken(t.Context(), sources)
			if n != c.requests || (err == nil) != c.ok || (c.ok && got.Subject != "repo:o/r") {
				t.Fatalf("%d requests, %v, %v", n, got, err)
			}
			var e *Error
			if err != nil && (!errors.As(err, &e) || e.Kind != c.kind || strings.Contains(err.Error(), "secret")) {
				t.Errorf("got %v, want kind %d", err, c.kind)
			}
		})
	}
}

func TestGitHubURLMustBeHTTPS(t *testing.T) {
	t.Parallel()
	sources := Ambient(env("ACTIONS_ID_TOKEN_REQUEST_URL", "http://evil.example/", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "x"), newHTTP(t), Retry{}, fixedAudience("sigstore"))
	if _, _, err := FindToken(t.Context(), sources); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("got %v", err)
	}
}

func TestNamedSources(t *testing.T) {
	t.Parallel()
	token := clienttest.Token(t, map[string]any{"sub": "named"})
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		source Source
		ok     bool
	}{
		"file":           {TokenFile(path), true},
		"missing file":   {TokenFile(path + "x"), false},
		"stdin":          {TokenReader("standard input", strings.NewReader(token)), true},
		"broken stdin":   {TokenReader("standard input", iotest.ErrReader(io.ErrUnexpectedEOF)), false},
		"endless stdin":  {TokenReader("standard input", iotest.DataErrReader(strings.NewReader(strings.Repeat("a", 1<<20)))), false},
		"variable":       {TokenEnv("T", env("T", token)), true},
		"unset variable": {TokenEnv("T", env()), false},
	} {
		got, attempts, err := FindToken(t.Context(), []Source{c.source, {Name: "next", Fetch: func(context.Context) (string, error) {
			t.Errorf("%s: went on to the next source", name)
			return "", nil
		}}})
		if (err == nil) != c.ok || (c.ok && got.Subject != "named") || len(attempts) != 1 {
			t.Errorf("%s: %v, %v, %v", name, got, attempts, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "the identity token from "+c.source.Name+": ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		url             string
		plaintext, want bool
	}{
		{"https://ca.example.com", false, true},
		{"https://ca.example.com/prefix", false, true},
		{"http://127.0.0.1:5555", false, true},
		{"http://[::1]:5555", false, true},
		{"http://localhost:5555", false, true},
		{"http://ca.localhost", false, false},
		{"http://ca.example.com", false, false},
		{"http://ca.example.com", true, true},
		{"http://127.0.0.1.example.com", false, false},
		{"http://notlocalhost", false, false},
		{"https://user:pw@ca.example.com", false, false},
		{"https://ca.example.com?q", false, false},
		{"https://ca.example.com#f", false, false},
		{"ftp://ca.example.com", true, false},
		{"ca.example.com", true, false},
		{"", true, false},
	} {
		_, err := CheckURL("the CA", c.url, c.plaintext)
		if (err == nil) != c.want {
			t.Errorf("%q, plaintext %v: %v", c.url, c.plaintext, err)
		}
		if err != nil && strings.Contains(err.Error(), "pw") {
			t.Errorf("the error holds the password: %v", err)
		}
	}
	if !slices.Contains(KeyTypes(), DefaultKeyType) {
		t.Error("the default key type is unknown")
	}
}
