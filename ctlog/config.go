package ctlog

import (
	"net"
	"net/url"
	"strings"
	"time"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Mode is where certificates are logged.
type Mode string

// The modes.
const (
	ModeEmbedded Mode = "embedded" // in the log inside this process
	ModeExternal Mode = "external" // in one of the logs listed
	ModeNone     Mode = "none"     // nowhere
)

// Config says where certificates are logged before they leave.
type Config struct {
	// Mode is `embedded` (the log inside this process, for one machine),
	// `external` (the first of `logs` that answers) or `none`. Required.
	Mode Mode `yaml:"mode"`
	// AcceptUnlogged must be true for the mode `none`, and only there: nobody can
	// tell later what such a CA has issued, and most clients refuse its certificates.
	AcceptUnlogged bool `yaml:"accept_unlogged,omitempty"`
	// Embedded is the log inside this process; for the mode `embedded`.
	Embedded EmbeddedConfig `yaml:"embedded,omitempty"`
	// Shards are the logs inside this process that follow `embedded`, or stand in its
	// place: each begins at the moment when the one before it ends. A running service
	// takes a new one up. Those that `mayfly log rotate` makes stand in `state_file`.
	Shards []EmbeddedConfig `yaml:"shards,omitempty"`
	// StateFile is where `mayfly log rotate` and `mayfly log freeze` keep what they
	// decide: logs that were made, ends, and which logs are frozen. `mayfly init` makes
	// it, and `mayfly config export-states` for a configuration that has none; for the
	// mode `embedded`.
	StateFile setting.Path `yaml:"state_file,omitempty"`
	// State is what the state file has; the loader of the configuration reads it.
	State *State `yaml:"-"`
	// Propagation is how long clients get to fetch a trusted root with a new log in
	// it before the log is used: `mayfly log rotate` keeps to it.
	Propagation time.Duration `yaml:"propagation,omitempty"`
	// Logs are the logs to ask, the preferred first; for the mode `external`.
	Logs []ExternalConfig `yaml:"logs,omitempty"`
	// Frozen are logs that are not submitted to: earlier ones, whose certificates
	// have to verify for years. The trust root lists them, and those with a directory
	// are served as well. Those that `mayfly log freeze` closed stand in `state_file`.
	Frozen []FrozenConfig `yaml:"frozen,omitempty"`
	// SCTs is how many of the logs record a certificate before it leaves, each with
	// an SCT in it. 1 unless configured, and many clients take no more: see
	// docs/ctlog.md. For the mode `external`.
	SCTs int `yaml:"scts,omitempty"`
	// Operators is by how many different operators those logs are run at least.
	// Above 1 each log has to name its `operator`.
	Operators int `yaml:"operators,omitempty"`
	// Stagger is how long a silent log is waited for before the next is asked too.
	Stagger time.Duration `yaml:"stagger,omitempty"`
	// Timeout is how long all logs together have to answer a submission.
	Timeout time.Duration `yaml:"timeout,omitempty"`
}

// EmbeddedConfig is the log inside this process.
type EmbeddedConfig struct {
	// Directory holds the log: tiles, checkpoint and state. Only one process may use it.
	Directory setting.Path `yaml:"directory"`
	// MarkFile remembers how large the log has been, so that an old copy of the
	// directory is noticed. It must be outside the directory, best on another
	// disk, and must never be restored from a backup together with it.
	MarkFile setting.Path `yaml:"mark_file"`
	// URL is where the log is served, without a final slash:
	// `https://ca.example.com/ctlog/2027`. Host and path are the log's name in its
	// checkpoints, and can't change over the log's life.
	URL string `yaml:"url"`
	// Key is the log's own private key: ECDSA on P-256, used for nothing else.
	Key setting.KeyRef `yaml:"key"`
	// Passphrase unlocks the key where it is an encrypted file.
	Passphrase setting.Secret `yaml:"passphrase,omitempty"`
	// Operator is who runs the log, as the trust root states it.
	Operator string `yaml:"operator,omitempty"`
	// Start is the moment from which the log is used; it goes into the trust root.
	Start time.Time `yaml:"start,omitempty"`
	// End is the moment from which the log is not used any more.
	End time.Time `yaml:"end,omitempty"`
	// Forced lets it take certificates before clients can know it; `mayfly log rotate
	// --force` writes it.
	Forced bool `yaml:"forced,omitempty"`
	// CheckpointInterval is how often a grown log publishes a checkpoint; an entry
	// is readable after two intervals at most. At least 100ms.
	CheckpointInterval time.Duration `yaml:"checkpoint_interval,omitempty"`
	// MinFreeMB is how much of the log's disk has to be free, in MiB, or `/readyz` has a
	// warning; below a quarter of it nothing is issued. 0 sets no floor. An entry takes
	// about 0.9 kB: the default leaves room for some 200,000 while somebody makes more.
	MinFreeMB int `yaml:"min_free_mb,omitempty"`
	// VerifyInterval is how often the whole log is checked in the background, from the
	// first entry to the last, at some 10 MB/s; 0 never does.
	VerifyInterval time.Duration `yaml:"verify_interval,omitempty"`
	// Witnesses cosign the log's checkpoints; none unless configured.
	Witnesses WitnessesConfig `yaml:"witnesses,omitempty"`
	// Submission serves add-chain and add-pre-chain to everyone for certificates
	// under this CA's roots. Off by default: the CA itself doesn't need it.
	Submission bool `yaml:"submission,omitempty"`
}

// FrozenConfig is a log that takes no submissions of this CA.
type FrozenConfig struct {
	// URL is the log's, as it was when it was in use.
	URL string `yaml:"url"`
	// KeyFile holds the log's public key in PEM.
	KeyFile setting.Path `yaml:"key_file"`
	// Directory holds the embedded log as it was left, or a backup of it, to be
	// served at the path of the URL. Without it the log is only in the trust root.
	Directory setting.Path `yaml:"directory,omitempty"`
	// Operator is who runs the log, as the trust root states it.
	Operator string `yaml:"operator,omitempty"`
	// Start is the moment from which the log is used; it goes into the trust root.
	Start time.Time `yaml:"start,omitempty"`
	// End is the moment from which the log is not used any more.
	End time.Time `yaml:"end,omitempty"`
}

// Check adds every fault of a frozen log's configuration.
func (c *FrozenConfig) Check(path string, f *setting.Faults) {
	setting.CheckURL(setting.Join(path, "url"), c.URL, true, f)
	f.When(c.KeyFile == "", setting.Join(path, "key_file"), "required: the log's public key in PEM")
	setting.CheckWindow(path, c.Start, c.End, f)
}

// ExternalConfig is a log that somebody runs elsewhere.
type ExternalConfig struct {
	// URL is the submission prefix, without a final slash; `/ct/v1/add-pre-chain` is appended.
	URL string `yaml:"url"`
	// MonitoringURL is where the log is read, when that is another place (static-ct logs).
	MonitoringURL string `yaml:"monitoring_url,omitempty"`
	// KeyFile holds the log's public key in PEM. Mandatory: without it no SCT can be verified.
	KeyFile setting.Path `yaml:"key_file"`
	// Operator is who runs the log, as the trust root states it.
	Operator string `yaml:"operator,omitempty"`
	// Start is the moment from which the log is used; it goes into the trust root.
	Start time.Time `yaml:"start,omitempty"`
	// End is the moment from which the log is not used any more.
	End time.Time `yaml:"end,omitempty"`
	// Address is the `host:port` to connect to in place of the URL's host, where the
	// log isn't reached under its own name: `10.0.0.7:443`. Requests and TLS still
	// name the URL's host, which is part of the log's name. No proxy is used then.
	Address string `yaml:"address,omitempty"`
	// CAFile holds the PEM certificates that the log's TLS certificate is verified
	// with, instead of the system's.
	CAFile setting.Path `yaml:"ca_file,omitempty"`
	// Proxy is the URL of the HTTP proxy to go through: `http://proxy.example:3128`.
	// `none` goes through none. Without it the environment's HTTPS_PROXY, HTTP_PROXY
	// and NO_PROXY decide, as they do for issuers.
	Proxy string `yaml:"proxy,omitempty"`
	// Token is sent as a bearer token with every request to the log; only over https.
	Token setting.Secret `yaml:"token,omitempty"`
	// MaxInFlight is how many submissions may wait for this log at once.
	MaxInFlight int `yaml:"max_in_flight,omitempty"`
	// MMD is the log's maximum merge delay: an issued certificate that can't be
	// read there after half of it raises an alarm. 24h unless configured.
	MMD time.Duration `yaml:"mmd,omitempty"`
	// AllowHTTP permits an http URL to a host that is not this machine.
	AllowHTTP bool `yaml:"allow_http,omitempty"`
}

// DefaultCheckpointInterval is how often a grown embedded log publishes a checkpoint.
const DefaultCheckpointInterval = time.Second

// MinCheckpointInterval is the shortest interval that the storage takes.
const MinCheckpointInterval = 100 * time.Millisecond

// DefaultMinFreeMB is the floor of free space under an embedded log, in MiB.
const DefaultMinFreeMB = 256

// DefaultVerifyInterval is how often an embedded log is checked as a whole.
const DefaultVerifyInterval = 24 * time.Hour

// DefaultMaxInFlight bounds the submissions that wait for one external log.
const DefaultMaxInFlight = 256

// MaxSCTs bounds the SCTs of one certificate.
const MaxSCTs = 8

// DefaultConfig names no mode: where certificates are logged is the operator's decision.
func DefaultConfig() Config {
	c := Config{Propagation: DefaultPropagation, Stagger: DefaultStagger, Timeout: DefaultTimeout}
	c.Embedded.SetDefaults()
	return c
}

// Check adds every fault of the configuration. It reads no file.
func (c *Config) Check(path string, f *setting.Faults) {
	s := setting.Section{Path: path, Faults: f}
	only := func(mode Mode, field string, set bool) {
		s.Wrong(set && c.Mode != mode, field, "only goes with the mode %s", mode)
	}
	scts, operators, logs := max(c.SCTs, 1), max(c.Operators, 1), max(len(c.Logs), 1)
	const negative = "can't be negative"
	only(ModeNone, "accept_unlogged", c.AcceptUnlogged)
	only(ModeExternal, "logs", len(c.Logs) > 0)
	only(ModeEmbedded, "shards", len(c.Shards) > 0)
	only(ModeEmbedded, "state_file", c.StateFile != "")
	only(ModeEmbedded, "embedded", c.Embedded.Directory != "" || c.Embedded.Key != "")
	s.Wrong(c.SCTs < 0, "scts", negative)
	s.Wrong(c.Operators < 0, "operators", negative)
	s.Wrong(scts > MaxSCTs, "scts", "is %d; at most %d fit a certificate that clients read", scts, MaxSCTs)
	s.Wrong(scts <= MaxSCTs && scts > logs, "scts", "is %d, of %d logs", scts, logs)
	s.Wrong(operators > scts, "operators", "is %d, of %d SCTs (scts)", operators, scts)
	s.Wrong(c.Stagger < 0, "stagger", negative)
	s.Wrong(c.Timeout < 0, "timeout", negative)
	s.Wrong(c.Propagation < 0, "propagation", negative)
	s.Wrong(c.Mode == "", "mode", "required: embedded, external or none")
	s.Wrong(c.Mode == ModeNone && !c.AcceptUnlogged, "accept_unlogged", "must be true for the mode none: certificates would leave without a trace")
	s.Wrong(c.Mode == ModeExternal && len(c.Logs) == 0, "logs", "required for the mode external: at least one log")
	if operators > 1 {
		c.checkOperators(path, operators, f)
	}
	for i, log := range c.FrozenLogs() {
		log.Check(c.FrozenPath(path, i), f)
	}
	c.checkState(path, f)
	switch c.Mode {
	case ModeEmbedded:
		c.checkOwn(path, f)
	case ModeExternal:
		c.checkLogs(setting.Join(path, "logs"), f)
	case ModeNone, "":
	default:
		f.Add(setting.Join(path, "mode"), "unknown mode %q: embedded, external or none", string(c.Mode))
	}
}

// checkOperators wants as many operators of the logs.
func (c *Config) checkOperators(path string, wanted int, f *setting.Faults) {
	names := make(map[string]bool, len(c.Logs))
	for i, l := range c.Logs {
		f.When(l.Operator == "", setting.Join(setting.Index(setting.Join(path, "logs"), i), "operator"), "required where ctlog.operators is above 1")
		names[l.Operator] = true
	}
	f.When(wanted > len(names), setting.Join(path, "operators"), "is %d, of %d operators of the logs", wanted, len(names))
}

func (c *Config) checkLogs(path string, f *setting.Faults) {
	seen := make(map[string]int, len(c.Logs))
	for i := range c.Logs {
		at := setting.Index(path, i)
		c.Logs[i].Check(at, f)
		name := strings.TrimSuffix(c.Logs[i].URL, "/")
		if first, twice := seen[name]; twice && name != "" {
			f.Add(setting.Join(at, "url"), "the same log as %s", setting.Index(path, first))
		} else {
			seen[name] = i
		}
	}
}

// Check adds every fault of the embedded log's configuration.
func (c *EmbeddedConfig) Check(path string, f *setting.Faults) {
	_, name, _ := strings.Cut(c.URL, "://")
	s := setting.Section{Path: path, Faults: f}
	s.Wrong(c.Directory == "", "directory", "required")
	s.Wrong(c.MarkFile == "", "mark_file", "required")
	s.Wrong(c.URL == "", "url", "required")
	s.Wrong(c.Key == "", "key", "required")
	s.Wrong(c.MarkFile.Inside(c.Directory), "mark_file", "must be outside the log's directory, or it would be rolled back with it")
	s.Wrong(name != strings.ToLower(name), "url", "must be in lower case") // readers derive the log's name from its URL in lower case
	s.Wrong(c.CheckpointInterval != 0 && c.CheckpointInterval < MinCheckpointInterval, "checkpoint_interval", "at least %v", MinCheckpointInterval)
	s.Wrong(c.MinFreeMB < 0 || c.MinFreeMB > maxFreeMB, "min_free_mb", "is %d; 0 to %d (MiB) is expected", c.MinFreeMB, maxFreeMB)
	s.Wrong(c.VerifyInterval < 0, "verify_interval", "can't be negative; 0 never checks")
	if c.URL != "" {
		setting.CheckURL(setting.Join(path, "url"), c.URL, true, f)
	}
	c.Passphrase.Check(setting.Join(path, "passphrase"), f)
	c.Witnesses.Check(setting.Join(path, "witnesses"), f)
	setting.CheckWindow(path, c.Start, c.End, f)
}

// maxFreeMB bounds MinFreeMB, so that the size in bytes can't overflow.
const maxFreeMB = 1 << 30

// Origin is the log's name in its checkpoints: its URL without scheme
// (c2sp.org/static-ct-api).
func (c *EmbeddedConfig) Origin() string {
	u, err := url.Parse(strings.TrimSuffix(c.URL, "/"))
	if err != nil {
		return ""
	}
	return u.Host + u.Path
}

// ProxyNone is the proxy of a log that none leads to, whatever the environment says.
const ProxyNone = "none"

// Check adds every fault of an external log's configuration.
func (c *ExternalConfig) Check(path string, f *setting.Faults) {
	setting.CheckURL(setting.Join(path, "url"), c.URL, c.AllowHTTP, f)
	if c.MonitoringURL != "" {
		setting.CheckURL(setting.Join(path, "monitoring_url"), c.MonitoringURL, c.AllowHTTP, f)
	}
	c.Token.Check(setting.Join(path, "token"), f)
	host, port, err := net.SplitHostPort(c.Address)
	proxied := c.Proxy != "" && c.Proxy != ProxyNone
	s := setting.Section{Path: path, Faults: f}
	s.Wrong(c.KeyFile == "", "key_file", "required: without the log's key no SCT can be verified")
	s.Wrong(c.Address != "" && (err != nil || host == "" || port == ""), "address", "%q is not host:port", c.Address)
	s.Wrong(c.Address != "" && proxied, "proxy", "doesn't go with address: a proxy looks up names by itself")
	s.Wrong(proxied && !isProxy(c.Proxy), "proxy", "expected http://host:port, https://host:port or none")
	s.Wrong(!c.Token.IsZero() && strings.HasPrefix(strings.ToLower(c.URL), "http:"), "token", "is only sent over https")
	s.Wrong(c.MMD < 0, "mmd", "can't be negative")
	s.Wrong(c.MaxInFlight < 0, "max_in_flight", "can't be negative")
	setting.CheckWindow(path, c.Start, c.End, f)
}

// isProxy reports whether the URL is a proxy's. The proxy's own password would be in the
// configuration; nothing here needs one yet.
func isProxy(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") &&
		u.User == nil && u.RawQuery == "" && u.Fragment == "" && strings.Trim(u.Path, "/") == ""
}

// WitnessMode is what a checkpoint without enough cosignatures is worth.
type WitnessMode string

// The modes.
const (
	WitnessOpen   WitnessMode = "open"   // it is published, and the metrics say so
	WitnessClosed WitnessMode = "closed" // it is not published
)

// WitnessesConfig names the witnesses that cosign an embedded log's checkpoints.
type WitnessesConfig struct {
	// List are the witnesses. Each new checkpoint is offered to all of them, and
	// published with the cosignatures that came.
	List []WitnessConfig `yaml:"list"`
	// Required is how many cosignatures a checkpoint should have; 1 unless configured.
	Required int `yaml:"required,omitempty"`
	// Mode is what becomes of a checkpoint that has fewer: `open` (the default)
	// publishes it all the same; `closed` doesn't, so that nothing newer can be read
	// until enough witnesses are back. SCTs are given in either mode. See docs/ctlog.md
	// before choosing `closed`.
	Mode WitnessMode `yaml:"mode,omitempty"`
	// Timeout is how long a checkpoint waits for cosignatures; 2s unless configured.
	Timeout time.Duration `yaml:"timeout,omitempty"`
}

// WitnessConfig is a witness (c2sp.org/tlog-witness).
type WitnessConfig struct {
	// URL is the witness's submission prefix; `/add-checkpoint` is appended.
	URL string `yaml:"url"`
	// Key is the witness's verifier key, in one line of the form
	// `name+hash+base64`. The name is how metrics and the log call it.
	Key string `yaml:"key"`
	// AllowHTTP permits an http URL to a host that is not this machine.
	AllowHTTP bool `yaml:"allow_http,omitempty"`
}

// Bounds of how witnesses are asked.
const (
	DefaultWitnessTimeout = 2 * time.Second
	MaxWitnessTimeout     = 10 * time.Second // the last checkpoint has to fit the time that closing has
	maxWitnesses          = 16
)

// Verifier reads the witness's key: Ed25519 or ML-DSA-44 for cosignatures
// (c2sp.org/tlog-cosignature).
func (c *WitnessConfig) Verifier() (note.Verifier, error) {
	return formats.NewVerifierForCosignatureV1(c.Key)
}

// Check adds every fault of the configuration.
func (c *WitnessesConfig) Check(path string, f *setting.Faults) {
	s := setting.Section{Path: path, Faults: f}
	s.Wrong(len(c.List) > maxWitnesses, "list", "has %d witnesses; at most %d are asked", len(c.List), maxWitnesses)
	s.Wrong(c.Required < 0 || c.Required > len(c.List), "required", "is %d, of %d witnesses", c.Required, len(c.List))
	s.Wrong(c.Mode != "" && c.Mode != WitnessOpen && c.Mode != WitnessClosed, "mode", "unknown mode %q: open or closed", string(c.Mode))
	s.Wrong(c.Timeout < 0 || c.Timeout > MaxWitnessTimeout, "timeout", "is %v; at most %v is expected", c.Timeout, MaxWitnessTimeout)
	names := make(map[string]int, len(c.List))
	for i := range c.List {
		w, at := &c.List[i], setting.Index(setting.Join(path, "list"), i)
		setting.CheckURL(setting.Join(at, "url"), w.URL, w.AllowHTTP, f)
		v, err := w.Verifier()
		if err != nil {
			f.Add(setting.Join(at, "key"), "expected a verifier key name+hash+base64 of a witness: Ed25519 or ML-DSA-44")
			continue
		}
		if first, twice := names[v.Name()]; twice {
			f.Add(setting.Join(at, "key"), "the same name as %s", setting.Index(setting.Join(path, "list"), first))
			continue
		}
		names[v.Name()] = i
	}
}
