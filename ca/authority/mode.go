package ca

import (
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Mode says where the key is that signs certificates. docs/keys.md says what each
// risks and costs.
type Mode string

// The modes.
const (
	// ModeDirect signs every certificate with the configured key, where that is.
	ModeDirect Mode = "direct"
	// ModeSealed signs in memory, with a key that is stored only as the
	// configured key encrypted it.
	ModeSealed Mode = "sealed"
	// ModeEphemeral signs in memory, with keys of a few days that are stored
	// nowhere and that the configured key certifies.
	ModeEphemeral Mode = "ephemeral"
)

// mode is c's, with its default.
func (c *AuthorityConfig) mode() Mode {
	if c.Mode == "" {
		return ModeDirect
	}
	return c.Mode
}

// checkMode adds the faults of what belongs to one mode.
func (c *AuthorityConfig) checkMode(path string, f *setting.Faults) {
	switch c.mode() {
	case ModeDirect, ModeSealed:
	case ModeEphemeral:
		c.Ephemeral.check(setting.Join(path, "ephemeral"), f)
		if c.SigningQuota != 0 {
			f.Add(setting.Join(path, "signing_quota"), "is for a key that signs certificates: remove it with `mode: ephemeral`, whose KMS signs once in a day or two")
		}
		if c.PrecertificateSigner == PresignOn {
			f.Add(setting.Join(path, "precertificate_signer"), "is for a key in a KMS that signs certificates: remove it with `mode: ephemeral`")
		}
	default:
		f.Add(setting.Join(path, "mode"), "%q is none of direct, sealed, ephemeral", c.Mode)
	}
	if c.mode() != ModeEphemeral && c.Ephemeral != (EphemeralConfig{}) {
		f.Add(setting.Join(path, "ephemeral"), "belongs to `mode: ephemeral`: set that, or remove it")
	}
	sealed := setting.Join(path, "sealed_key")
	if c.mode() != ModeSealed {
		if c.SealedKey != "" {
			f.Add(sealed, "belongs to `mode: sealed`: set that, or remove it")
		}
		return
	}
	if c.SealedKey == "" {
		f.Add(sealed, "required with `mode: sealed`: the file that `mayfly kms keygen KEY --sealed-key FILE` writes")
	}
	if c.Key == "" {
		return
	}
	if err := kms.CheckSealing(string(c.Key), c.Access); err != nil {
		f.Add(setting.Join(path, "key"), "%v", err)
	}
}

// options are what c's key is opened with.
func (c *AuthorityConfig) options(o kms.Options) kms.Options {
	o.Passphrase, o.Access, o.SealedKey = c.Passphrase, c.Access, c.SealedKey
	return o
}
