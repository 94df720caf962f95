package page

import (
	"slices"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server/login"
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
const emailsFull, emailsDomain = "full", "domain"

// Config is the page for people. Without it there is none. A change needs a restart.
type Config struct {
	// Access is who may see it: `login`, whom a rule of access.readers or access.admins
	// means; `loopback`, programs of this machine; `open`, everybody who can reach the
	// port. It shows who got certificates, which is personal data.
	Access Access `yaml:"access,omitempty"`
	// Login is where people sign in, for access login.
	Login login.Config `yaml:"login,omitempty"`
	// ShowEmails is `full`, or `domain`, which shows `…@example.com` in place of each
	// address. The default is full.
	ShowEmails string `yaml:"show_emails,omitempty"`
}

// Enabled reports whether there is a page.
func (c *Config) Enabled() bool { return c.Access != "" }

// Check adds every fault of c. It reads no file.
func (c *Config) Check(path string, f *setting.Faults) {
	if !slices.Contains([]Access{"", Open, Loopback, Login}, c.Access) {
		f.Add(setting.Join(path, "access"), "%q is unknown; login, loopback or open is expected", c.Access)
	}
	if !slices.Contains([]string{"", emailsFull, emailsDomain}, c.ShowEmails) {
		f.Add(setting.Join(path, "show_emails"), "%q is unknown; full or domain is expected", c.ShowEmails)
	}
	if c.Access == Login {
		c.Login.Check(setting.Join(path, "login"), f)
	} else if l := c.Login; l.Issuer+l.ClientID+string(l.KeyFile) != "" || !l.ClientSecret.IsZero() {
		f.Add(setting.Join(path, "login"), "only goes with access: login")
	}
}
