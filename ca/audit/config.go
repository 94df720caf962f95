package audit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config is the `audit` section.
type Config struct {
	// Path is the file of the audit trail: one CloudEvents JSON line for every
	// intent, every issued certificate and every failure after an intent.
	// Required; its folder must exist. Refusals go to a second file beside it:
	// `audit.jsonl` has `audit.refused.jsonl`.
	Path setting.Path `yaml:"path"`
	// KeyFile is a P-256 key in a PEM file that signs heads: each minute in which there
	// were records, and at the end, one record that vouches for all before it. Without
	// it, who alters the trail can hide it by writing it anew from there on.
	KeyFile setting.Path `yaml:"key_file,omitempty"`
	// Passphrase is for a key file that is encrypted.
	Passphrase setting.Secret `yaml:"passphrase,omitempty"`
	// Rotation says when the audit trail is rotated and how much is kept. By
	// default nothing is ever deleted.
	Rotation Rotation `yaml:"rotation"`
	// RefusedRotation is the same for the file of refusals. Anybody can cause
	// refusals, so by default this file is bounded.
	RefusedRotation Rotation `yaml:"refused_rotation"`
	// Sinks are where the records go besides, four at most. Each follows the files from
	// where it was, so that what one couldn't take waits there; issuing waits for none.
	Sinks []Sink `yaml:"sinks,omitempty"`
}

// Sink is one place that records go to.
type Sink struct {
	// Name is what metrics, `/readyz` and the file of its position call the sink:
	// lower-case letters, digits and `-`, at most 64.
	Name string `yaml:"name"`
	// URL is `stdout:`; syslog (RFC 5424) as `tls://HOST:PORT`, `tcp://HOST:PORT` or a socket,
	// `unix:///dev/log`; or an `https` URL to which batches of CloudEvents are posted.
	URL string `yaml:"url"`
	// Only names the one type of record that goes there, such as `head` or `issued`; empty: all.
	Only Type `yaml:"only,omitempty"`
	// CAFile has the certificates, in PEM, that a server of TLS is verified with, in
	// place of the system's.
	CAFile setting.Path `yaml:"ca_file,omitempty"`
	// BearerTokenFile holds a token that is sent with each batch by HTTP. It is read anew
	// each time.
	BearerTokenFile setting.Path `yaml:"bearer_token_file,omitempty"`
}

// maxSinks bounds the sinks, each of which takes 3 MiB.
const maxSinks = 4

func (s *Sink) check(path string, seen map[string]bool, f *setting.Faults) {
	setting.CheckName(path, s.Name, seen, f)
	f.When(s.Only != "" && !s.Only.valid() && s.Only != head && s.Only != recovered, setting.Join(path, "only"), "%q is no type of record; docs/audit.md has them", s.Only)
	u, err := url.Parse(s.URL)
	switch {
	case err == nil && u.Scheme == "stdout" && s.URL == "stdout:",
		err == nil && u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path),
		err == nil && (u.Scheme == "tcp" || u.Scheme == "tls") && u.Port() != "" && u.Path == "":
	case err == nil && (u.Scheme == "https" || u.Scheme == "http"):
		setting.CheckURL(setting.Join(path, "url"), s.URL, false, f)
	default:
		f.Add(setting.Join(path, "url"), "%q isn't stdout:, tls://HOST:PORT, tcp://HOST:PORT, unix:///PATH or an https URL", s.URL)
	}
}

// Rotation says when a file is rotated and how much of the past is kept.
type Rotation struct {
	// MaxSizeMB is the size at which the file is rotated, in MiB: 1 to 10240.
	MaxSizeMB int `yaml:"max_size_mb"`
	// MaxBackups is how many rotated files are kept; 0 keeps all.
	MaxBackups int `yaml:"max_backups"`
	// MaxAgeDays is how long a rotated file is kept, in days; 0 keeps it for ever.
	MaxAgeDays int `yaml:"max_age_days"`
	// Compress packs rotated files with gzip. The packed copy isn't flushed to
	// the disk before the original is removed: a power cut in the seconds after
	// a rotation can lose that file. Leave it off where that matters.
	Compress bool `yaml:"compress"`
}

