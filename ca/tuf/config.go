package tuf

import (
	"path/filepath"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config is the TUF repository in which clients find the trust root.
type Config struct {
	// Directory is the repository, as `mayfly tuf publish` writes it. Empty serves
	// none. Replicas have the same content.
	Directory setting.Path `yaml:"directory,omitempty"`
	// Key signs snapshot and timestamp once a day: `file:PATH`, or a key in a KMS.
	// It is an ECDSA key on P-256. Replicas have the same one.
	Key setting.KeyRef `yaml:"key,omitempty"`
	// Passphrase decrypts the key, where it is an encrypted file.
	Passphrase setting.Secret `yaml:"passphrase,omitempty"`
	// MarkFile remembers the last day that this process has signed for, so that a
	// clock which is set back makes no client refuse what is served. Each replica has
	// its own. Without it only a running process knows.
	MarkFile setting.Path `yaml:"mark_file,omitempty"`
	// Access says how a key in a KMS is reached.
	kms.Access `yaml:",inline"`
}

// Enabled reports whether there is a repository.
func (c *Config) Enabled() bool { return c.Directory != "" }

// StateFile is what changes when another version is published.
func (c *Config) StateFile() setting.Path {
	if !c.Enabled() {
		return ""
	}
	return setting.Path(filepath.Join(string(c.Directory), stateName))
}

// Check adds every fault of c. It reads no file.
func (c *Config) Check(path string, f *setting.Faults) {
	switch {
	case c.Enabled() && c.Key == "":
		f.Add(setting.Join(path, "key"), "required: the key that signs snapshot and timestamp, file:PATH or a key in a KMS")
	case !c.Enabled() && (c.Key != "" || c.MarkFile != ""):
		f.Add(setting.Join(path, "directory"), "required with key and mark_file: the folder of the repository")
	}
	if c.Key != "" {
		keystore.CheckAccess(&c.Access, path, c.Key, f)
	}
	c.Passphrase.Check(setting.Join(path, "passphrase"), f)
	if c.MarkFile.Inside(c.Directory) {
		f.Add(setting.Join(path, "mark_file"), "is inside the repository, which replicas may share; each needs a mark of its own elsewhere")
	}
}
