package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// Options say what a backup is made of.
type Options struct {
	ConfigFile string
	Config     *config.Config // what stands there
	Out        string         // a new file, or a folder for one that has the time in its name
	Keep       int            // how many such files stay in the folder; 0 keeps all
	Passphrase []byte         // takes the keys, encrypted to it; empty leaves them out
	Mayfly     string         // the version of this program
	Now        time.Time
}

// Report is what a backup has.
type Report struct {
	Manifest
	Out     string
	Bytes   int64
	Remarks []string // what is wrong with what was taken
}

// maxNamed bounds a file that the configuration names: each is read whole.
const maxNamed = 64 << 20

// Make writes a backup under another name, reads it back, and puts it in its place. What
// grows is read in the opposite order of its writing: the states of those who follow the
// audit trail, the trail, and the logs, which then have all that the trail says they have.
func Make(ctx context.Context, o Options) (r Report, err error) {
	r.Out = o.Out
	folder, fresh := filepath.Dir(o.Out), true
	if info, err := os.Stat(o.Out); err == nil {
		if folder, fresh = o.Out, false; !info.IsDir() {
			return r, fmt.Errorf("%s: %w, and a backup is never overwritten", o.Out, fs.ErrExist)
		}
		r.Out = filepath.Join(folder, "mayfly-"+o.Now.UTC().Format("20060102T150405Z")+".tar.gz")
	}
	file, err := os.CreateTemp(folder, durable.TempPrefix) // mode 0600
	if err != nil {
		return r, err
	}
	defer func() {
		if err = errors.Join(err, file.Close()); err != nil {
			_ = os.Remove(file.Name()) // gone where it is in its place
		}
	}()
	packed := gzip.NewWriter(file)
	a := &archive{tar: tar.NewWriter(packed), report: &r, taken: map[string]bool{}}
	r.Manifest = Manifest{Version: version, Mayfly: o.Mayfly, Time: o.Now.UTC().Truncate(time.Second), Files: []File{}, Logs: []Log{}, LeftOut: []LeftOut{}}
	for _, step := range []func() error{
		func() error { return a.all(ctx, o) },
		a.tar.Close, packed.Close,
		func() error { return durable.OwnerOfFolder(file) },
		file.Sync,
		func() (err error) { r.Bytes, err = file.Seek(0, io.SeekCurrent); return err },
		func() error { _, err := readAgain(file, nil); return err },
		func() error { return os.Rename(file.Name(), r.Out) },
		func() error { return durable.SyncFolder(folder) },
		func() error { return note(string(o.Config.Audit.Path), r) },
	} {
		if err := step(); err != nil {
			return r, err
		}
	}
	if fresh || o.Keep == 0 {
		return r, nil
	}
	old, err := beside(filepath.Join(folder, "mayfly-"), "Z.tar.gz") // the oldest first
	for _, name := range old[:max(0, len(old)-o.Keep)] {
		err = errors.Join(err, os.Remove(name))
	}
	return r, err
}

// beside are the files whose paths begin and end so, sorted.
func beside(prefix string, suffixes ...string) (found []string, err error) {
	folder, begin := filepath.Split(prefix)
	entries, err := os.ReadDir(filepath.Clean(folder))
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, begin) && slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(name, s) }) {
			found = append(found, filepath.Join(folder, name))
		}
	}
	return found, err
}

// archive is one that is being written.
type archive struct {
	tar     *tar.Writer
	report  *Report
	taken   map[string]bool
	secrets []secret
}