// maxSizeMB bounds MaxSizeMB, so that the size in bytes can't overflow.
const maxSizeMB = 10240

// DefaultConfig keeps the whole trail in files of 100 MiB, and of the refusals
// the last eleven files of 50 MiB, for 90 days at most. The path has no default.
func DefaultConfig() Config {
	return Config{
		Rotation:        Rotation{MaxSizeMB: 100},
		RefusedRotation: Rotation{MaxSizeMB: 50, MaxBackups: 10, MaxAgeDays: 90},
	}
}

// Check adds every fault of c to f; path is where c is in the document.
func (c *Config) Check(path string, f *setting.Faults) {
	switch {
	case c.Path == "":
		f.Add(setting.Join(path, "path"), "required: the file that the audit trail is written to")
	case strings.HasSuffix(string(c.Path), string(filepath.Separator)):
		f.Add(setting.Join(path, "path"), "names a folder; a file is expected, for example audit.jsonl")
	}
	c.Passphrase.Check(setting.Join(path, "passphrase"), f)
	f.When(len(c.Sinks) > maxSinks, setting.Join(path, "sinks"), "are %d; %d at most are expected", len(c.Sinks), maxSinks)
	seen := map[string]bool{}
	for i := range c.Sinks {
		c.Sinks[i].check(setting.Index(setting.Join(path, "sinks"), i), seen, f)
	}
	c.Rotation.check(setting.Join(path, "rotation"), f)
	c.RefusedRotation.check(setting.Join(path, "refused_rotation"), f)
}

func (r *Rotation) check(path string, f *setting.Faults) {
	f.When(r.MaxSizeMB < 1 || r.MaxSizeMB > maxSizeMB, setting.Join(path, "max_size_mb"), "is %d; 1 to %d (MiB) is expected", r.MaxSizeMB, maxSizeMB)
	f.When(r.MaxBackups < 0, setting.Join(path, "max_backups"), "is negative; a number of files is expected, 0 keeps all")
	f.When(r.MaxAgeDays < 0, setting.Join(path, "max_age_days"), "is negative; a number of days is expected, 0 keeps all")
}

// Key reads the key that signs heads; nil where none is named.
func (c *Config) Key() (*ecdsa.PrivateKey, error) {
	if c.KeyFile == "" {
		return nil, nil //nolint:nilnil // heads are optional
	}
	b, err := secretfile.Read(string(c.KeyFile))
	if err != nil {
		return nil, fmt.Errorf("the key of the audit trail: %w", err)
	}
	var passphrase []byte
	if !c.Passphrase.IsZero() {
		if passphrase, err = c.Passphrase.Read(); err != nil {
			return nil, fmt.Errorf("the passphrase of the audit trail's key: %w", err)
		}
	}
	signer, err := pemfile.PrivateKey(b, passphrase)
	if err != nil {
		return nil, fmt.Errorf("the key of the audit trail: %s %w", c.KeyFile, err)
	}
	key, ok := signer.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the key of the audit trail: %s isn't a P-256 key: make one with mayfly kms keygen", c.KeyFile)
	}
	return key, nil
}

// TrailFile is one of the files that make a trail, each with its rotated parts.
type TrailFile struct{ Name, Path string }

// Files are those of the trail at path: of what is issued, of what is refused, and of
// what administrators do. The part of a name before the last extension must not be
// "<trail>-", the prefix of rotated trails.
func Files(path string) []TrailFile {
	ext := filepath.Ext(path)
	name := strings.TrimSuffix(path, ext)
	return []TrailFile{{"trail", path}, {"refused", name + ".refused" + ext}, {"admin", name + ".admin" + ext}}
}
