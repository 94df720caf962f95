// Package backup takes what a CA keeps on its host into one file, while the CA serves,
// and puts it back on another. The file is a tar that gzip packed; the last thing in it
// is the manifest, so that one which was cut short has none.
package backup

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Paths in an archive beside those of the host's files.
const (
	manifestPath = "/mayfly-backup.json"
	keysPath     = "/mayfly-keys.jwe"
)

const (
	version     = 1         // of the manifest
	maxManifest = 256 << 20 // of a log of some hundred million entries
	maxKeys     = 16 << 20  // of all secrets, and of a file that a setting names: it is read whole
	maxRest     = 1 << 20   // what tar programs pad an archive with
)

// Manifest says what is in an archive, and what isn't.
type Manifest struct {
	Version int       `json:"version"`
	Mayfly  string    `json:"mayfly"` // the version that wrote it
	Time    time.Time `json:"time"`
	Config  string    `json:"config"` // the path of the configuration
	Files   []File    `json:"files"`
	Logs    []Log     `json:"logs"`
	LeftOut []LeftOut `json:"left_out"`
}

// File is one in the archive, under its path without the first slash.
type File struct {
	Path    string      `json:"path"`
	Setting string      `json:"setting"` // which names it, or the folder it is in
	Mode    fs.FileMode `json:"mode"`
	Size    int64       `json:"size"`
	SHA256  string      `json:"sha256"`
}

// Log is a log whose published part is among the files.
type Log struct {
	URL       string `json:"url"`
	Directory string `json:"directory"`
	MarkFile  string `json:"mark_file,omitempty"` // of a log that takes entries
	Entries   uint64 `json:"entries"`
}

// LeftOut is a file that the configuration names and the archive hasn't.
type LeftOut struct {
	Setting string `json:"setting"`
	Path    string `json:"path"`
	Why     string `json:"why"`
}

// secret is a file that is encrypted with others.
type secret struct {
	File
	Data []byte `json:"data"`
}

// MinPassphrase is how short a passphrase may be: whoever has the archive can guess for years.
const MinPassphrase = 16

// The secrets are a JWE in its compact form (RFC 7516), which other programs decrypt as well.
const (
	keyAlgorithm      = jose.PBES2_HS512_A256KW // 600,000 rounds, as the library has it
	contentEncryption = jose.A256GCM
)

func seal(all []secret, passphrase []byte) (string, error) {
	plain, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	e, err := jose.NewEncrypter(contentEncryption, jose.Recipient{Algorithm: keyAlgorithm, Key: passphrase}, nil)
	if err != nil {
		return "", err
	}
	sealed, err := e.Encrypt(plain)
	if err != nil {
		return "", err
	}
	text, err := sealed.CompactSerialize()
	if len(text) > maxKeys {
		return "", fmt.Errorf("keys and other secrets are %d bytes together when encrypted, more than the %d that a restore reads", len(text), maxKeys)
	}
	return text, err
}

func unseal(text, passphrase []byte) (all []secret, err error) {
	sealed, err := jose.ParseEncryptedCompact(string(text), []jose.KeyAlgorithm{keyAlgorithm}, []jose.ContentEncryption{contentEncryption})
	if err != nil {
		return nil, fmt.Errorf("the backup has no keys that can be read: %w", err)
	}
	plain, err := sealed.Decrypt(passphrase)
	if err != nil {
		return nil, fmt.Errorf("the passphrase isn't that of the backup's keys, or they were altered: %w", err)
	}
	return all, json.Unmarshal(plain, &all)
}

// read reads an archive from its beginning to its end and holds its files against its
// manifest. take gets each of them before anything is known to be right.
func read(r io.ReadSeeker, take func(path string, content io.Reader) error) (m Manifest, err error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return m, err
	}
	unpacked, err := gzip.NewReader(r)
	if err != nil {
		return m, err
	}
	members, found := tar.NewReader(unpacked), map[string]File{}
	for m.Version == 0 { // until the manifest was read
		h, err := members.Next()
		if err != nil {
			return m, fmt.Errorf("it is damaged, or cut short before its list of contents: %w", err)
		}
		// Nothing bounds the size of a file with holes.
		holes := slices.ContainsFunc(slices.Collect(maps.Keys(h.PAXRecords)), func(k string) bool { return strings.HasPrefix(k, "GNU.sparse") })
		path := "/" + h.Name
		if _, twice := found[path]; twice || holes || h.Typeflag != tar.TypeReg || !isPath(path) {
			return m, fmt.Errorf("%q isn't a plain file inside, or is there twice", h.Name)
		}
		hash := sha256.New()
		content := io.TeeReader(members, hash)
		if path == manifestPath {
			m, err = readManifest(content)
		} else if err = take(path, content); err == nil {
			_, err = io.Copy(io.Discard, content)
		}
		if err != nil {
			return m, fmt.Errorf("%s: %w", h.Name, err)
		}
		found[path] = File{Size: h.Size, SHA256: hex.EncodeToString(hash.Sum(nil))}
	}
	if _, err := members.Next(); !errors.Is(err, io.EOF) {
		return m, errors.Join(errors.New("something follows its list of contents"), err)
	}
	// The end of what is packed has its checksum.
	if n, err := io.Copy(io.Discard, io.LimitReader(unpacked, maxRest)); err != nil || n == maxRest {
		return m, errors.Join(errors.New("it is damaged at its end"), err)
	}
	delete(found, manifestPath)
	return m, m.matches(found)
}

// isPath reports a path that names one file, whatever folder stands before it.
func isPath(path string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && path != "/"
}

func readManifest(r io.Reader) (m Manifest, err error) {
	if err := json.NewDecoder(io.LimitReader(r, maxManifest)).Decode(&m); err != nil {
		return m, err
	}
	if m.Version != version {
		return m, fmt.Errorf("it has version %d, and this Mayfly knows %d: restore with the Mayfly that wrote it, %q", m.Version, version, m.Mayfly)
	}
	return m, nil
}

// matches is nil where the files are those of the manifest, and all its paths can be used.
func (m *Manifest) matches(found map[string]File) error {
	paths := []string{m.Config}
	for _, f := range m.Files {
		is, there := found[f.Path]
		if !there || is.Size != f.Size || is.SHA256 != f.SHA256 {
			return fmt.Errorf("%s is missing, or isn't as it was when it was backed up", f.Path)
		}
		delete(found, f.Path)
	}
	for path := range found {
		return fmt.Errorf("%s isn't in its list of contents", path)
	}
	for _, l := range m.Logs {
		paths = append(paths, l.Directory)
		if l.MarkFile != "" {
			paths = append(paths, l.MarkFile)
		}
	}
	for _, l := range m.LeftOut {
		paths = append(paths, l.Path)
	}
	for _, path := range paths {
		if !isPath(path) {
			return fmt.Errorf("its list of contents has the path %q", path)
		}
	}
	return nil
}
