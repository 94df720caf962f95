package client

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Token is an identity token (OpenID Connect Core §2) with what it says of
// itself. Nothing in it is verified here: that is the CA's work.
type Token struct {
	raw     string
	Issuer  string
	Subject string
	Email   string    // "" unless the token has a non-empty string claim email
	Expiry  time.Time // zero when the token names none that can be read
}

// ParseToken reads a compact JWS (RFC 7515 §3.1). White space around it is cut.
// The error never quotes the token.
func ParseToken(raw string) (*Token, error) {
	raw = strings.TrimSpace(raw)
	const fix = "give an OpenID Connect identity token: three base64url parts with dots between"
	parts := strings.Split(raw, ".")
	switch {
	case raw == "":
		return nil, problem(Failed, fix, "the identity token is empty")
	case len(raw) > maxToken:
		return nil, problem(Failed, fix, "the identity token is over %d bytes", maxToken)
	case len(parts) != 3:
		return nil, problem(Failed, fix, "the identity token is not a JWT: it has %d parts instead of 3", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, problem(Failed, fix, "the identity token is not a JWT: its second part is not base64url")
	}
	var claims map[string]json.RawMessage // a map: a struct would take Email for email
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, problem(Failed, fix, "the identity token is not a JWT: its second part is not a JSON object")
	}
	t := &Token{raw: raw, Issuer: stringClaim(claims["iss"]), Subject: stringClaim(claims["sub"]), Email: stringClaim(claims["email"])}
	var exp float64
	if json.Unmarshal(claims["exp"], &exp) == nil && exp > 0 && exp < 1<<40 {
		t.Expiry = time.Unix(int64(exp), 0).UTC()
	}
	if t.Challenge() == "" {
		return nil, problem(Failed, "ask the issuer for the scopes openid and email",
			"the identity token has neither an email nor a sub claim, so there is nothing to prove possession over")
	}
	return t, nil
}

// stringClaim is the claim when it is a JSON string, else "".
func stringClaim(raw json.RawMessage) string {
	var s string
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte(`"`)) || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// Challenge is what the proof of possession signs: the email claim where the
// token carries one, sub otherwise, whatever the issuer's type.
func (t *Token) Challenge() string {
	return cmp.Or(t.Email, t.Subject)
}

// String says whose token it is, never the token.
func (t *Token) String() string {
	return fmt.Sprintf("identity token of %q by %q", t.Challenge(), t.Issuer)
}

// GoString is String, so that no format verb prints the token.
func (t *Token) GoString() string { return t.String() }

// LogValue is String for slog.
func (t *Token) LogValue() slog.Value { return slog.StringValue(t.String()) }
