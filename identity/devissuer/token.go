package devissuer

import (
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/url"
)

// The grant types.
const (
	grantCode   = "authorization_code"                           // RFC 6749 §4.1.3
	grantDevice = "urn:ietf:params:oauth:grant-type:device_code" // RFC 8628 §3.4
)

// redeem is the token endpoint (RFC 6749 §3.2).
func (i *Issuer) redeem(r *http.Request, values url.Values) (map[string]any, error) {
	client, err := clientOf(r, values)
	if err != nil {
		return nil, err
	}
	redeem := map[string]func(string, url.Values) (login, error){grantCode: i.redeemCode, grantDevice: i.redeemDevice}[values.Get("grant_type")]
	if redeem == nil {
		return nil, refuse("unsupported_grant_type", "expected authorization_code or device_code")
	}
	done, err := redeem(client, values)
	if err != nil {
		return nil, err
	}
	return i.tokens(r, done)
}

// clientOf is the client's id, from the body or, as some libraries send it,
// from basic authentication (RFC 6749 §2.3.1). Clients are public: a secret
// proves nothing and is ignored.
func clientOf(r *http.Request, values url.Values) (string, error) {
	client := values.Get("client_id")
	if user, _, ok := r.BasicAuth(); ok {
		id, err := url.QueryUnescape(user)
		if err != nil || (client != "" && client != id) {
			return "", refuse("invalid_request", "the client_id can't be read, or differs from the Authorization header's")
		}
		client = id
	}
	if client == "" {
		return "", refuse("invalid_request", "the client_id is missing")
	}
	return client, nil
}

// redeemCode takes the code, which is gone whether or not the rest is right:
// whoever guesses has one try.
func (i *Issuer) redeemCode(client string, values url.Values) (login, error) {
	code := values.Get("code")
	l, _ := i.codes.get(code)
	i.codes.remove(code)
	switch {
	case l == nil:
		return login{}, refuse("invalid_grant", "the code is unknown, used or expired: sign in again")
	case l.clientID != client || l.redirectURI != values.Get("redirect_uri"):
		return login{}, refuse("invalid_grant", "client_id or redirect_uri differ from the authorization request's")
	case !verifies(values.Get("code_verifier"), l.challenge):
		return login{}, refuse("invalid_grant", "code_verifier does not answer the code_challenge")
	}
	return *l, nil
}

// tokens gives those of a finished login (OpenID Connect Core 1.0 §3.1.3.3). The
// access token is a JWT of the same claims, as Dex gives one: sigstore-python takes
// it for the identity token.
func (i *Issuer) tokens(r *http.Request, done login) (map[string]any, error) {
	claims := map[string]any{"aud": done.clientID, "email": done.email}
	if done.name != "" {
		claims["name"] = done.name
	}
	if done.nonce != "" {
		claims["nonce"] = done.nonce
	}
	access, err := i.Token(claims)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(access)) // at_hash for RS256 is its left half (§3.1.3.6)
	claims["at_hash"] = base64.RawURLEncoding.EncodeToString(sum[:sha256.Size/2])
	token, err := i.Token(claims)
	if err != nil {
		return nil, err
	}
	i.log.InfoContext(r.Context(), "development token issued", slog.String("endpoint", pathToken))
	return map[string]any{
		"access_token": access,
		"token_type":   "Bearer",
		"expires_in":   int(TokenLifetime.Seconds()),
		"id_token":     token,
		"scope":        "openid email profile",
	}, nil
}

// fail answers a failure that is ours.
func (i *Issuer) fail(w http.ResponseWriter, r *http.Request, err error) {
	i.log.ErrorContext(r.Context(), "development token failed", slog.Any("error", err))
	http.Error(w, "internal error", http.StatusInternalServerError)
}
