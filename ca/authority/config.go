package authority

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/statefile"
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
	f.When(s.StateFile != "", setting.Join(path, "state_file"), "belongs to `authorities`: write the authority as the first of that list, or remove it")
}

func (c *Config) check(path string, all *setting.Faults) {
	f, mode := setting.Section{Path: path, Faults: all}, c.mode()
	f.Wrong(c.Chain == "", "chain", "required: a PEM file, issuing certificate first, root last")
	f.Wrong(c.Key == "", "key", "required: the issuing certificate's private key, file:PATH or a key in a KMS")
	keystore.CheckAccess(&c.Access, path, c.Key, all)
	c.Passphrase.Check(setting.Join(path, "passphrase"), all)
	f.Wrong(c.SigningQuota < 0 || c.SigningQuota > maxQuota, "signing_quota", "%d is out of bounds: signatures a second from 1 to %d, or 0 for no quota", c.SigningQuota, maxQuota)
	f.Wrong(!slices.Contains([]SignerChoice{"", SignerAuto, SignerOn, SignerOff}, c.PrecertificateSigner), "precertificate_signer", "%q is none of auto, on, off", c.PrecertificateSigner)

	f.Wrong(!slices.Contains([]Mode{ModeDirect, ModeSealed, ModeEphemeral}, mode), "mode", "%q is none of direct, sealed, ephemeral", c.Mode)
	if mode == ModeEphemeral {
		c.Ephemeral.check(setting.Join(path, "ephemeral"), all)
		f.Wrong(c.SigningQuota != 0, "signing_quota", "is for a key that signs certificates: remove it with `mode: ephemeral`, whose KMS signs once in a day or two")
		f.Wrong(c.PrecertificateSigner == SignerOn, "precertificate_signer", "is for a key in a KMS that signs certificates: remove it with `mode: ephemeral`")
	} else {
		f.Wrong(c.Ephemeral != (EphemeralConfig{}), "ephemeral", "belongs to `mode: ephemeral`: set that, or remove it")
	}
	if mode != ModeSealed {
		f.Wrong(c.SealedKey != "", "sealed_key", "belongs to `mode: sealed`: set that, or remove it")
		return
	}
	f.Wrong(c.SealedKey == "", "sealed_key", "required with `mode: sealed`: the file that `mayfly kms keygen KEY --sealed-key FILE` writes")
	if c.Key != "" {
		err := keystore.CheckSealing(string(c.Key), c.Access)
		f.Wrong(err != nil, "key", "%v", err)
	}
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
	f.When(!authorityName.MatchString(name), path, "%q isn't a name: letters a-z, digits and hyphens, 32 at most, such as 2027-1", name)
}

// checkAuthorities adds the faults of `authorities` and what belongs to it.
func (s *Section) checkAuthorities(path string, f *setting.Faults) {
	list, all := setting.Join(path, "authorities"), s.All()
	wrong := setting.Section{Path: path, Faults: f}
	wrong.Wrong(!reflect.ValueOf(s.Authority).IsZero(), "authorities", "stands beside %s: move that one into the list, with a name and `state: active`", setting.Join(path, "authority"))
	wrong.Wrong(len(all) > maxAuthorities, "authorities", "has %d authorities; at most %d: remove distrusted ones", len(all), maxAuthorities)
	wrong.Wrong(s.Propagation < 0 || s.Propagation > maxPropagation, "propagation", "%v is out of bounds: from 0s to %v", s.Propagation, maxPropagation)
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
		lifecycle.Check(list, s.records(), s.Propagation, f)
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
	f.When(c.History == "", setting.Join(path, "history"), "required with `mode: ephemeral`: a folder for the issuing certificates, which verifiers need for as long as their signatures count")
}

// stateVersion is the newest version of the state file, which is always written.
// Those before it have no certificates, and version 1 no definitions either.
const stateVersion = 3

// stateDocument is the state file: the states of authorities, each with its
// definition where the configuration doesn't define it.
type stateDocument struct {
	Version     int           `yaml:"version"`
	Authorities []NamedConfig `yaml:"authorities"`
}

// defined reports whether a says what its authority is, and not its state alone.
func (a *NamedConfig) defined() bool { return !reflect.ValueOf(a.Config).IsZero() }

// ReadStates reads a state file. A missing one has no states.
func ReadStates(path string) ([]NamedConfig, error) {
	var d stateDocument
	if err := statefile.Read(path, stateVersion, &d); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return d.Authorities, nil
}

