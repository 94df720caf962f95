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
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Names in an archive beside the paths of files.
const (
	manifestName = "mayfly-backup.json"
	keysName     = "mayfly-keys.jwe"
)

// version is that of the manifest.
const version = 1

const (
	maxManifest = 256 << 20 // of a log of some hundred million entries
	maxKeys     = 16 << 20
	maxRest     = 1 << 20 // what tar programs pad an archive with
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

// secret is a file of keysName, which is a list of them.
type secret struct {
	File
	Data []byte `json:"data"`
}

// MinPassphrase is how short a passphrase may be: whoever has the archive can guess for years.
const MinPassphrase = 16

// The keys are a JWE in its compact form (RFC 7516), which other programs decrypt as well.
const (
	keyAlgorithm      = jose.PBES2_HS512_A256KW // 600,000 rounds, as the library has it
	contentEncryption = jose.A256GCM
)

func seal(all []secret, passphrase []byte) ([]byte, error) {
	plain, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	e, err := jose.NewEncrypter(contentEncryption, jose.Recipient{Algorithm: keyAlgorithm, Key: passphrase}, nil)
	if err != nil {
		return nil, err
	}
	sealed, err := e.Encrypt(plain)
	if err != nil {
		return nil, err
	}
	text, err := sealed.CompactSerialize()
	return []byte(text), err
}

func unseal(text, passphrase []byte) (all []secret, err error) {
	sealed, err := jose.ParseEncryptedCompact(string(text), []jose.KeyAlgorithm{keyAlgorithm}, []jose.ContentEncryption{contentEncryption})
	if err != nil {
		return nil, fmt.Errorf("%s isn't what mayfly backup writes: %w", keysName, err)
	}
	plain, err := sealed.Decrypt(passphrase)
	if err != nil {
		return nil, fmt.Errorf("the passphrase isn't that of the archive's keys, or they were altered: %w", err)
	}
	return all, json.Unmarshal(plain, &all)
}

// inside is the name of a path in an archive.
func inside(path string) string { return strings.TrimPrefix(filepath.ToSlash(path), "/") }

// read reads a whole archive and holds its files against its manifest. take gets each of
// them, before anything is known to be right.
func read(r io.Reader, take func(name string, content io.Reader) error) (m Manifest, err error) {
	unpacked, err := gzip.NewReader(r)
	if err != nil {
		return m, fmt.Errorf("it isn't packed by gzip: %w", err)
	}
	members, found, ended := tar.NewReader(unpacked), map[string]File{}, false
	for {
		h, err := members.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		switch {
		case err != nil:
			return m, fmt.Errorf("it is damaged or cut short: %w", err)
		case ended:
			return m, fmt.Errorf("%q follows its list of contents", h.Name)
		case h.Typeflag != tar.TypeReg || sparse(h):
			return m, fmt.Errorf("%q isn't a plain file", h.Name)
		case !filepath.IsLocal(h.Name) || filepath.Clean(h.Name) != h.Name || h.Name == ".":
			return m, fmt.Errorf("%q is a path outside of it, or isn't written plainly", h.Name)
		case h.Name == manifestName:
			ended = true
			m, err = readManifest(members)
		default:
			if _, twice := found[h.Name]; twice {
				return m, fmt.Errorf("%q is there twice", h.Name)
			}
			hash := sha256.New()
			content := io.TeeReader(members, hash)
			if err = take(h.Name, content); err == nil {
				_, err = io.Copy(io.Discard, content)
			}
			found[h.Name] = File{Size: h.Size, SHA256: hex.EncodeToString(hash.Sum(nil))}
		}
		if err != nil {
			return m, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	if !ended {
		return m, errors.New("it is cut short: its list of contents is missing")
	}
	// The end of what is packed has its checksum.
	if n, err := io.Copy(io.Discard, io.LimitReader(unpacked, maxRest)); err != nil || n == maxRest {
		return m, errors.Join(errors.New("it is damaged at its end"), err)
	}
	return m, m.matches(found)
}

// readAgain is read from the beginning of a file. A take of nil only looks.
func readAgain(file *os.File, take func(string, io.Reader) error) (m Manifest, err error) {
	if take == nil {
		take = func(string, io.Reader) error { return nil }
	}
	if _, err = file.Seek(0, io.SeekStart); err == nil {
		m, err = read(file, take)
	}
	if err != nil {
		err = fmt.Errorf("the backup %s can't be used: %w", file.Name(), err)
	}
	return m, err
}

// sparse reports a file with holes, whose size nothing in the archive bounds.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse") {
			return true
		}
	}
	return false
}

func readManifest(r io.Reader) (m Manifest, err error) {
	b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	switch {
	case err != nil:
		return m, err
	case len(b) > maxManifest:
		return m, fmt.Errorf("it is larger than %d bytes", maxManifest)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, err
	}
	if m.Version != version {
		return m, fmt.Errorf("it has version %d, and this Mayfly knows %d: restore with the Mayfly that wrote it, %q", m.Version, version, m.Mayfly)
	}
	return m, nil
}

// matches is nil where the files are those of the manifest.
func (m *Manifest) matches(found map[string]File) error {
	for _, f := range m.Files {
		is, there := found[inside(f.Path)]
		switch {
		case !filepath.IsAbs(f.Path) || filepath.Clean(f.Path) != f.Path:
			return fmt.Errorf("its list of contents has the path %q, which isn't absolute", f.Path)
		case !there:
			return fmt.Errorf("%s is missing, or listed twice", f.Path)
		case is.Size != f.Size || is.SHA256 != f.SHA256:
			return fmt.Errorf("%s isn't as it was when it was backed up", f.Path)
		}
		delete(found, inside(f.Path))
	}
	for name := range found {
		return fmt.Errorf("%q isn't in its list of contents", name)
	}
	for _, l := range m.Logs {
		if !filepath.IsAbs(l.Directory) || filepath.Clean(l.Directory) != l.Directory {
			return fmt.Errorf("its list of contents has the log's directory %q, which isn't absolute", l.Directory)
		}
	}
	return nil
}
