package authority

import (
	"cmp"
	"crypto/x509"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
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
func (c *Config) mode() Mode { return cmp.Or(c.Mode, ModeDirect) }

// checkMode adds the faults of what belongs to one mode.
func (c *Config) checkMode(path string, f *setting.Faults) {
	switch c.mode() {
	case ModeDirect, ModeSealed:
	case ModeEphemeral:
		c.Ephemeral.check(setting.Join(path, "ephemeral"), f)
		if c.SigningQuota != 0 {
			f.Add(setting.Join(path, "signing_quota"), "is for a key that signs certificates: remove it with `mode: ephemeral`, whose KMS signs once in a day or two")
		}
		if c.PrecertificateSigner == SignerOn {
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
	if err := keystore.CheckSealing(string(c.Key), c.Access); err != nil {
		f.Add(setting.Join(path, "key"), "%v", err)
	}
}

// options are what the key of c is opened with, which is that of the first certificate.
func (c *Config) options(o kms.Options, certs []*x509.Certificate) kms.Options {
	if len(certs) > 0 {
		o.Public = certs[0].PublicKey
	}
	o.Passphrase, o.Access, o.SealedKey = c.Passphrase, c.Access, c.SealedKey
	return o
}

// The bounds of an ephemeral issuing certificate's life: long enough to be
// published ahead and to outlast a KMS that is down, short enough that nobody
// keeps what a stolen memory is good for.
const (
	minEphemeral     = 24 * time.Hour
	defaultEphemeral = 72 * time.Hour
	maxEphemeral     = 30 * 24 * time.Hour

	defaultPublishAhead = 24 * time.Hour
)

// EphemeralConfig says how `mode: ephemeral` renews its issuing certificates.
type EphemeralConfig struct {
	// Lifetime of an issuing certificate: from 24h to 720h, 72h by default. It ends
	// with the signing CA's at the latest.
	Lifetime time.Duration `yaml:"lifetime,omitempty"`
	// PublishAhead is how long a new issuing certificate is in the trusted root and
	// the trust bundle before it issues, while the old one goes on: 24h by default,
	// at most half of the lifetime. Clients must fetch the trusted root as often.
	PublishAhead time.Duration `yaml:"publish_ahead,omitempty"`
	// AcceptUnlisted lets a new issuing certificate issue at once where there is no
	// other: at every start, since the key before is gone with its process, and
	// after a KMS was down for longer than the old one lasted. Clients with an older
	// trusted root can't verify what it signs. Without it, a start issues nothing
	// before publish_ahead has passed.
	AcceptUnlisted bool `yaml:"accept_unlisted,omitempty"`
	// History is the folder of all issuing certificates, past ones included, which
	// stay listed. Nothing in it is secret. Replicas must share it, or clients of
	// one don't learn of the others' certificates.
	History setting.Path `yaml:"history,omitempty"`
}

func (c *EphemeralConfig) lifetime() time.Duration { return cmp.Or(c.Lifetime, defaultEphemeral) }

func (c *EphemeralConfig) publishAhead() time.Duration {
	return cmp.Or(c.PublishAhead, defaultPublishAhead)
}

// slack is how long before it must the next certificate is made: what a KMS may
// be down without anybody noticing.
func (c *EphemeralConfig) slack() time.Duration { return (c.lifetime() - c.publishAhead()) / 3 }

func (c *EphemeralConfig) check(path string, f *setting.Faults) {
	if l := c.lifetime(); l < minEphemeral || l > maxEphemeral || l%time.Second != 0 {
		f.Add(setting.Join(path, "lifetime"), "%v is out of bounds: from %v to %v, in whole seconds", l, minEphemeral, maxEphemeral)
	} else if a := c.publishAhead(); a < time.Minute || a > l/2 {
		f.Add(setting.Join(path, "publish_ahead"), "%v is out of bounds: from 1m to half of the lifetime (%v)", a, l/2)
	}
	if c.History == "" {
		f.Add(setting.Join(path, "history"), "required with `mode: ephemeral`: a folder for the issuing certificates, which verifiers need for as long as their signatures count")
	}
}
