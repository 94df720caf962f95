// Package devissuer is an OpenID Connect issuer for development on one machine:
// discovery, keys, the authorization code flow with PKCE, the device flow, and
// a direct token endpoint for scripts.
//
// It asks for no password: whoever can reach it is whoever they say they are.
// So it lives on loopback alone. [CheckLoopback] refuses any other address to
// bind; the handler refuses remote callers, names that aren't loopback (DNS
// rebinding), and pages of other origins; no answer carries a CORS header.
//
// Any client id is accepted, as a public client. Redirect URIs are http on
// loopback with any port (RFC 8252 §7.3), or the out-of-band URN with which
// clients without a browser have the code shown.
package devissuer

import (
	"cmp"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-ca/mayfly/internal/loopback"
)

const (
	// DefaultAudience is the audience of a token that names none, and the
	// client id that Sigstore's clients use.
	DefaultAudience = "sigstore"
	// TokenLifetime is the time from a token's iat to its exp.
	TokenLifetime = 10 * time.Minute
)

// Options is what an Issuer needs.
type Options struct {
	// URL is the issuer, without a final slash: http on a loopback name or
	// address. Bind the listener first where the port is chosen by the system.
	URL string
	// Key signs the tokens: RSA of 2048 bits or more.
	Key *rsa.PrivateKey
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger takes one line a token, without its claims; nil discards it.
	Logger *slog.Logger
}

// Issuer is the development issuer. It is safe for concurrent use, keeps a
// bounded number of codes in memory, and starts no goroutine.
type Issuer struct {
	url    string
	now    func() time.Time
	log    *slog.Logger
	signer jose.Signer
	public jose.JSONWebKey

	mu      sync.Mutex // guards what follows
	codes   *store[login]
	devices *store[device]
}

// New makes an issuer. It fails when the URL isn't http on loopback or the key
// is missing or short.
func New(o Options) (*Issuer, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("devissuer: the issuer URL: %w", err)
	}
	if u.Scheme != "http" || !loopback.Host(u.Hostname()) || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" {
		return nil, fmt.Errorf("devissuer: the issuer URL %q: expected http://HOST:PORT with a loopback host and no path", u.Redacted())
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	i := &Issuer{
		url: o.URL, now: o.Now, log: o.Logger,
		codes:   newStore[login](maxCodes, codeLifetime, o.Now),
		devices: newStore[device](maxDevices, deviceLifetime, o.Now),
	}
	return i, i.use(o.Key)
}

// URL is the issuer as its tokens write it in iss.
func (i *Issuer) URL() string { return i.url }

// Token signs a token with the claims given. What is absent is filled in: iss,
// aud (DefaultAudience), iat, nbf, exp (TokenLifetime later); with an email also
// email_verified (true) and sub (derived from the email). A nil value leaves
// the claim out. It fails when neither sub nor email is given.
func (i *Issuer) Token(claims map[string]any) (string, error) {
	now := i.now()
	full := map[string]any{"iss": i.url, "aud": DefaultAudience, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(TokenLifetime).Unix()}
	if email, ok := claims["email"].(string); ok {
		full["email_verified"] = true
		full["sub"] = subjectOf(email)
	}
	maps.Copy(full, claims)
	maps.DeleteFunc(full, func(_ string, v any) bool { return v == nil })
	if full["sub"] == nil && full["email"] == nil {
		return "", errors.New("devissuer: a token needs a sub or an email")
	}
	payload, err := json.Marshal(full)
	if err != nil {
		return "", fmt.Errorf("devissuer: the claims are not JSON: %w", err)
	}
	jws, err := i.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("devissuer: signing a token: %w", err)
	}
	return jws.CompactSerialize()
}

// subjectOf derives a stable subject from an email, opaque as those of real
// providers are, so that nobody comes to rely on sub being the email.
func subjectOf(email string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(email)))
	return "dev-" + hex.EncodeToString(sum[:8])
}
