// Package tuf keeps the trust root in a TUF repository (The Update Framework,
// specification 1.0.31): a client that once got 1.root.json follows every later
// change by signatures, whoever hands it the files.
//
// The roles root and targets are signed by people, away from the service: [Init],
// [Stage] and [Rotate] make a [Draft], one plain file, [Draft.Sign] adds a signature
// wherever a key is, and [Publish] takes it once the threshold has signed. Snapshot
// and timestamp are signed by the service ([Online]), which derives them from what
// was published and the number of the day: replicas agree without talking.
package tuf

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/oneline"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// How long what a role signs is valid.
const (
	RootLife    = 365 * day
	TargetsLife = 180 * day
	OnlineLife  = 7 * day

	day = 24 * time.Hour
)

// Prefix is where the repository is served.
const Prefix = "/tuf/"

// crlRole is the delegated role of targets below crl/, which the online key signs.
const crlRole = "crl"

// maxBytes bounds what is read of a repository or a draft: a trust root has some
// ten kilobytes.
const maxBytes = 8 << 20

type (
	rootMetadata    = metadata.Metadata[metadata.RootType]
	targetsMetadata = metadata.Metadata[metadata.TargetsType]
)

// newKey is a public key as TUF has it, and its id. Clients differ in what else
// they take; ECDSA on P-256 all do.
func newKey(public crypto.PublicKey) (*metadata.Key, string, error) {
	if a, err := kms.AlgorithmOf(public); err != nil || a != kms.ECDSAP256 {
		return nil, "", fmt.Errorf("a key of %v doesn't sign what every TUF client takes: make one with `mayfly kms keygen REF --algorithm %s`", cmp.Or(string(a), fmt.Sprintf("type %T", public)), kms.ECDSAP256)
	}
	k, err := metadata.KeyFromPublicKey(public)
	if err != nil {
		return nil, "", fmt.Errorf("tuf: %w", err)
	}
	id, err := k.ID()
	return k, id, err
}

// KeyID is what TUF calls a public key.
func KeyID(public crypto.PublicKey) (string, error) {
	_, id, err := newKey(public)
	return id, err
}

// short is a key's id for people.
func short(id string) string { return id[:min(len(id), 12)] }

// sign adds key's signature to m, in the place of one that it has made.
func sign[T metadata.Roles](ctx context.Context, m *metadata.Metadata[T], key kms.Signer) error {
	id, err := KeyID(key.Public())
	if err != nil {
		return err
	}
	payload, err := cjson.EncodeCanonical(m.Signed)
	if err != nil {
		return fmt.Errorf("tuf: %w", err)
	}
	digest := sha256.Sum256(payload)
	sig, err := key.Sign(ctx, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	m.Signatures = append(slices.DeleteFunc(m.Signatures, func(s metadata.Signature) bool { return s.KeyID == id }),
		metadata.Signature{KeyID: id, Signature: sig})
	return nil
}

// signers are those of a role's keys under root which have signed m, and those which
// haven't, by their ids.
func signers[T metadata.Roles](root *rootMetadata, role string, m *metadata.Metadata[T]) (have, missing []string) {
	for _, id := range root.Signed.Roles[role].KeyIDs {
		alone := rootMetadata{Signed: metadata.RootType{
			Keys: root.Signed.Keys, Roles: map[string]*metadata.Role{role: {KeyIDs: []string{id}, Threshold: 1}},
		}}
		if alone.VerifyDelegate(role, m) == nil {
			have = append(have, id)
		} else {
			missing = append(missing, id)
		}
	}
	return have, missing
}

// Standing is how far the signatures of one role are.
type Standing struct {
	Role          string // "root 2", "root 2 by the keys of root 1", "targets 5"
	Expires       time.Time
	Need          int
	Have, Missing []string // key ids
}

func standing[T metadata.Roles](root *rootMetadata, role, what string, expires time.Time, m *metadata.Metadata[T]) Standing {
	s := Standing{Role: what, Expires: expires, Need: root.Signed.Roles[role].Threshold}
	s.Have, s.Missing = signers(root, role, m)
	return s
}

// check is nil when enough keys have signed.
func (s Standing) check() error {
	if len(s.Have) >= s.Need {
		return nil
	}
	return fmt.Errorf("%s has %d of %d signatures that count (keys %s): have %d more of its keys sign it: %s",
		s.Role, len(s.Have), s.Need, KeyNames(s.Have), s.Need-len(s.Have), KeyNames(s.Missing))
}

// checkThreshold is nil when enough keys of a role under root have signed m.
func checkThreshold[T metadata.Roles](root *rootMetadata, role, what string, m *metadata.Metadata[T]) error {
	return standing(root, role, what, time.Time{}, m).check()
}

// KeyNames are ids of keys as people compare them.
func KeyNames(ids []string) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = terminal.Line(short(id))
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}

