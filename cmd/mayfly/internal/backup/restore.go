package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Errors that a person answers in another way each.
var (
	// ErrInTheWay means that something is where the backup would put a file.
	ErrInTheWay = errors.New("something is there already, and nothing is ever overwritten")
	// ErrNoMark means that what was promised after the backup isn't known.
	ErrNoMark = errors.New("without its mark nobody knows what was promised after the backup")
)

// RestoreOptions say where a backup is put back.
type RestoreOptions struct {
	Root       string // the folder that the paths in the backup begin at
	Passphrase []byte // of the keys; empty leaves them out
	MarksLost  bool   // logs take nothing any more; statements of revocations go on with a new key
}

// Restored is what was put back.
type Restored struct {
	Manifest
	ConfigFile string
	Live       []string // URLs of logs that go on
	Ended      []string // URLs of logs that took entries, and are copies now
	NewKey     string   // the file of a new key of revocations
}

// restoring is a restore on its way.
type restoring struct {
	RestoreOptions
	Manifest
	secrets []secret
	made    []string // files and folders to remove after a failure
}

// Restore puts a backup back. It verifies all of it first, and writes nothing where any of
// it is there. What a failure left half done is removed.
func Restore(ctx context.Context, path string, o RestoreOptions) (done Restored, err error) {
	if o.Root, err = filepath.Abs(o.Root); err != nil {
		return done, err
	}
	file, err := os.Open(path) // #nosec G304 -- the user names it
	if err != nil {
		return done, err
	}
	defer file.Close()
	r := &restoring{RestoreOptions: o}
	var sealed []byte
	r.Manifest, err = readAgain(file, func(name string, content io.Reader) (err error) {
		if name == keysName {
			sealed, err = io.ReadAll(io.LimitReader(content, maxKeys))
		}
		return err
	})
	if err == nil && len(o.Passphrase) > 0 {
		r.secrets, err = unseal(sealed, o.Passphrase)
	}
	if err == nil {
		err = r.free()
	}
	if err != nil {
		return done, err
	}
	defer func() {
		if err != nil {
			for _, path := range slices.Backward(r.made) {
				err = errors.Join(err, os.RemoveAll(path))
			}
		}
	}()
	done = Restored{Manifest: r.Manifest, ConfigFile: r.at(r.Config)}
	if err := r.write(file); err != nil {
		return done, err
	}
	for i, l := range r.Logs {
		lives, err := r.log(ctx, l, r.copyOf(i))
		if err != nil {
			return done, err
		}
		if lives {
			done.Live = append(done.Live, l.URL)
		} else if l.MarkFile != "" {
			done.Ended = append(done.Ended, l.URL)
		}
	}
	done.NewKey, err = r.revocations(ctx, done.ConfigFile)
	return done, err
}

// at is where a path of the backup is put.
func (r *restoring) at(path string) string { return filepath.Join(r.Root, path) }

// copyOf is where a log's files are until it is known what becomes of them.
func (r *restoring) copyOf(i int) string { return r.at(r.Logs[i].Directory) + ".restored" }

// markOfRevocations is where the statements' mark is, or "" without them.
func (r *restoring) markOfRevocations() string {
	for _, l := range r.LeftOut {
		if l.Setting == "revocation.mark_file" {
			return r.at(l.Path)
		}
	}
	return ""
}

// free is nil where nothing is in the way, and each mark that is needed is there.
func (r *restoring) free() error {
	var taken, missing []string
	for i, l := range r.Logs {
		if name, err := logdir.Dir(r.at(l.Directory)).Occupied(); err != nil || name != "" {
			taken = append(taken, filepath.Join(r.at(l.Directory), name))
		}
		if there(r.copyOf(i)) {
			taken = append(taken, r.copyOf(i))
		}
		if l.MarkFile != "" && !there(r.at(l.MarkFile)) {
			missing = append(missing, r.at(l.MarkFile))
		}
	}
	for _, f := range r.Files {
		if r.logOf(f.Path) < 0 && inside(f.Path) != keysName && there(r.at(f.Path)) {
			taken = append(taken, r.at(f.Path))
		}
	}
	kept := r.secrets[:0]
	for _, s := range r.secrets {
		if !filepath.IsAbs(s.Path) || filepath.Clean(s.Path) != s.Path {
			return fmt.Errorf("the key's path %q isn't absolute", s.Path)
		}
		if s.Setting == "revocation.key" && r.MarksLost && !there(r.markOfRevocations()) {
			continue // another one follows it
		}
		if kept = append(kept, s); there(r.at(s.Path)) {
			taken = append(taken, r.at(s.Path))
		}
	}
	r.secrets = kept
	if mark := r.markOfRevocations(); mark != "" && !there(mark) {
		missing = append(missing, mark)
	}
	switch {
	case len(taken) > 0:
		return fmt.Errorf("%w: %s", ErrInTheWay, some(taken))
	case len(missing) > 0 && !r.MarksLost:
		return fmt.Errorf("%w: %s", ErrNoMark, some(missing))
	}
	return nil
}

