package notify

import (
	"net"
	"net/mail"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config says who is told of what. It needs the section store.
type Config struct {
	// Rules say what is told, and to which targets; at most 64.
	Rules []Rule `yaml:"rules,omitempty"`
	// Targets are where it goes; at most 16.
	Targets []Target `yaml:"targets,omitempty"`
	// SMTP is the mail server of targets with email or owner.
	SMTP SMTP `yaml:"smtp,omitempty"`
}

// Rule says what is told.
type Rule struct {
	// Name is what the alert calls the rule: lower-case letters, digits and `-`, at most 64.
	Name string `yaml:"name"`
	// Event is what the rule is about: `certificate`, each one that is in a log;
	// `first_use`, a workflow, a runner or an issuer that a known identity uses for the
	// first time; `silence`, an identity that had a certificate, and no other for as
	// long as after says; `revocation`, a certificate that was revoked.
	Event On `yaml:"event"`
	// When is a condition in CEL over the certificate's fields, by the names of search:
	// `san.endsWith("@example.com") && issuer != "https://login.example.com"`. Without
	// it the rule is about all. A field that the certificate lacks is "".
	When string `yaml:"when,omitempty"`
	// After is how long a silence lasts, at least 1m.
	After time.Duration `yaml:"after,omitempty"`
	// Targets are the names of those who are told.
	Targets []string `yaml:"targets"`
}

// On is what a rule is about.
type On string

// What rules can be about.
const (
	Certificate On = "certificate"
	FirstUse    On = "first_use"
	Silence     On = "silence"
	Revocation  On = "revocation"
)

// Target is somebody who is told, by one of email, owner, webhook and slack.
type Target struct {
	// Name is what rules and metrics call the target, as a rule's name.
	Name string `yaml:"name"`
	// Email lists addresses; each sees the others.
	Email []string `yaml:"email,omitempty"`
	// Owner sends to the mail address in the certificate, where its san is one: to each
	// owner their own alone.
	Owner bool `yaml:"owner,omitempty"`
	// Webhook is a URL to which CloudEvents are posted, signed as Standard Webhooks has
	// it. Redirects aren't followed.
	Webhook string `yaml:"webhook,omitempty"`
	// Secret is that of the webhook: `whsec_` and base64 of 24 to 64 bytes. Of several,
	// with spaces or on lines, each signs, so that one can follow another.
	Secret setting.Secret `yaml:"secret,omitempty"`
	// Slack is where the URL of an incoming webhook is: of Slack, Mattermost, or another
	// chat that takes the same. Who knows that URL can post there.
	Slack setting.Secret `yaml:"slack,omitempty"`
	// AllowNetworks lists networks in which a webhook may be, beside the public
	// Internet, such as 10.20.0.0/16.
	AllowNetworks []string `yaml:"allow_networks,omitempty"`
	// CAFile has the certificate authorities of a webhook's server, in PEM, in place of
	// the system's.
	CAFile setting.Path `yaml:"ca_file,omitempty"`
	// Digest gathers alerts for so long into one message, for each owner one; at least
	// 1m. Without it each is sent at once.
	Digest time.Duration `yaml:"digest,omitempty"`
}

// SMTP is a mail server. It is spoken to under TLS, from the first byte on port 465, and
// after STARTTLS on all others; on this machine only where ca_file says whom to believe.
type SMTP struct {
	// Address is `host:port`.
	Address string `yaml:"address,omitempty"`
	// From is the sender's address.
	From string `yaml:"from,omitempty"`
	// Username logs in with the password.
	Username string `yaml:"username,omitempty"`
	// Password is the user's.
	Password setting.Secret `yaml:"password,omitempty"`
	// CAFile has the certificate authorities of the server, in PEM, in place of the system's.
	CAFile setting.Path `yaml:"ca_file,omitempty"`
}

// The bounds of what each certificate costs, and of what is sent at once.
const (
	maxRules   = 64
	maxTargets = 16
)

// Enabled reports whether anybody is told of anything.
func (c *Config) Enabled() bool { return len(c.Rules) > 0 }

// Check adds every fault of c. It reads no file.
func (c *Config) Check(path string, f *setting.Faults) {
	f.When(len(c.Rules) > maxRules || len(c.Targets) > maxTargets, path, "has %d rules and %d targets; at most %d and %d are served", len(c.Rules), len(c.Targets), maxRules, maxTargets)
	targets, rules, mails := map[string]bool{}, map[string]bool{}, false
	for i, t := range c.Targets {
		t.check(setting.Index(setting.Join(path, "targets"), i), targets, f)
		mails = mails || t.mails()
	}
	for i, r := range c.Rules {
		r.check(setting.Index(setting.Join(path, "rules"), i), rules, targets, f)
	}
	compile(setting.Join(path, "rules"), c.Rules, f)
	if _, _, err := net.SplitHostPort(c.SMTP.Address); mails && err != nil {
		f.Add(setting.Join(path, "smtp.address"), "required with targets that are sent mail: host:port, such as mail.example.com:587")
	}
	f.When(mails && !isAddress(c.SMTP.From), setting.Join(path, "smtp.from"), "required with targets that are sent mail: the sender's address, such as mayfly@example.com")
	f.When((c.SMTP.Username == "") != c.SMTP.Password.IsZero(), setting.Join(path, "smtp"), "has only one of username and password; set both or neither")
	c.SMTP.Password.Check(setting.Join(path, "smtp.password"), f)
}

func (r *Rule) check(at string, rules, targets map[string]bool, f *setting.Faults) {
	setting.CheckName(at, r.Name, rules, f)
	all := []On{Certificate, FirstUse, Silence, Revocation}
	switch {
	case !slices.Contains(all, r.Event):
		f.Add(setting.Join(at, "event"), "must be one of %s", setting.List(all))
	case r.Event == Silence && r.After < time.Minute, r.Event != Silence && r.After != 0:
		f.Add(setting.Join(at, "after"), "goes with `event: silence`, which needs it: how long, at least 1m")
	}
	f.When(len(r.Targets) == 0, setting.Join(at, "targets"), "required: the names of those who are told")
	for i, name := range r.Targets {
		f.When(!targets[name] || slices.Contains(r.Targets[:i], name), setting.Index(setting.Join(at, "targets"), i), "must be the name of one of alerts.targets, once")
	}
}

func (t *Target) mails() bool { return t.Owner || len(t.Email) > 0 }

func (t *Target) check(at string, targets map[string]bool, f *setting.Faults) {
	setting.CheckName(at, t.Name, targets, f)
	ways := slices.DeleteFunc([]bool{len(t.Email) > 0, t.Owner, t.Webhook != "", !t.Slack.IsZero()}, func(set bool) bool { return !set })
	switch {
	case len(ways) != 1:
		f.Add(at, "must have exactly one of email, owner, webhook and slack")
	case (t.Webhook != "") == t.Secret.IsZero():
		f.Add(setting.Join(at, "secret"), "goes with webhook, which needs it: `{file: PATH}`, which holds whsec_ and base64 of 24 to 64 random bytes")
	case t.mails() && (len(t.AllowNetworks) > 0 || t.CAFile != ""):
		f.Add(at, "has allow_networks or ca_file, which only go with webhook and slack")
	case t.Digest != 0 && t.Digest < time.Minute:
		f.Add(setting.Join(at, "digest"), "must be at least 1m; without it each alert is sent at once")
	}
	if i := slices.IndexFunc(t.Email, func(a string) bool { return !isAddress(a) }); i >= 0 {
		f.Add(setting.Index(setting.Join(at, "email"), i), "must be a mail address, such as security@example.com")
	}
	if t.Webhook != "" {
		setting.CheckURL(setting.Join(at, "webhook"), t.Webhook, false, f)
	}
	t.Secret.Check(setting.Join(at, "secret"), f)
	t.Slack.Check(setting.Join(at, "slack"), f)
}

// isAddress reports whether s is a mail address and nothing more.
func isAddress(s string) bool {
	a, err := mail.ParseAddress(s)
	return err == nil && a.Address == s && len(s) <= 254 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || strings.ContainsRune("<>\"\\\x7f", r) })
}
