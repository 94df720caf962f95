package ca

import (
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// The bounds of a leaf's lifetime. Signing clients use a certificate once, at
// once, and there is no revocation to shorten what is too long.
const (
	MinLifetime     = time.Minute
	DefaultLifetime = 10 * time.Minute
	MaxLifetime     = time.Hour
)

// Config is the section `ca` of the configuration.
type Config struct {
	// Authority is what signs: a certificate chain and the key of its first
	// certificate. It is always active; an authority that is to be followed by
	// another stands under `authorities`.
	Authority AuthorityConfig `yaml:"authority"`
	// Authorities are several authorities in their states, in place of `authority`:
	// exactly one is active and signs; docs/authorities.md says how one follows another.
	Authorities []NamedAuthority `yaml:"authorities,omitempty"`
	// StateFile is where `mayfly authority` keeps the states of `authorities`, and the
	// authorities that it added itself. Without it the states stand in this
	// configuration, where only a person can change them.
	StateFile setting.Path `yaml:"state_file,omitempty"`
	// States are what the state file has; the loader of the configuration reads it.
	States []NamedAuthority `yaml:"-"`
	// Propagation is how long the trusted root must have listed an authority before
	// it may sign after another: from 0s to 720h, 24h by default. Clients that fetch
	// the trusted root less often refuse its certificates.
	Propagation time.Duration `yaml:"propagation"`
	// Lifetime of a certificate, both ends included: from 1m to 1h, 10m by
	// default, in whole seconds. Clients of the public Sigstore expect 10m.
	Lifetime time.Duration `yaml:"lifetime"`
}

// NamedAuthority is one of several authorities.
type NamedAuthority struct {
	// Name is for people, metrics and `mayfly authority`: letters a-z, digits and
	// hyphens, 32 at most. It never changes and isn't used again.
	Name            string `yaml:"name"`
	AuthorityConfig `yaml:",inline"`
	// Record is the state, where no state file keeps it.
	lifecycle.Record `yaml:",inline"`
}

// All are the authorities in their order: those of the configuration, with the
// states of the state file where there is one, then those that the state file adds.
func (c *Config) All() []NamedAuthority {
	all := slices.Clone(c.Authorities)
	for _, s := range c.States {
		if i := indexOf(all, s.Name); i >= 0 {
			all[i].Record = s.Record
		} else if s.defined() {
			all = append(all, s)
		}
	}
	return all
}

// Presign says when precertificates have a signer of their own.
type Presign string

// The values of precertificate_signer; empty is auto.
const (
	PresignAuto Presign = "auto"
	PresignOn   Presign = "on"
	PresignOff  Presign = "off"
)

// maxQuota bounds signing_quota: no key signs as fast.
const maxQuota = 100_000

// AuthorityConfig names the files and keys of one authority.
type AuthorityConfig struct {
	// Chain is a PEM file with the issuing certificate first, each certificate
	// followed by the one that signed it, and the self-signed root last. An
	// authority that issues from its root has that one certificate. With `mode:
	// ephemeral` it begins with the signing CA: a root, or one of path length 1 or more.
	Chain setting.Path `yaml:"chain"`
	// Mode says where the key is that signs certificates: `direct` (the default:
	// `key` itself signs them), `sealed` (a key in memory signs, which is stored only
	// as `key` encrypted it), or `ephemeral` (keys in memory sign, stored nowhere,
	// each of which `key` certifies for a few days). docs/keys.md says what each
	// risks and costs.
	Mode Mode `yaml:"mode,omitempty"`
	// Key is the private key of the issuing certificate: `file:PATH` of a PEM
	// file that its owner alone may read (mode 0600), or a key in a KMS as the
	// vendor's console shows it, such as an AWS key ARN or an Azure key identifier.
	// With `mode: sealed`, the key in a KMS that decrypts `sealed_key`. With `mode:
	// ephemeral`, the key of the signing CA.
	Key setting.KeyRef `yaml:"key"`
	// SealedKey is the file of the issuing certificate's private key with `mode:
	// sealed`, as `mayfly kms keygen KEY --sealed-key FILE` writes it. It is decrypted
	// once, at the start.
	SealedKey setting.Path `yaml:"sealed_key,omitempty"`
	// Ephemeral says how issuing certificates are renewed with `mode: ephemeral`.
	Ephemeral EphemeralConfig `yaml:"ephemeral,omitempty"`
	// Passphrase decrypts the key, where it is an encrypted file.
	Passphrase setting.Secret `yaml:"passphrase,omitempty"`
	// SigningQuota is how many signatures a second this process may ask of the key; 0,
	// the default, is without end. What is asked beyond it is refused with 503 before
	// anything is signed. Replicas share a KMS's own quota: give each its part, and
	// leave room for whoever else uses it.
	SigningQuota int `yaml:"signing_quota,omitempty"`
	// PrecertificateSigner says whether precertificates are signed by a certificate of
	// their own, with a key in memory (RFC 6962 §3.1), so that a certificate costs one
	// signature of the key and not two: `auto` (the default: for a key in a KMS or HSM
	// whose logs take it), `on` (refuse to start where a log doesn't) or `off`.
	PrecertificateSigner Presign `yaml:"precertificate_signer,omitempty"`
	// Access says how a key in a KMS is reached.
	kms.Access `yaml:",inline"`
}

// DefaultConfig is the configuration that a file is decoded over.
func DefaultConfig() Config {
	return Config{Lifetime: DefaultLifetime, Propagation: DefaultPropagation}
}

// Check adds every fault of c. It reads no file: LoadAuthority does that.
func (c *Config) Check(path string, f *setting.Faults) {
	if len(c.All()) > 0 {
		c.checkAuthorities(path, f)
	} else {
		c.Authority.check(setting.Join(path, "authority"), f)
		if c.StateFile != "" {
			f.Add(setting.Join(path, "state_file"), "belongs to `authorities`: write the authority as the first of that list, or remove it")
		}
	}
	if c.Lifetime < MinLifetime || c.Lifetime > MaxLifetime {
		f.Add(setting.Join(path, "lifetime"), "%v is out of bounds: from %v to %v", c.Lifetime, MinLifetime, MaxLifetime)
	} else if c.Lifetime%time.Second != 0 {
		f.Add(setting.Join(path, "lifetime"), "%v isn't in whole seconds, and certificates know nothing finer", c.Lifetime)
	}
}

func (c *AuthorityConfig) check(path string, f *setting.Faults) {
	if c.Chain == "" {
		f.Add(setting.Join(path, "chain"), "required: a PEM file, issuing certificate first, root last")
	}
	if c.Key == "" {
		f.Add(setting.Join(path, "key"), "required: the issuing certificate's private key, file:PATH or a key in a KMS")
	}
	keystore.CheckAccess(&c.Access, path, c.Key, f)
	c.Passphrase.Check(setting.Join(path, "passphrase"), f)
	if c.SigningQuota < 0 || c.SigningQuota > maxQuota {
		f.Add(setting.Join(path, "signing_quota"), "%d is out of bounds: signatures a second from 1 to %d, or 0 for no quota", c.SigningQuota, maxQuota)
	}
	switch c.PrecertificateSigner {
	case "", PresignAuto, PresignOn, PresignOff:
	default:
		f.Add(setting.Join(path, "precertificate_signer"), "%q is none of auto, on, off", c.PrecertificateSigner)
	}
	c.checkMode(path, f)
}
