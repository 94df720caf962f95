package revoke

import (
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config says whether single certificates can be revoked here, and by whom beside
// access.admins. Without a directory they can't. One instance alone writes it.
type Config struct {
	// Directory holds the statements, which are a Merkle log, and the lists made of them.
	Directory setting.Path `yaml:"directory,omitempty"`
	// MarkFile keeps how many statements there are, outside of directory, so that an
	// older copy of it is noticed: a revocation is final.
	MarkFile setting.Path `yaml:"mark_file,omitempty"`
	// Key signs the checkpoints of the statements: `file:PATH`, or a key in a KMS or an
	// HSM; ECDSA on P-256, and no authority's. Lists are signed by the authorities.
	Key setting.KeyRef `yaml:"key,omitempty"`
	// Passphrase decrypts the key, where it is an encrypted file.
	Passphrase setting.Secret `yaml:"passphrase,omitempty"`
	// SelfService lets whoever shows a token for which a certificate of the same name
	// and issuer would be issued now, or a signature by the certificate's own key,
	// revoke that one certificate.
	SelfService bool `yaml:"self_service,omitempty"`
	// TwoPeople has what one person asks for, beyond single certificates that they
	// name, wait until another of access.admins has approved it.
	TwoPeople bool `yaml:"two_people,omitempty"`
	// Access says how a key in a KMS is reached.
	kms.Access `yaml:",inline"`
}

// Enabled reports whether anything can be revoked.
func (c *Config) Enabled() bool { return c.Directory != "" }

// Check adds every fault of c. It reads no file.
func (c *Config) Check(path string, f *setting.Faults) {
	if !c.Enabled() {
		if c.MarkFile != "" || c.Key != "" || c.SelfService || c.TwoPeople {
			f.Add(setting.Join(path, "directory"), "required with the settings beside it: a folder for what is revoked")
		}
		return
	}
	if c.MarkFile == "" || c.MarkFile.Inside(c.Directory) {
		f.Add(setting.Join(path, "mark_file"), "required: a file outside of directory, where an older copy of that wouldn't take it along")
	}
	if c.Key == "" {
		f.Add(setting.Join(path, "key"), "required: the key that signs checkpoints of the statements, file:PATH or a key in a KMS; `mayfly kms keygen` makes one")
	} else {
		keystore.CheckAccess(&c.Access, path, c.Key, f)
	}
	c.Passphrase.Check(setting.Join(path, "passphrase"), f)
}

// How lists are kept.
const (
	validity  = 7 * 24 * time.Hour // from thisUpdate to nextUpdate
	resignAge = 24 * time.Hour     // how old a list gets
	maxAge    = 300                // seconds that a cache may keep one
)
