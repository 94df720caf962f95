package authority

import (
	"reflect"
	"regexp"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Section is the part of the configuration's section `ca` that names authorities.
type Section struct {
	// Authority is what signs: a certificate chain and the key of its first
	// certificate. It is always active; an authority that is to be followed by
	// another stands under `authorities`.
	Authority Config `yaml:"authority"`
	// Authorities are several authorities in their states, in place of `authority`:
	// exactly one is active and signs; docs/authorities.md says how one follows another.
	Authorities []NamedConfig `yaml:"authorities,omitempty"`
	// StateFile is where `mayfly authority` keeps the states of `authorities`, and the
	// authorities that it added itself. Without it the states stand in this
	// configuration, where only a person can change them.
	StateFile setting.Path `yaml:"state_file,omitempty"`
	// States are what the state file has; the loader of the configuration reads it.
	States []NamedConfig `yaml:"-"`
	// Propagation is how long the trusted root must have listed an authority before
	// it may sign after another: from 0s to 720h, 24h by default. Clients that fetch
	// the trusted root less often refuse its certificates.
	Propagation time.Duration `yaml:"propagation"`
}

// NamedConfig is one of several authorities.
type NamedConfig struct {
	// Name is for people, metrics and `mayfly authority`: letters a-z, digits and
	// hyphens, 32 at most. It never changes and isn't used again.
	Name   string `yaml:"name"`
	Config `yaml:",inline"`
	// Record is the state, where no state file keeps it.
	lifecycle.Record `yaml:",inline"`
}

// All are the authorities in their order: those of the configuration, with the
// states of the state file where there is one, then those that the state file adds.
func (s *Section) All() []NamedConfig {
	all := slices.Clone(s.Authorities)
	for _, kept := range s.States {
		if i := indexOf(all, kept.Name); i >= 0 {
			all[i].Record = kept.Record
		} else if kept.defined() {
			all = append(all, kept)
		}
	}
	return all
}

// Config names the files and keys of one authority.
type Config struct {
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
	// file that nobody beyond its owner and the groups of the process may use, or a key in a KMS as the
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
	PrecertificateSigner SignerChoice `yaml:"precertificate_signer,omitempty"`
	// Access says how a key in a KMS is reached.
	kms.Access `yaml:",inline"`
}

// SignerChoice says when precertificates have a signer of their own.
type SignerChoice string

// The values of precertificate_signer; empty is auto.
const (
	SignerAuto SignerChoice = "auto"
	SignerOn   SignerChoice = "on"
	SignerOff  SignerChoice = "off"
)

// maxQuota bounds signing_quota: no key signs as fast.
const maxQuota = 100_000

// Check adds every fault of s. It reads no file: LoadSet does that.
func (s *Section) Check(path string, f *setting.Faults) {
	if len(s.All()) > 0 {
		s.checkAuthorities(path, f)
		return
	}
	s.Authority.check(setting.Join(path, "authority"), f)
	if s.StateFile != "" {
		f.Add(setting.Join(path, "state_file"), "belongs to `authorities`: write the authority as the first of that list, or remove it")
	}
}

func (c *Config) check(path string, f *setting.Faults) {
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
	case "", SignerAuto, SignerOn, SignerOff:
	default:
		f.Add(setting.Join(path, "precertificate_signer"), "%q is none of auto, on, off", c.PrecertificateSigner)
	}
	c.checkMode(path, f)
}

// The propagation guard's time: a client that fetches the trusted root once a day
// knows an authority a day after it was published.
const (
	DefaultPropagation = 24 * time.Hour
	maxPropagation     = 720 * time.Hour
)

// authorityName is what an authority may be called: metrics are labelled by it.
var authorityName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// maxAuthorities bounds the documents that every client fetches.
const maxAuthorities = 64

// CheckName adds a fault when name can't be an authority's.
func CheckName(path, name string, f *setting.Faults) {
	if !authorityName.MatchString(name) {
		f.Add(path, "%q isn't a name: letters a-z, digits and hyphens, 32 at most, such as 2027-1", name)
	}
}

// checkAuthorities adds the faults of `authorities` and what belongs to it.
func (s *Section) checkAuthorities(path string, f *setting.Faults) {
	list := setting.Join(path, "authorities")
	if !reflect.ValueOf(s.Authority).IsZero() {
		f.Add(list, "stands beside %s: move that one into the list, with a name and `state: active`", setting.Join(path, "authority"))
	}
	all := s.All()
	if len(all) > maxAuthorities {
		f.Add(list, "has %d authorities; at most %d: remove distrusted ones", len(all), maxAuthorities)
	}
	if s.Propagation < 0 || s.Propagation > maxPropagation {
		f.Add(setting.Join(path, "propagation"), "%v is out of bounds: from 0s to %v", s.Propagation, maxPropagation)
	}
	for i, a := range all {
		at := setting.Index(list, i)
		CheckName(setting.Join(at, "name"), a.Name, f)
		if first := indexOf(all, a.Name); first < i {
			f.Add(setting.Join(at, "name"), "%q is the name of %s already; each has one of its own", a.Name, setting.Index(list, first))
		}
		a.check(at, f)
	}
	for i, a := range s.Authorities {
		if s.StateFile != "" && a.Record != (lifecycle.Record{}) {
			f.Add(setting.Join(setting.Index(list, i), "state"), "stands in state_file: remove state and its times here, or state_file")
		}
		if kept := indexOf(s.States, a.Name); kept >= 0 && s.States[kept].defined() {
			f.Add(setting.Index(list, i), "%s, the state_file, defines %s as well: remove it here, or take its chain, key and what belongs to them out of there", s.StateFile, a.Name)
		}
	}
	if s.StateFile == "" {
		lifecycle.AddFaults(list, lifecycle.Check(s.records(), s.Propagation), f)
	}
}

// records are the states of all authorities.
func (s *Section) records() []lifecycle.Entry {
	var all []lifecycle.Entry
	for _, a := range s.All() {
		all = append(all, lifecycle.Entry{Name: a.Name, Record: a.Record})
	}
	return all
}

// Records are the states of [Section.All]. The error is a *setting.FaultError: the
// state file lists an authority that nothing defines.
func (s *Section) Records() ([]lifecycle.Entry, error) {
	all := s.records()
	var f setting.Faults
	for _, kept := range s.States {
		if lifecycle.Find(all, kept.Name) < 0 && kept.Listed() {
			f.Add("ca.state_file", "%s has the %s authority %q, which ca.authorities doesn't: put it back, or distrust it before it is removed", s.StateFile, kept.State, kept.Name)
		}
	}
	return all, f.Err()
}
