package backup

import (
	"bytes"
	"cmp"
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
	Passphrase []byte // of the secrets; empty leaves them out
	MarksLost  bool   // logs take nothing any more; statements of revocations go on with a new key
}

// Restored is what was put back.
type Restored struct {
	Manifest
	ConfigFile string   `json:"config_file"`
	Notes      []string `json:"notes"` // what became of logs, statements and secrets
}

// restoring is a restore on its way.
type restoring struct {
	RestoreOptions
	Restored
	secrets []secret
	sealed  []byte
	alive   func() error
	made    []string // to be removed after a failure
}

// Restore puts a backup back. It verifies all of it first, and writes nothing where any of
// it is there. What a failure left half done is removed.
func Restore(ctx context.Context, path string, o RestoreOptions) (_ Restored, err error) {
	if o.Root, err = filepath.Abs(o.Root); err != nil {
		return Restored{}, err
	}
	file, err := os.Open(path) // #nosec G304 -- the user names it
	if err != nil {
		return Restored{}, err
	}
	defer file.Close()
	r := &restoring{RestoreOptions: o, alive: ctx.Err, Restored: Restored{Notes: []string{}}}
	defer func() {
		if err != nil {
			for _, path := range slices.Backward(r.made) {
				err = errors.Join(err, os.RemoveAll(path))
			}
		}
	}()
	for _, step := range []func() error{
		func() error { return r.verify(file) }, r.free,
		func() error { return r.write(file) },
		func() error { return r.logs(ctx) },
		r.revocations,
	} {
		if err := step(); err != nil {
			return Restored{}, err
		}
	}
	return r.Restored, nil
}

// at is where a path of the backup is put.
func (r *restoring) at(path string) string { return filepath.Join(r.Root, path) }

// verify reads all, secrets with it.
func (r *restoring) verify(file *os.File) (err error) {
	r.Manifest, err = read(file, func(path string, content io.Reader) (err error) {
		if path == keysPath {
			r.sealed, err = io.ReadAll(io.LimitReader(content, maxKeys))
		}
		return cmp.Or(err, r.alive())
	})
	r.ConfigFile = r.at(r.Config)
	switch {
	case err != nil:
		err = fmt.Errorf("the backup can't be used: %w", err)
	case len(r.Passphrase) > 0:
		r.secrets, err = unseal(r.sealed, r.Passphrase)
	case len(r.sealed) > 0:
		r.note("its keys were left out: name their passphrase")
	}
	for _, s := range r.secrets {
		if !isPath(s.Path) {
			return fmt.Errorf("the backup can't be used: it has a key for the path %q", s.Path)
		}
	}
	return err
}

func (r *restoring) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// markOfRevocations is the mark of the statements, or "" where there is none.
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
	for _, l := range r.Logs {
		if name, err := logdir.Dir(r.at(l.Directory)).Occupied(); err != nil || name != "" {
			taken = append(taken, filepath.Join(r.at(l.Directory), name))
		}
		if l.MarkFile != "" && !there(r.at(l.MarkFile)) {
			missing = append(missing, r.at(l.MarkFile))
		}
	}
	if mark := r.markOfRevocations(); mark != "" && !there(mark) {
		missing = append(missing, mark)
		r.secrets = slices.DeleteFunc(r.secrets, func(s secret) bool { return s.Setting == "revocation.key" }) // another one follows
	}
	files := slices.Clone(r.Files)
	for _, s := range r.secrets {
		files = append(files, s.File)
	}
	for _, f := range files {
		if f.Path != keysPath && there(r.at(f.Path)) {
			taken = append(taken, r.at(f.Path))
		}
	}
	switch {
	case len(taken) > 10:
		return fmt.Errorf("%w: %s and %d more", ErrInTheWay, strings.Join(taken[:10], ", "), len(taken)-10)
	case len(taken) > 0:
		return fmt.Errorf("%w: %s", ErrInTheWay, strings.Join(taken, ", "))
	case len(missing) > 0 && !r.MarksLost:
		return fmt.Errorf("%w: %s", ErrNoMark, strings.Join(missing, ", "))
	}
	return nil
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// write puts all files where they belong. Nothing opens a log whose state isn't there yet.
func (r *restoring) write(file *os.File) error {
	modes := map[string]fs.FileMode{}
	for _, f := range r.Files {
		modes[f.Path] = f.Mode
	}
	_, err := read(file, func(path string, content io.Reader) error {
		if err := r.alive(); err != nil || path == keysPath {
			return err
		}
		return r.put(path, modes[path], content)
	})
	for _, s := range r.secrets {
		if err == nil {
			err = r.put(s.Path, s.Mode, bytes.NewReader(s.Data))
		}
	}
	return err
}

