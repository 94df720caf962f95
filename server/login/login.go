// Package login has people sign in at an OpenID Connect provider to read what this CA
// recorded: the authorization code flow with PKCE, and then a session in an encrypted
// cookie. Who may read, package identity/access says.
package login

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/oauth2"

	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/internal/bounded"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/oneline"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server"
)

// Config is a client of an OpenID Connect provider.
type Config struct {
	// Issuer is the provider: one of issuers by its url. An entry of its own, with
	// allow `"false"`, keeps certificates from being issued for the page's tokens.
	Issuer string `yaml:"issuer,omitempty"`
	// ClientID is the page's client at the provider, and one of the issuer's audiences.
	// The provider has to redirect to public_url and `/login/callback`.
	ClientID string `yaml:"client_id,omitempty"`
	// ClientSecret is the client's, where the provider gave it one. PKCE is used with
	// it and without it.
	ClientSecret setting.Secret `yaml:"client_secret,omitempty"`
	// Scopes are asked for beside openid and email.
	Scopes []string `yaml:"scopes,omitempty"`
	// KeyFile holds the key of the session cookies: 32 random bytes. It is made where
	// there is none; replicas need the same. Without the file all sessions end.
	KeyFile setting.Path `yaml:"key_file,omitempty"`
	// Session is how long somebody stays signed in, from 1m to 12h. The default is 1h.
	// Sessions also end when the rules under access or deny change.
	Session time.Duration `yaml:"session,omitempty"`
}

// Check adds every fault of c. It reads no file.
func (c *Config) Check(path string, f *setting.Faults) {
	c.ClientSecret.Check(setting.Join(path, "client_secret"), f)
	if u, err := url.Parse(c.Issuer); err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback.Host(u.Hostname())) {
		f.Add(setting.Join(path, "issuer"), "%q isn't the https URL of an OpenID Connect provider; http goes only on this machine", c.Issuer)
	}
	f.When(c.ClientID == "", setting.Join(path, "client_id"), "required: the page's client at the provider")
	f.When(c.KeyFile == "", setting.Join(path, "key_file"), "required: a file of the service's own, such as page.key")
	f.When(c.Session != 0 && (c.Session < time.Minute || c.Session > maxSession), setting.Join(path, "session"), "%v is outside 1m to %v", c.Session, maxSession)
}

// Rights says who may read: access.Access.
type Rights interface {
	Grant(ctx context.Context, want access.Right, token string, from netip.Addr) (access.Grant, error)
}

// The paths: where a login begins, where the provider sends people back to, and the end.
const (
	Path     = "/login"
	Callback = "/login/callback"
	Logout   = "/logout"
)

const (
	loginTime      = 10 * time.Minute // to sign in at the provider
	defaultSession = time.Hour
	maxSession     = 12 * time.Hour
	keySize        = 32 // AES-256
	maxReturn      = 2 << 10
	maxAnswer      = 1 << 20 // of the provider
)

// Options are what a Login works with.
type Options struct {
	Config    Config
	PublicURL string
	Rights    Rights
	Rules     func() string // of who may read: sessions end when they change
	Client    *http.Client  // to the provider
	Now       func() time.Time
	Logger    *slog.Logger
}

// Login signs people in.
type Login struct {
	o   Options
	key []byte
}

// New makes a Login. The key of the cookies is read, and made where there is none.
func New(o Options) (*Login, error) {
	key, err := readKey(string(o.Config.KeyFile))
	if err != nil {
		return nil, fmt.Errorf("login: the key of the session cookies: %w", err)
	}
	return &Login{o, key}, nil
}

// The cookies, by what they are for.
const sessionCookie, loginCookie = "session", "login"

// ticket is what a cookie holds: of a session, who was found to be a reader; of a login
// under way, what the provider's answer has to fit.
type ticket struct {
	Who                            string `json:",omitempty"`
	State, Nonce, Verifier, Return string `json:",omitempty"`
}

