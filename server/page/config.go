package page

import (
	"net/url"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Access is who may see the page.
type Access string

// Who may see it.
const (
	Open     Access = "open"     // everybody
	Loopback Access = "loopback" // who sits at this machine
	Login    Access = "login"    // whom a rule of access.readers or access.admins means
)

// What is shown of e-mail addresses.
const (
	emailsFull   = "full"
	emailsDomain = "domain"
)

// Config is the page for people. Without it there is none. A change needs a restart.
type Config struct {
	// Access is who may see it: `login`, whom a rule of access.readers or access.admins
	// means; `loopback`, programs of this machine; `open`, everybody who can reach the
	// port. It shows who got certificates, which is personal data.
	Access Access `yaml:"access,omitempty"`
	// Login is where people sign in, for access login.
	Login LoginConfig `yaml:"login,omitempty"`
	// ShowEmails is `full`, or `domain`, which shows `…@example.com` in place of each
	// address. The default is full.
	ShowEmails string `yaml:"show_emails,omitempty"`
}

// LoginConfig is the page as a client of an OpenID Connect provider.
type LoginConfig struct {
	// Issuer is the provider: one of issuers by its url. An entry of its own, with
	// allow `"false"`, keeps certificates from being issued for the page's tokens.
	Issuer string `yaml:"issuer,omitempty"`
	// ClientID is the page's client at the provider, and one of the issuer's audiences.
	// The provider has to redirect to public_url and `/login/callback`.
	ClientID string `yaml:"client_id,omitempty"`
	// ClientSecret is the client's, where the provider gave it one. PKCE is used with
	// it and without it.
	ClientSecret setting.Secret `yaml:"client_secret,omitempty"`
	// Scopes are asked for beside openid. The default is email.
	Scopes []string `yaml:"scopes,omitempty"`
	// KeyFile holds the key of the session cookies: 32 random bytes. It is made where
	// there is none; replicas need the same. Without the file all sessions end.
	KeyFile setting.Path `yaml:"key_file,omitempty"`
	// Session is how long somebody stays signed in, from 1m to 12h. The default is 1h.
	// Sessions also end when the rules under access change.
	Session time.Duration `yaml:"session,omitempty"`
}

// Enabled reports whether there is a page.
func (c *Config) Enabled() bool { return c.Access != "" }

// Check adds every fault of c. It reads no file.
func (c *Config) Check(path string, f *setting.Faults) {
	at := func(field string) string { return setting.Join(path, field) }
	if !slices.Contains([]Access{"", Open, Loopback, Login}, c.Access) {
		f.Add(at("access"), "%q is unknown; login, loopback or open is expected", c.Access)
	}
	if !slices.Contains([]string{"", emailsFull, emailsDomain}, c.ShowEmails) {
		f.Add(at("show_emails"), "%q is unknown; full or domain is expected", c.ShowEmails)
	}
	l := c.Login
	l.ClientSecret.Check(at("login.client_secret"), f)
	if c.Access != Login {
		if l.Issuer != "" || l.ClientID != "" || l.KeyFile != "" || !l.ClientSecret.IsZero() {
			f.Add(at("login"), "only goes with access: login")
		}
		return
	}
	if u, err := url.Parse(l.Issuer); err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && loopback.Host(u.Hostname())) {
		f.Add(at("login.issuer"), "%q isn't the https URL of an OpenID Connect provider; http goes only on this machine", l.Issuer)
	}
	if l.ClientID == "" {
		f.Add(at("login.client_id"), "required with access: login")
	}
	if l.KeyFile == "" {
		f.Add(at("login.key_file"), "required with access: login: a file of the service's own, such as page.key")
	}
	if l.Session != 0 && (l.Session < time.Minute || l.Session > 12*time.Hour) {
		f.Add(at("login.session"), "%v is outside 1m to 12h", l.Session)
	}
}
