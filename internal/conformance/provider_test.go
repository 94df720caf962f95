package conformance

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
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

func TestProviderAlone(t *testing.T) {
	issuer := startProvider(t)
	t.Log(foreignToken(t, issuer))
}
func testOIDCProvider(t *testing.T, m *mayfly, _ *timestampAuthority) {}