// Who is whose session a request has.
func (l *Login) Who(r *http.Request) (who string, ok bool) {
	t, ok := l.get(r, sessionCookie)
	return t.Who, ok
}

// readKey reads the key of the cookies, and makes one where there is none.
func readKey(path string) ([]byte, error) {
	key, err := secretfile.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, keySize)
		_, _ = rand.Read(key)                                                      // which never fails
		if err = durable.WriteNew(path, key, 0o600); errors.Is(err, fs.ErrExist) { // another replica was first
			key, err = secretfile.Read(path)
		}
	}
	if err == nil && len(key) != keySize {
		err = fmt.Errorf("%s has %d bytes, not %d random ones: delete it, and one is made", path, len(key), keySize)
	}
	return key, err
}

// put sets an encrypted cookie: whoever has it can neither read nor change it, nor use it
// in another's place, after its time, or under other rules.
func (l *Login) put(w http.ResponseWriter, name string, t ticket, life time.Duration) error {
	encrypter, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.DIRECT, Key: l.key}, nil)
	if err != nil {
		return err
	}
	claims := jwt.Claims{Subject: name, Audience: jwt.Audience{l.rules()}, Expiry: jwt.NewNumericDate(l.o.Now().Add(life))}
	text, err := jwt.Encrypted(encrypter).Claims(claims).Claims(t).Serialize()
	if err == nil {
		l.set(w, name, text, int(life.Seconds()))
	}
	return err
}

// get reads a cookie that is good now.
func (l *Login) get(r *http.Request, name string) (t ticket, ok bool) {
	cookie, err := r.Cookie(l.cookie(name))
	if err != nil {
		return t, false
	}
	var claims jwt.Claims
	text, err := jwt.ParseEncrypted(cookie.Value, []jose.KeyAlgorithm{jose.DIRECT}, []jose.ContentEncryption{jose.A256GCM})
	if err == nil {
		err = text.Claims(l.key, &claims, &t)
	}
	if err == nil {
		err = claims.ValidateWithLeeway(jwt.Expected{Subject: name, AnyAudience: jwt.Audience{l.rules()}, Time: l.o.Now()}, 0)
	}
	return t, err == nil
}

func (l *Login) set(w http.ResponseWriter, name, value string, age int) {
	http.SetCookie(w, &http.Cookie{ // #nosec G124 -- Secure wherever there is TLS
		Name: l.cookie(name), Value: value, Path: "/", MaxAge: age, HttpOnly: true, Secure: l.secure(), SameSite: http.SameSiteLaxMode,
	})
}

func (l *Login) secure() bool { return strings.HasPrefix(l.o.PublicURL, "https://") }

// cookie has browsers take it from this very host alone, where that can be asked for.
func (l *Login) cookie(name string) string {
	return map[bool]string{true: "__Host-"}[l.secure()] + "mayfly-" + name
}

// rules stands for those of who may read: sessions end when they change.
func (l *Login) rules() string {
	sum := sha256.Sum256([]byte(l.o.Rules()))
	return hex.EncodeToString(sum[:])
}

// client is this as the provider's client. The provider is asked each time: logins are rare.
func (l *Login) client(ctx context.Context) (context.Context, *oidc.Provider, *oauth2.Config, error) {
	c := l.o.Config
	client := *l.o.Client
	client.Transport = answers{cmp.Or(client.Transport, http.DefaultTransport)}
	ctx = oidc.ClientContext(ctx, &client)
	provider, err := oidc.NewProvider(ctx, c.Issuer)
	if err != nil {
		return nil, nil, nil, fault.New(fault.IssuerUnavailable, "Nobody can sign in now: the provider %s doesn't answer as it should. Try again.", c.Issuer).Because(err)
	}
	o := &oauth2.Config{ClientID: c.ClientID, Endpoint: provider.Endpoint(), RedirectURL: strings.TrimSuffix(l.o.PublicURL, "/") + Callback, Scopes: append([]string{oidc.ScopeOpenID, "email"}, c.Scopes...)}
	if !c.ClientSecret.IsZero() {
		secret, err := c.ClientSecret.Read()
		if err != nil {
			return nil, nil, nil, fmt.Errorf("login: the client's secret: %w", err)
		}
		o.ClientSecret = string(secret)
	}
	return ctx, provider, o, nil
}