// some is the beginning of a list.
func some(paths []string) string {
	const most = 10
	if more := len(paths) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(paths[:most], ", "), more)
	}
	return strings.Join(paths, ", ")
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// logOf is the log in whose directory a path is, or -1.
func (r *restoring) logOf(path string) int {
	return slices.IndexFunc(r.Logs, func(l Log) bool { return setting.Path(path).Inside(setting.Path(l.Directory)) })
}

// write puts all files where they belong, those of logs beside that.
func (r *restoring) write(file *os.File) error {
	files := map[string]File{}
	for _, f := range r.Files {
		files[inside(f.Path)] = f
	}
	_, err := readAgain(file, func(name string, content io.Reader) error {
		f, known := files[name]
		switch i := r.logOf(f.Path); {
		case !known:
			return errors.New("the file changes while it is read")
		case name == keysName:
			return nil
		case i >= 0:
			below, err := filepath.Rel(r.Logs[i].Directory, f.Path)
			if err != nil {
				return err
			}
			if !slices.Contains(r.made, r.copyOf(i)) {
				r.made = append(r.made, r.copyOf(i))
			}
			return put(filepath.Join(r.copyOf(i), below), f.Mode, content)
		}
		return r.put(f, content)
	})
	for _, s := range r.secrets {
		if err == nil {
			err = r.put(s.File, bytes.NewReader(s.Data))
		}
	}
	return err
}

func (r *restoring) put(f File, content io.Reader) error {
	if there(r.at(f.Path)) { // which another process made meanwhile
		return fmt.Errorf("%w: %s", ErrInTheWay, r.at(f.Path))
	}
	r.made = append(r.made, r.at(f.Path))
	return put(r.at(f.Path), f.Mode, content)
}

// put writes a new file that belongs to whom its folder does.
func put(path string, mode fs.FileMode, content io.Reader) error {
	if err := durable.MakeFolder(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // #nosec G304 -- below the folder that the user names
	if err != nil {
		return err
	}
	if _, err = io.Copy(f, content); err == nil {
		err = errors.Join(durable.OwnerOfFolder(f), f.Chmod(mode.Perm()), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return durable.SyncFolder(filepath.Dir(path))
}

// log makes a log of its files, which goes on where its mark allows that.
func (r *restoring) log(ctx context.Context, l Log, from string) (lives bool, err error) {
	to := r.at(l.Directory)
	if !there(to) {
		r.made = append(r.made, to)
	}
	if lives = l.MarkFile != "" && !r.MarksLost; lives {
		_, err = maintain.Restore(ctx, from, to, r.at(l.MarkFile), maintain.VerifyOptions{})
	} else {
		_, err = maintain.Backup(ctx, from, to, maintain.VerifyOptions{})
	}
	if err != nil {
		return false, fmt.Errorf("the log %s: %w", l.URL, err)
	}
	return lives, os.RemoveAll(from)
}

// revocations gives statements whose mark is lost a new key, and a mark for it: what was
// said under the old key isn't contradicted by what follows.
func (r *restoring) revocations(ctx context.Context, file string) (newKey string, err error) {
	mark := r.markOfRevocations()
	if mark == "" || there(mark) {
		return "", nil
	}
	c, err := config.LoadDefinitions(file)
	if err != nil {
		return "", err
	}
	path, isFile := strings.CutPrefix(string(c.Revocation.Key), "file:")
	if !isFile || string(c.Revocation.MarkFile) != mark {
		return "", nil
	}
	var passphrase []byte
	if !c.Revocation.Passphrase.IsZero() {
		if passphrase, err = c.Revocation.Passphrase.Read(); err != nil {
			return "", fmt.Errorf("revocation.passphrase: %w", err)
		}
	}
	key, err := keystore.GenerateFile(path, kms.ECDSAP256, passphrase)
	if err != nil {
		return "", fmt.Errorf("making the revocation.key that follows the old one, which has to be elsewhere: %w", err)
	}
	r.made = append(r.made, path, mark)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err == nil {
		err = logdir.CreateMark(mark, sha256.Sum256(spki), logdir.EmptyTree())
	}
	return path, err
}
