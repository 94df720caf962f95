package conformance

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
)

// callback is where both providers send the browser back to. Nothing listens
// there: the browser stops before it.
const callback = "http://127.0.0.1/callback"

// account is somebody who has an account at an OpenID provider, and the client
// that they log in to.
type account struct {
	issuer, client, scope string

	fill url.Values // what they type into the provider's forms
}

// token logs in by the authorization code flow with PKCE, in a browser without
// a window, and answers with the ID token.
func (a account) token(ctx context.Context) (string, error) {
	var metadata struct {
		Issuer                string `json:"issuer"`
		AuthorizationEndpoint string `json:"authorization_endpoint"`
		TokenEndpoint         string `json:"token_endpoint"`
	}
	well := strings.TrimSuffix(a.issuer, "/") + "/.well-known/openid-configuration"
	if err := exchange(ctx, http.MethodGet, well, nil, &metadata); err != nil {
		return "", err
	}
	if metadata.Issuer != a.issuer {
		return "", fmt.Errorf("the provider calls itself %s, not %s", metadata.Issuer, a.issuer)
	}

	verifier, state := rand.Text()+rand.Text(), rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	code, err := a.logIn(ctx, metadata.AuthorizationEndpoint+"?"+url.Values{
		"client_id":             {a.client},
		"response_type":         {"code"},
		"redirect_uri":          {callback},
		"scope":                 {a.scope},
		"state":                 {state},
		"nonce":                 {rand.Text()},
		"code_challenge":        {base64.RawURLEncoding.EncodeToString(challenge[:])},
		"code_challenge_method": {"S256"},
	}.Encode(), state)
	if err != nil {
		return "", err
	}

	var answer struct {
		IDToken string `json:"id_token"`
	}
	err = exchange(ctx, http.MethodPost, metadata.TokenEndpoint, url.Values{
		"grant_type":    {"authorization_code"},
		"client_id":     {a.client},
		"code":          {code},
		"redirect_uri":  {callback},
		"code_verifier": {verifier},
	}, &answer)
	if err == nil && answer.IDToken == "" {
		err = errors.New("no ID token in the provider's answer")
	}
	return answer.IDToken, err
}

// logIn follows the provider's pages, filling in its forms, until it redirects
// to the callback; the answer is the code.
func (a account) logIn(ctx context.Context, address, state string) (string, error) {
	cookies, err := cookiejar.New(nil)
	if err != nil {
		return "", err
	}
	browser := &http.Client{Jar: cookies, CheckRedirect: func(request *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(request.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	const mostPages = 4 // a login and a consent, with room for a surprise
	request, err := newRequest(ctx, http.MethodGet, address, nil)
	for range mostPages {
		if err != nil {
			return "", err
		}
		response, err := browser.Do(request)
		if err != nil {
			return "", err
		}
		page, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil {
			return "", err
		}
		if location, redirected := response.Header["Location"]; redirected {
			return codeIn(location[0], state)
		}
		if response.StatusCode != http.StatusOK {
			return "", fmt.Errorf("the provider answered %s: %s", response.Status, page)
		}
		if request, err = a.submit(ctx, response.Request.URL, string(page)); err != nil {
			return "", err
		}
	}
	return "", errors.New("the provider asks without end")
}

var (
	formAction  = regexp.MustCompile(`<form\b[^>]*\saction="([^"]*)"`)
	hiddenInput = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"`)
)

// submit is the request that a browser makes of the page's form.
func (a account) submit(ctx context.Context, at *url.URL, page string) (*http.Request, error) {
	action := formAction.FindStringSubmatch(page)
	if action == nil {
		return nil, fmt.Errorf("no form at %s: %s", at, page)
	}
	target, err := at.Parse(html.UnescapeString(action[1]))
	if err != nil {
		return nil, err
	}
	values := make(url.Values)
	for name, typed := range a.fill {
		values[name] = typed
	}
	for _, input := range hiddenInput.FindAllStringSubmatch(page, -1) {
		values.Set(input[1], html.UnescapeString(input[2]))
	}
	return newRequest(ctx, http.MethodPost, target.String(), values)
}

// codeIn is the authorization code in the address that the browser is sent to.
func codeIn(location, state string) (string, error) {
	target, err := url.Parse(location)
	if err != nil {
		return "", err
	}
	if got := target.Query().Get("state"); got != state {
		return "", fmt.Errorf("state %q came back as %q: %s", state, got, location)
	}
	return target.Query().Get("code"), nil
}

// newRequest has the form in its body when there is one.
func newRequest(ctx context.Context, method, address string, form url.Values) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(form.Encode()))
	if err == nil && form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return request, err
}

// exchange reads the JSON of a 200 answer.
func exchange(ctx context.Context, method, address string, form url.Values, answer any) error {
	request, err := newRequest(ctx, method, address, form)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", address, response.Status, body)
	}
	if err == nil {
		err = json.Unmarshal(body, answer)
	}
	return err
}
