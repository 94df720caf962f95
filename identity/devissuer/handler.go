package devissuer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

// The issuer's paths.
const (
	pathDiscovery = "/.well-known/openid-configuration" // OpenID Connect Discovery 1.0 §4
	pathKeys      = "/keys"
	pathAuthorize = "/authorize"
	pathToken     = "/token"
	pathDeviceAPI = "/device_authorization" // RFC 8628 §3.1
	pathDevice    = "/device"               // where a person enters the user code
	pathDirect    = "/dev/token"
)

const (
	// maxForm bounds the body of a request, in bytes.
	maxForm = 32 << 10
	// maxField bounds each value of a form or query, in bytes: room for any
	// state or nonce, and for claims worth testing.
	maxField = 4 << 10
	// maxURL bounds the request's path and query, in bytes.
	maxURL = 16 << 10
)

// Handler serves the issuer. The caller owns the server, its listener (see
// CheckLoopback) and its timeouts.
func (i *Issuer) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathDiscovery, i.serveDiscovery)
	mux.HandleFunc("GET "+pathKeys, i.serveKeys)
	mux.HandleFunc("GET "+pathAuthorize, forPeople(i.showLogin))
	mux.HandleFunc("POST "+pathAuthorize, forPeople(i.finishLogin))
	mux.HandleFunc("POST "+pathToken, i.forPrograms(i.redeem))
	mux.HandleFunc("POST "+pathDeviceAPI, i.forPrograms(i.startDevice))
	mux.HandleFunc("GET "+pathDevice, forPeople(func(w http.ResponseWriter, _ *http.Request, values url.Values) {
		devicePage(w, http.StatusOK, values, "")
	}))
	mux.HandleFunc("POST "+pathDevice, forPeople(i.finishDevice))
	mux.HandleFunc("GET "+pathDirect, i.serveDirect)
	mux.HandleFunc("GET /{$}", i.showIndex)
	return local(bounded(mux))
}

// bounded sets the limits and the headers of every answer.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store") // RFC 6749 §5.1
		if len(r.URL.Path)+len(r.URL.RawQuery) > maxURL {
			http.Error(w, "the URL is too long", http.StatusRequestURITooLong)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		next.ServeHTTP(w, r)
	})
}

// forPeople is a page. What is wrong with its parameters is shown on one as well.
func forPeople(show func(http.ResponseWriter, *http.Request, url.Values)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		values, err := form(r)
		if err != nil {
			problemPage(w, err.Error())
			return
		}
		show(w, r, values)
	}
}

// forPrograms is an endpoint that answers in JSON, with an *oauthError too.
func (i *Issuer) forPrograms(do func(*http.Request, url.Values) (map[string]any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body any
		values, err := form(r)
		if err == nil {
			i.mu.Lock()
			body, err = do(r, values)
			i.mu.Unlock()
		}
		switch problem, told := errors.AsType[*oauthError](err); {
		case told:
			writeJSON(w, http.StatusBadRequest, problem)
		case err != nil:
			i.fail(w, r, err)
		default:
			writeJSON(w, http.StatusOK, body)
		}
	}
}

// serveDiscovery answers with the provider's metadata (OpenID Connect Discovery
// 1.0 §3, RFC 8414 §2, RFC 8628 §4).
func (i *Issuer) serveDiscovery(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=60")
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer":                                i.url,
		"authorization_endpoint":                i.url + pathAuthorize,
		"token_endpoint":                        i.url + pathToken,
		"device_authorization_endpoint":         i.url + pathDeviceAPI,
		"jwks_uri":                              i.url + pathKeys,
		"response_types_supported":              []string{"code"},
		"response_modes_supported":              []string{"query"},
		"grant_types_supported":                 []string{grantCode, grantDevice},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"scopes_supported":                      []string{"openid", "email", "profile"},
		"claims_supported":                      []string{"iss", "sub", "aud", "exp", "iat", "nbf", "nonce", "email", "email_verified", "name"},
		"code_challenge_methods_supported":      []string{"S256"},
		"token_endpoint_auth_methods_supported": []string{"none"},
	})
}