// put writes a new file that belongs to whom its folder does.
func (r *restoring) put(path string, mode fs.FileMode, content io.Reader) error {
	path = r.at(path)
	made := path
	for !there(filepath.Dir(made)) {
		made = filepath.Dir(made)
	}
	if made != path {
		r.made = append(r.made, made)
	}
	if err := durable.MakeFolder(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // #nosec G304 -- below the folder that the user names
	if err != nil {
		return err
	}
	r.made = append(r.made, path)
	if _, err = io.Copy(f, content); err == nil {
		err = errors.Join(durable.OwnerOfFolder(f), f.Chmod(mode.Perm()), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return durable.SyncFolder(filepath.Dir(path))
}

// logs verifies the logs, and has them go on where their marks allow that.
func (r *restoring) logs(ctx context.Context) (err error) {
	for _, l := range r.Logs {
		dir := r.at(l.Directory)
		switch {
		case l.MarkFile == "" || r.MarksLost:
			_, err = maintain.Verify(ctx, dir, maintain.VerifyOptions{Backup: true})
		default:
			r.made = append(r.made, logdir.Dir(dir).Path(logdir.StateDir))
			_, err = maintain.Restore(ctx, dir, dir, r.at(l.MarkFile), maintain.VerifyOptions{})
		}
		switch {
		case err != nil:
			return fmt.Errorf("the log %s: %w", l.URL, err)
		case l.MarkFile == "": // frozen before
		case r.MarksLost:
			r.note("the log %s is a copy that takes nothing: begin another one, as docs/backup.md has it", l.URL)
		default:
			r.note("the log %s goes on", l.URL)
		}
	}
	return nil
}

// revocations gives statements whose mark is lost a new key, and a mark for it: what was
// said under the old key isn't contradicted by what follows.
func (r *restoring) revocations() error {
	mark := r.markOfRevocations()
	if mark == "" || there(mark) {
		return nil
	}
	c, err := config.LoadDefinitions(r.ConfigFile)
	if err != nil {
		return err
	}
	path, isFile := strings.CutPrefix(string(c.Revocation.Key), "file:")
	if !isFile || filepath.Clean(string(c.Revocation.MarkFile)) != mark || !setting.Path(path).Inside(setting.Path(r.Root)) {
		r.note("the mark of revocations is lost, and its key isn't a file below %s: docs/backup.md says how they go on", r.Root)
		return nil
	}
	var passphrase []byte
	if !c.Revocation.Passphrase.IsZero() {
		if passphrase, err = c.Revocation.Passphrase.Read(); err != nil {
			return fmt.Errorf("revocation.passphrase: %w", err)
		}
	}
	key, err := keystore.GenerateFile(path, kms.ECDSAP256, passphrase)
	if err != nil {
		return fmt.Errorf("making the revocation.key that follows the old one, which has to be elsewhere: %w", err)
	}
	r.made = append(r.made, path)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err == nil {
		err = logdir.CreateMark(mark, sha256.Sum256(spki), logdir.EmptyTree())
	}
	r.note("the key %s is new: revoke again what was revoked after the backup", path)
	return err
}