// encode writes metadata as it is served.
func encode[T metadata.Roles](m *metadata.Metadata[T]) ([]byte, error) {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, fmt.Errorf("tuf: encoding: %w", err)
	}
	return append(b, '\n'), nil
}

// errNotMetadata is of a text that isn't what it should be.
var errNotMetadata = errors.New("isn't TUF metadata of its role")

// decode reads metadata from outside. The library takes some members of a JSON
// document for given, and panics where they are null.
func decode[T metadata.Roles](b []byte) (m *metadata.Metadata[T], err error) {
	defer func() {
		if recover() != nil {
			m, err = nil, errNotMetadata
		}
	}()
	if m, err = new(metadata.Metadata[T]).FromBytes(b); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotMetadata, oneline.Error(err, 200))
	}
	return m, nil
}

// decodeRoot reads root metadata and wants it to be as Mayfly makes it.
func decodeRoot(b []byte) (*rootMetadata, error) {
	m, err := decode[metadata.RootType](b)
	if err != nil {
		return nil, err
	}
	return m, checkRoot(m)
}

// decodeTargets reads targets metadata.
func decodeTargets(b []byte) (*targetsMetadata, error) {
	m, err := decode[metadata.TargetsType](b)
	if err != nil {
		return nil, err
	}
	if m.Signed.Version < 1 || m.Signed.Version >= perDay {
		return nil, fmt.Errorf("targets has version %d: from 1 to %d", m.Signed.Version, perDay-1)
	}
	return m, nil
}

// checkRoot wants four roles, each with a threshold that different keys can meet,
// and one online key.
func checkRoot(m *rootMetadata) error {
	s := m.Signed
	if s.Version < 1 || !s.ConsistentSnapshot || len(s.Roles) != len(metadata.TOP_LEVEL_ROLE_NAMES) {
		return errors.New("root has no version, no consistent snapshots or not the four roles")
	}
	for id, k := range s.Keys {
		if k == nil {
			return fmt.Errorf("root: key %s is missing", short(id))
		}
		public, err := k.ToPublicKey()
		if err != nil {
			return fmt.Errorf("root: key %s can't be read", short(id))
		}
		if own, err := KeyID(public); err != nil || own != id {
			return errors.Join(fmt.Errorf("root: key %s isn't the one that its id names", short(id)), err)
		}
	}
	for _, name := range metadata.TOP_LEVEL_ROLE_NAMES {
		role := s.Roles[name]
		if role == nil {
			return fmt.Errorf("root has no role %s", name)
		}
		ids := slices.Compact(slices.Sorted(slices.Values(role.KeyIDs)))
		if role.Threshold < 1 || len(ids) != len(role.KeyIDs) || role.Threshold > len(ids) {
			return fmt.Errorf("root: %s wants %d signatures of %d different keys", name, role.Threshold, len(ids))
		}
		for _, id := range ids {
			if s.Keys[id] == nil {
				return fmt.Errorf("root: %s names the key %s, which isn't there", name, short(id))
			}
		}
	}
	online := s.Roles[metadata.TIMESTAMP].KeyIDs
	if len(online) != 1 || !slices.Equal(online, s.Roles[metadata.SNAPSHOT].KeyIDs) {
		return errors.New("root: snapshot and timestamp need one online key, the same")
	}
	return nil
}

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
	f.When(c.MarkFile.Inside(c.Directory), setting.Join(path, "mark_file"), "is inside the repository, which replicas may share; each needs a mark of its own elsewhere")
}