// serveKeys answers with the signing key (RFC 7517 §5).
func (i *Issuer) serveKeys(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=60")
	writeJSON(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.public}})
}

// writeJSON answers with v. The values are ours, so encoding can't fail; a
// failed write means that the client went away.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// oauthError is an error answer of OAuth (RFC 6749 §5.2 and §4.1.2.1, RFC 8628 §3.5).
type oauthError struct {
	Code        string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

func refuse(code, description string) error { return &oauthError{code, description} }

func (e *oauthError) Error() string { return e.Description }

// form reads the request's parameters, from the query or the body, and refuses
// oversized and repeated ones (RFC 6749 §3.1).
func form(r *http.Request) (url.Values, error) {
	if err := r.ParseForm(); err != nil {
		return nil, refuse("invalid_request", "the form can't be read, or is too large")
	}
	values := r.PostForm
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		values = r.Form
	}
	for name, all := range values {
		if len(all) > 1 || len(all[0]) > maxField || len(name) > maxField {
			return nil, refuse("invalid_request", "a parameter is repeated or too long")
		}
	}
	return values, nil
}

// hasScope reports whether the space-separated scopes hold the one asked for.
func hasScope(scopes, want string) bool { return slices.Contains(strings.Fields(scopes), want) }

// CheckLoopback refuses a listen address that others could reach: anything but
// `localhost:PORT` or a loopback address literal with a port. A missing host
// means every interface and is refused.
func CheckLoopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("the development issuer's address %q: expected HOST:PORT: %w", addr, err)
	}
	if !loopback.Host(host) {
		return fmt.Errorf("the development issuer's address %q is not loopback: it vouches for anybody, so bind it to 127.0.0.1 or [::1]", addr)
	}
	return nil
}

// isLocal reports whether a Host header or an address is of this machine.
func isLocal(hostport string) bool { return loopback.Host((&url.URL{Host: hostport}).Hostname()) }

// local lets only this machine's own programs and pages in: the caller's
// address and the name it used must be loopback, and a browser's request must
// come from a page of this origin or from the person themselves.
func local(next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection() // for POST: Sec-Fetch-Site, else Origin
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "this request comes from a page of another origin", http.StatusForbidden)
	}))
	return crossOrigin.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !isLocal(r.RemoteAddr):
			http.Error(w, "the development issuer answers this machine alone", http.StatusForbidden)
		case !isLocal(r.Host):
			// RFC 9110 §15.5.20. A page under another name that now resolves
			// to loopback is of that name's origin, so it could read the answer.
			http.Error(w, "the Host is not loopback: use localhost, 127.0.0.1 or [::1]", http.StatusMisdirectedRequest)
		default:
			next.ServeHTTP(w, r)
		}
	}))
}

// fromAnotherPage reports whether a browser sent the request for a page of
// another origin (Fetch Metadata, or the Origin header of older browsers).
func fromAnotherPage(r *http.Request) bool {
	asked := r.Clone(r.Context())
	asked.Method = http.MethodPost // a GET would be let through
	return http.NewCrossOriginProtection().Check(asked) != nil
}

// outOfBand is the redirect URI of clients that can't listen: the code is shown
// to the person, who copies it.
const outOfBand = "urn:ietf:wg:oauth:2.0:oob"

// acceptedRedirect reports whether a code may be sent to the URI: http on
// loopback, any port and path (RFC 8252 §7.3), or outOfBand.
func acceptedRedirect(uri string) bool {
	if uri == outOfBand {
		return true
	}
	u, err := url.Parse(uri)
	return err == nil && u.Scheme == "http" && loopback.Host(u.Hostname()) &&
		u.User == nil && u.Fragment == "" && !strings.Contains(uri, "#")
}