// answers are the provider's, of which each is read to its bound.
type answers struct{ http.RoundTripper }

// RoundTrip makes one request.
func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := a.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = bounded.Body(answer.Body, maxAnswer, fmt.Errorf("the answer is longer than %d bytes", maxAnswer))
	}
	return answer, err
}

// Begin sends somebody to the provider.
func (l *Login) Begin(w http.ResponseWriter, r *http.Request) error {
	_, _, client, err := l.client(r.Context())
	if err != nil {
		return err
	}
	a := ticket{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Return: local(r.URL.Query().Get("return"))}
	if err := l.put(w, loginCookie, a, loginTime); err != nil {
		return err
	}
	http.Redirect(w, r, client.AuthCodeURL(a.State, oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier)), http.StatusSeeOther)
	return nil
}

// local is an address on this page, and the feed's for any other.
func local(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.Host != "" || u.Scheme != "" || len(to) > maxReturn || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\\\r\n\t") {
		return "/"
	}
	return to
}

// Finish takes the provider's answer. Its error is a *fault.Error, or ours.
func (l *Login) Finish(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	a, ok := l.get(r, loginCookie)
	l.set(w, loginCookie, "", -1)
	switch {
	case !ok || a.State != q.Get("state"):
		return fault.New(fault.TokenMissing, "This isn't the answer to a login that this browser began, or it took longer than ten minutes. Sign in again.")
	case q.Get("code") == "":
		return fault.New(fault.AccessDenied, "The provider let nobody sign in. Sign in again, or ask the provider's operators.").Because(fmt.Errorf("the provider answered %q", q.Get("error")))
	}
	ctx, provider, client, err := l.client(r.Context())
	if err != nil {
		return err
	}
	var id *oidc.IDToken
	token, err := client.Exchange(ctx, q.Get("code"), oauth2.VerifierOption(a.Verifier))
	raw := ""
	if err == nil {
		raw, _ = token.Extra("id_token").(string)
		id, err = provider.Verifier(&oidc.Config{ClientID: client.ClientID, Now: l.o.Now}).Verify(ctx, raw)
	}
	if err == nil && id.Nonce != a.Nonce {
		err = errors.New("the token's nonce is another attempt's")
	}
	if err != nil {
		l.o.Logger.LogAttrs(ctx, slog.LevelInfo, "a login to the page failed", slog.Any("error", oneline.Error(err, 500))) // it may have a whole page of the provider's
		return fault.New(fault.TokenMalformed, "Signing in failed: the provider's answer isn't one to this attempt. Sign in again.").Because(err)
	}
	g, err := l.o.Rights.Grant(ctx, access.Read, raw, server.ClientAddress(ctx))
	if err != nil {
		l.o.Logger.LogAttrs(ctx, slog.LevelInfo, "the page refused somebody who signed in", slog.String("issuer", g.Issuer), slog.String("subject", g.Subject), slog.Any("error", err))
		return err
	}
	if err := l.put(w, sessionCookie, ticket{Who: g.SAN}, cmp.Or(l.o.Config.Session, defaultSession)); err != nil {
		return err
	}
	http.Redirect(w, r, a.Return, http.StatusSeeOther)
	return nil
}

// To is where to sign in, so that one comes back to what was asked for.
func To(r *http.Request) string {
	back := "/"
	if !strings.HasPrefix(r.URL.Path, Path) {
		back = local(r.URL.RequestURI())
	}
	return Path + "?return=" + url.QueryEscape(back)
}

// End ends a session: not for a page of another site, with whose request comes no cookie.
func (l *Login) End(w http.ResponseWriter, r *http.Request) {
	if _, err := r.Cookie(l.cookie(sessionCookie)); err == nil {
		l.set(w, sessionCookie, "", -1)
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}