func (d *stateDocument) check() error {
	for i, a := range d.Authorities {
		if a.Name == "" || indexOf(d.Authorities, a.Name) != i {
			return fmt.Errorf("has the authority %q twice, or one without a name", a.Name)
		}
		if d.Version == 1 && a.defined() {
			return fmt.Errorf("has version 1 and defines the authority %q, which begins with version 2", a.Name)
		}
		if d.Version < stateVersion && a.Certificate != "" {
			return fmt.Errorf("has version %d and the certificate of the authority %q, which begins with version %d", d.Version, a.Name, stateVersion)
		}
	}
	return nil
}

func indexOf(all []NamedConfig, name string) int {
	return slices.IndexFunc(all, func(a NamedConfig) bool { return a.Name == name })
}

// newStateDocument is the state file that has all.
func newStateDocument(all []NamedConfig) *stateDocument {
	return &stateDocument{Version: stateVersion, Authorities: all}
}

// HaveSigned reports whether one of all has a state that says that it signs or once did.
func HaveSigned(all []NamedConfig) bool {
	return slices.ContainsFunc(all, func(a NamedConfig) bool { return a.HasSigned() })
}

// HasSigned reports whether an authority of s is known to sign, or to have signed.
func (s *Section) HasSigned() bool { return HaveSigned(s.All()) }

// ExportStates makes a state file, which must not be there yet, of the states that c
// has itself.
func ExportStates(c Section, path string) error {
	var all []NamedConfig
	for _, a := range c.Authorities {
		if a.State != "" {
			all = append(all, NamedConfig{Name: a.Name, Record: a.recorded(a.Record)})
		}
	}
	return statefile.Create(path, newStateDocument(all))
}

// recorded is r with the certificate that c has, where clients are told of it and r has
// none yet. A chain that can't be read has none; whoever loads it says why.
func (c *Config) recorded(r lifecycle.Record) lifecycle.Record {
	if !r.Listed() || r.Certificate != "" {
		return r
	}
	if b, err := os.ReadFile(string(c.Chain)); err == nil {
		if certs, err := chain.Parse(b); err == nil {
			r.Certificate = chain.Fingerprint(certs[0].Raw)
		}
	}
	return r
}

// Store has the authorities of a configuration and their states, for the one
// command that changes them.
type Store struct {
	Section Section
	Records []lifecycle.Entry // in the order of Section.All

	file *statefile.File
}

// OpenStore opens the state file that c names. A second command on it is refused.
func OpenStore(c Section) (_ *Store, err error) {
	s := &Store{Section: c}
	if s.file, err = statefile.Open(string(c.StateFile)); err != nil {
		return nil, err
	}
	// The states may have changed since the configuration was read.
	if s.Section.States, err = ReadStates(string(c.StateFile)); err == nil {
		s.Records, err = s.Section.Records()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close lets other commands change the states.
func (s *Store) Close() { s.file.Close() }

// Add defines another authority. The state file has it once it took a step.
func (s *Store) Add(a NamedConfig) error {
	if lifecycle.Find(s.Records, a.Name) >= 0 {
		return fmt.Errorf("there is an authority %q already", a.Name)
	}
	s.Section.States = append(slices.Clip(s.Section.States), a)
	s.Records = append(slices.Clip(s.Records), lifecycle.Entry{Name: a.Name})
	return nil
}

// Step takes a step and writes it down: all of it or nothing. The error of a key or
// a chain that can't sign is a *setting.FaultError; else it is that of [lifecycle.Do],
// or of the file.
func (s *Store) Step(ctx context.Context, name string, action lifecycle.Action, t lifecycle.Terms, o LoadOptions) error {
	next, err := lifecycle.Do(s.Records, name, action, t)
	if err != nil {
		return err
	}
	needsKey, err := lifecycle.NeedsKey(s.Records[lifecycle.Find(s.Records, name)], action)
	if err != nil {
		return err
	}
	if needsKey {
		a, err := LoadNamed(ctx, s.Section, name, o)
		if err != nil {
			return err
		}
		a.Close()
	}
	states, all := make([]NamedConfig, 0, len(next)), s.Section.All()
	for i, e := range next {
		next[i].Record = all[indexOf(all, e.Name)].recorded(e.Record)
		if e.State == "" {
			continue
		}
		kept := NamedConfig{Name: e.Name, Record: next[i].Record}
		if i := indexOf(s.Section.States, e.Name); i >= 0 {
			kept.Config = s.Section.States[i].Config
		}
		states = append(states, kept)
	}
	if err := s.file.Write(newStateDocument(states)); err != nil {
		return err
	}
	s.Records, s.Section.States = next, states
	return nil
}
