package devissuer

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

const (
	// codeLifetime is how long a code can be redeemed. RFC 6749 §4.1.2 says 10
	// minutes at most; a client on the same machine comes at once.
	codeLifetime = time.Minute
	maxCodes     = 256

	maxEmail = 254 // RFC 5321 §4.5.3.1.3, less the brackets
	maxName  = 128

	challengeLength   = 43  // base64url of a SHA-256, RFC 7636 §4.2
	verifierMinLength = 43  // RFC 7636 §4.1
	verifierMaxLength = 128 // RFC 7636 §4.1
)

// person is who a login page was filled in for.
type person struct{ email, name string }

// login is what a code stands for.
type login struct {
	person
	clientID, redirectURI, nonce, challenge string
}

// authorizeParams are the parameters of an authorization request that the login
// page hands on; the page holds all of the state, so an unfinished login costs
// the issuer nothing.
var authorizeParams = []string{"response_type", "client_id", "redirect_uri", "scope", "state", "nonce", "code_challenge", "code_challenge_method"}

// showLogin answers an authorization request (OpenID Connect Core 1.0 §3.1.2)
// with the login page.
func (i *Issuer) showLogin(w http.ResponseWriter, r *http.Request, values url.Values) {
	if acceptAuthorize(w, r, values) {
		loginPage(w, http.StatusOK, values, "")
	}
}

// finishLogin takes the filled-in page and sends the person back with a code.
func (i *Issuer) finishLogin(w http.ResponseWriter, r *http.Request, values url.Values) {
	if !acceptAuthorize(w, r, values) {
		return
	}
	who, problem := readPerson(values)
	if problem != "" {
		loginPage(w, http.StatusUnprocessableEntity, values, problem)
		return
	}
	code := rand.Text()
	redirect := values.Get("redirect_uri")
	i.mu.Lock()
	i.codes.put(code, login{
		person: who, clientID: values.Get("client_id"), redirectURI: redirect,
		nonce: values.Get("nonce"), challenge: values.Get("code_challenge"),
	})
	i.mu.Unlock()
	if redirect == outOfBand {
		servePage(w, http.StatusOK, page{Title: "Signed in", Heading: "Copy this code", Code: code,
			Text: "Paste it where the program asks for it. It works once, within a minute."})
		return
	}
	sendBack(w, r, values, url.Values{"code": {code}})
}

// acceptAuthorize checks an authorization request. Faults in the client or the
// redirect URI are shown to the person; the others go back to the client (RFC
// 6749 §4.1.2.1). It answers by itself when it returns false.
func acceptAuthorize(w http.ResponseWriter, r *http.Request, values url.Values) bool {
	redirect := values.Get("redirect_uri")
	err := checkAuthorize(values)
	switch problem, _ := errors.AsType[*oauthError](err); {
	case values.Get("client_id") == "":
		problemPage(w, "The client_id is missing.")
	case !acceptedRedirect(redirect):
		problemPage(w, "The redirect_uri is not accepted: expected http on localhost, 127.0.0.1 or [::1], any port.")
	case problem == nil:
		return true
	case redirect == outOfBand:
		problemPage(w, problem.Description)
	default:
		sendBack(w, r, values, url.Values{"error": {problem.Code}, "error_description": {problem.Description}})
	}
	return false
}

func checkAuthorize(values url.Values) error {
	switch {
	case values.Get("response_type") != "code":
		return refuse("unsupported_response_type", "response_type must be code")
	case !hasScope(values.Get("scope"), "openid"):
		return refuse("invalid_scope", "scope must hold openid")
	case values.Get("code_challenge") == "":
		return refuse("invalid_request", "PKCE is required: code_challenge is missing")
	default:
		return checkChallenge(values)
	}
}

// checkChallenge takes S256 alone: a plain challenge is the verifier itself, so
// whoever saw the request could redeem the code (RFC 7636 §7.2).
func checkChallenge(values url.Values) error {
	challenge := values.Get("code_challenge")
	_, err := base64.RawURLEncoding.DecodeString(challenge)
	switch {
	case values.Get("code_challenge_method") != "S256":
		return refuse("invalid_request", "code_challenge_method must be S256")
	case len(challenge) != challengeLength || err != nil:
		return refuse("invalid_request", "code_challenge must be the base64url of a SHA-256")
	default:
		return nil
	}
}

// verifies reports whether the verifier answers the challenge (RFC 7636 §4.6).
func verifies(verifier, challenge string) bool {
	if len(verifier) < verifierMinLength || len(verifier) > verifierMaxLength {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(oauth2.S256ChallengeFromVerifier(verifier)), []byte(challenge)) == 1
}

// readPerson reads the login page's fields, or says what is wrong with them.
func readPerson(values url.Values) (person, string) {
	p := person{email: strings.TrimSpace(values.Get("email")), name: strings.TrimSpace(values.Get("name"))}
	local, domain, found := strings.Cut(p.email, "@")
	switch {
	case !found || local == "" || domain == "" || strings.ContainsAny(p.email, " \t\r\n,") || strings.Contains(domain, "@"):
		return person{}, "Enter an email address, such as alice@example.com."
	case len(p.email) > maxEmail:
		return person{}, "This email address is too long."
	case len(p.name) > maxName:
		return person{}, "This name is too long."
	default:
		return p, ""
	}
}

// sendBack redirects to the client's URI, which acceptedRedirect has let pass,
// with the parameters and the client's state added to its query.
func sendBack(w http.ResponseWriter, r *http.Request, values, add url.Values) {
	u, err := url.Parse(values.Get("redirect_uri"))
	if err != nil {
		problemPage(w, "The redirect_uri can't be read.")
		return
	}
	query := u.Query()
	maps.Copy(query, add)
	if state := values.Get("state"); state != "" {
		query.Set("state", state)
	}
	u.RawQuery = query.Encode()
	http.Redirect(w, r, u.String(), http.StatusSeeOther) //nolint:gosec // G710: a redirect URI of the client, checked before
}