func (a *archive) all(ctx context.Context, o Options) (err error) {
	if a.report.Config, err = filepath.Abs(o.ConfigFile); err != nil {
		return err
	}
	everything, err := namedBy(o.Config)
	if err != nil {
		return err
	}
	if state := string(o.Config.TUF.StateFile()); state != "" { // written last, so that what it speaks of is there
		if err := a.file(named{"tuf.directory", state}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, n := range append([]named{{"--config", a.report.Config}}, everything...) {
		if err := a.named(n, len(o.Passphrase) > 0); err != nil {
			return err
		}
	}
	if err := a.trail(string(o.Config.Audit.Path)); err != nil {
		return err
	}
	for _, l := range o.Config.CTLog.FrozenLogs() {
		if l.Directory != "" {
			err = errors.Join(err, a.log(ctx, Log{URL: l.URL, Directory: string(l.Directory)}))
		}
	}
	for _, l := range o.Config.CTLog.Own() {
		err = errors.Join(err, a.log(ctx, Log{URL: l.URL, Directory: string(l.Directory), MarkFile: string(l.MarkFile)}))
	}
	if err != nil {
		return err
	}
	if len(a.secrets) > 0 {
		sealed, err := seal(a.secrets, o.Passphrase)
		if err == nil {
			err = a.bytes(named{"--keys", "/" + keysName}, 0o600, sealed)
		}
		if err != nil {
			return fmt.Errorf("encrypting the keys: %w", err)
		}
	}
	text, err := json.MarshalIndent(a.report.Manifest, "", " ")
	if err != nil {
		return err
	}
	return a.add(manifestName, 0o600, int64(len(text)), bytes.NewReader(text))
}

// named takes what one setting names.
func (a *archive) named(n named, keys bool) error {
	k := n.kind()
	if n.setting == "--config" {
		k = publicFile
	}
	why := map[kind]string{mark: "a mark: it alone knows what was promised after this backup", index: "made again from the logs"}[k]
	switch k {
	case apart:
		return nil
	case publicFolder:
		return a.folder(n)
	case publicFile, secretFile:
		data, err := durable.ReadPlain(n.path, maxNamed)
		info, failed := os.Stat(n.path)
		private := k == secretFile || bytes.Contains(data, []byte("PRIVATE KEY-----")) // as beside a certificate
		switch {
		case errors.Is(err, fs.ErrNotExist):
			why = "it isn't there"
		case err != nil && (keys || !private):
			return fmt.Errorf("%s: %w", n.setting, err)
		case failed != nil:
			return failed
		case !private:
			return a.bytes(n, info.Mode().Perm(), data)
		case keys:
			a.secrets = append(a.secrets, secret{File{Path: n.path, Setting: n.setting, Mode: info.Mode().Perm()}, data})
			return nil
		default:
			why = "a secret: --keys takes it"
		}
	case mark, index:
	}
	a.report.LeftOut = append(a.report.LeftOut, LeftOut{n.setting, n.path, why})
	return nil
}

// folder takes the files of a folder, in the order of their names: lists of what is revoked
// before the statements, which are written before them.
func (a *archive) folder(n named) error {
	var names []string
	err := filepath.WalkDir(n.path, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && durable.OfTheSystem(e.Name()) {
			return fs.SkipDir
		}
		names = append(names, path)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		a.report.LeftOut = append(a.report.LeftOut, LeftOut{n.setting, n.path, "it isn't there"})
		return nil
	}
	for _, path := range names {
		base := filepath.Base(path)
		if info, failed := os.Stat(path); failed == nil && info.Mode().IsRegular() && base != "LOCK" && !strings.HasPrefix(base, durable.TempPrefix) {
			err = errors.Join(err, a.file(named{n.setting, path}))
		}
	}
	return err
}

// trail takes the audit trail, with what is beside it.
func (a *archive) trail(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	stem := strings.TrimSuffix(path, filepath.Ext(path))
	sinks, err := beside(stem+".sink-", ".json")
	for _, name := range append(sinks, stem+".inclusion.json") {
		if failed := a.file(named{"audit.path", name}); !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	if err != nil {
		return err
	}
	for _, f := range audit.Files(path) {
		_, err := audit.Verify(f, nil, nil, func(fault error) {
			a.report.Remarks = append(a.report.Remarks, "the audit trail was taken as it is, and isn't whole: "+fault.Error())
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := a.parts(f.Path); err != nil {
			return err
		}
	}
	return nil
}

// parts takes a file of the trail with all that was rotated before it. The current one is
// held open first: where it is still that when the others are listed, none is missing
// between, however soon it rotates.
func (a *archive) parts(path string) error {
	const compressed = ".gz"
	for range 10 {
		file, err := os.Open(path) // #nosec G304 -- the operator names the trail
		if errors.Is(err, fs.ErrNotExist) {
			file, err = nil, nil
		}
		if err != nil {
			return err
		}
		ext := filepath.Ext(path)
		rotated, failed := beside(strings.TrimSuffix(path, ext)+"-", ext, ext+compressed)
		if file == nil {
			if len(rotated) == 0 {
				return failed // nothing was ever recorded there
			}
			continue // it is being rotated
		}
		held, err := file.Stat()
		now, gone := os.Stat(path)
		if err = errors.Join(err, failed); err == nil && gone == nil && os.SameFile(held, now) {
			for _, name := range rotated {
				// While a part is compressed, both are there.
				if whole, packed := strings.CutSuffix(name, compressed); !packed || !slices.Contains(rotated, whole) {
					err = errors.Join(err, a.rotated(name, compressed))
				}
			}
			return errors.Join(err, a.open(named{"audit.path", path}, file, true), file.Close())
		}
		_ = file.Close() // it was only read
	}
	return fmt.Errorf("%s rotates all the time", path)
}

// rotated takes a part, which may be compressed meanwhile, or removed as too old.
func (a *archive) rotated(name, compressed string) error {
	err := a.file(named{"audit.path", name})
	if errors.Is(err, fs.ErrNotExist) {
		err = a.file(named{"audit.path", name + compressed})
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// log takes what a log has published, and checks it first.
func (a *archive) log(ctx context.Context, l Log) (err error) {
	if l.Directory, err = filepath.Abs(l.Directory); err != nil {
		return err
	}
	if l.MarkFile != "" {
		if l.MarkFile, err = filepath.Abs(l.MarkFile); err != nil {
			return err
		}
	}
	backup := !logdir.Dir(l.Directory).Exists(logdir.StateDir)
	if _, err := maintain.Verify(ctx, l.Directory, maintain.VerifyOptions{Backup: backup, MarkFile: l.MarkFile}); err != nil {
		return fmt.Errorf("the log in %s isn't whole, and nothing was backed up: %w", l.Directory, err)
	}
	l.Entries, err = maintain.Copy(ctx, l.Directory, func(name string, data []byte) error {
		return a.bytes(named{"ctlog", filepath.Join(l.Directory, name)}, 0o644, data) // the log is public
	})
	a.report.Logs = append(a.report.Logs, l)
	return err
}

func (a *archive) bytes(n named, mode fs.FileMode, data []byte) error {
	return a.stream(n, mode, int64(len(data)), bytes.NewReader(data))
}

// file takes a file as it is.
func (a *archive) file(n named) (err error) {
	if n.path, err = filepath.Abs(n.path); err != nil {
		return err
	}
	file, err := os.Open(n.path) // #nosec G304 -- the operator names it
	if err != nil {
		return err
	}
	return errors.Join(a.open(n, file, strings.HasSuffix(n.path, ".jsonl")), file.Close())
}

// open takes an open file: as it is now, or as far as its lines are whole.
func (a *archive) open(n named, file *os.File, lines bool) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if lines {
		if size, err = wholeLines(file, size); err != nil {
			return err
		}
	}
	return a.stream(n, info.Mode().Perm(), size, file)
}

// wholeLines is where the last whole line ends.
func wholeLines(r io.ReaderAt, end int64) (int64, error) {
	buffer := make([]byte, 64<<10)
	for end > 0 {
		b := buffer[:min(end, int64(len(buffer)))]
		if _, err := r.ReadAt(b, end-int64(len(b))); err != nil {
			return 0, err
		}
		if at := bytes.LastIndexByte(b, '\n'); at >= 0 {
			return end - int64(len(b)) + int64(at) + 1, nil
		}
		end -= int64(len(b))
	}
	return 0, nil
}

func (a *archive) stream(n named, mode fs.FileMode, size int64, r io.Reader) error {
	if a.taken[n.path] {
		return nil
	}
	a.taken[n.path] = true
	hash := sha256.New()
	if err := a.add(inside(n.path), mode, size, io.TeeReader(r, hash)); err != nil {
		return fmt.Errorf("%s: %w", n.path, err)
	}
	a.report.Files = append(a.report.Files, File{n.path, n.setting, mode, size, hex.EncodeToString(hash.Sum(nil))})
	return nil
}

func (a *archive) add(name string, mode fs.FileMode, size int64, r io.Reader) error {
	err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode), Size: size, ModTime: a.report.Time})
	if err == nil {
		_, err = io.CopyN(a.tar, r, size)
	}
	return err
}

// noted is what a backup leaves for the service beside the audit trail.
type noted struct {
	Time time.Time `json:"time"`
	File string    `json:"file"`
}

func stateFile(trail string) string {
	return strings.TrimSuffix(trail, filepath.Ext(trail)) + ".backup.json"
}

func note(trail string, r Report) error {
	text, err := json.Marshal(noted{r.Time, r.Out})
	if err == nil {
		err = durable.Put(stateFile(trail), append(text, '\n'), 0o600)
	}
	return err
}

// Last is when the last backup was made of the CA with this audit trail; 1970 without one.
func Last(trail string) time.Time {
	var last noted
	text, err := durable.ReadPlain(stateFile(trail), 1<<16)
	if err == nil {
		err = json.Unmarshal(text, &last)
	}
	if err != nil {
		return time.Unix(0, 0)
	}
	return last.Time
}
