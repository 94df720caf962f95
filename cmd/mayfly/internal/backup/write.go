package backup

import (
	"archive/tar"
	"bytes"
	"cmp"
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
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Options say what a backup is made of.
type Options struct {
	ConfigFile string
	Config     *config.Config // what stands there
	Out        string         // a new file, or a folder for one that has the time in its name
	Keep       uint16         // how many such files stay in the folder; 0 keeps all
	Passphrase []byte         // takes secrets, encrypted with it; empty leaves them out
	Mayfly     string         // the version of this program
	Now        time.Time
}

// Report is what a backup has.
type Report struct {
	Manifest
	Out    string `json:"archive"`
	Bytes  int64  `json:"bytes"`
	Faults int    `json:"trail_faults"` // places where the audit trail isn't whole
	Fault  error  `json:"-"`            // the first of them
}

const (
	maxLine    = 1 << 20 // of what has lines, and more
	unfinished = durable.TempPrefix + "mayfly-backup-"
	compressed = ".gz" // ends rotated parts of the audit trail
)

// Make writes a backup under another name, reads it back, and puts it in its place. What
// grows is read in the opposite order of its writing: how far readers of the audit trail
// are, the trail, and the logs, which then have all that the trail says they have.
func Make(ctx context.Context, o Options) (r Report, err error) {
	r = Report{Out: o.Out, Manifest: Manifest{Version: version, Mayfly: o.Mayfly, Time: o.Now.UTC().Truncate(time.Second), Logs: []Log{}, LeftOut: []LeftOut{}}}
	switch info, err := os.Stat(o.Out); {
	case err == nil && info.IsDir():
		r.Out = filepath.Join(o.Out, "mayfly-"+r.Time.Format("20060102T150405Z")+".tar.gz")
	case o.Keep != 0:
		return r, fmt.Errorf("%s has to be a folder for several backups: %w", o.Out, cmp.Or(err, fs.ErrExist))
	}
	if r.Out, err = filepath.Abs(r.Out); err != nil {
		return r, err
	}
	if _, err := os.Lstat(r.Out); !errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("%s: %w, and a backup is never overwritten", r.Out, cmp.Or(err, fs.ErrExist))
	}
	folder := filepath.Dir(r.Out)
	left, _ := beside(filepath.Join(folder, unfinished), "") // by a crash: each is as large as a backup
	for _, name := range left {
		if info, err := os.Stat(name); err == nil && o.Now.Sub(info.ModTime()) > 24*time.Hour {
			_ = os.Remove(name)
		}
	}
	file, err := os.CreateTemp(folder, unfinished) // mode 0600
	if err != nil {
		return r, err
	}
	defer func() {
		if err = errors.Join(err, file.Close()); err != nil {
			_ = os.Remove(file.Name()) // it isn't there where it was put in its place
		}
	}()
	packed := gzip.NewWriter(file)
	a := &archive{Report: &r, tar: tar.NewWriter(packed), keys: len(o.Passphrase) > 0, alive: ctx.Err, taken: map[string]bool{}}
	for _, step := range []func() error{
		func() error { return a.all(ctx, o) },
		a.tar.Close, packed.Close,
		func() error { return durable.OwnerOfFolder(file) },
		file.Sync,
		func() (err error) { r.Bytes, err = file.Seek(0, io.SeekEnd); return err },
		func() error {
			if _, err := read(file, func(string, io.Reader) error { return ctx.Err() }); err != nil {
				return fmt.Errorf("reading the backup back: %w", err)
			}
			return nil
		},
		func() error { return os.Rename(file.Name(), r.Out) },
		func() error { return durable.SyncFolder(folder) },
		func() error { return durable.Put(noteOf(string(o.Config.Audit.Path)), []byte(r.Out+"\n"), 0o600) },
	} {
		if err := step(); err != nil {
			return r, err
		}
	}
	if o.Keep == 0 {
		return r, nil
	}
	old, err := beside(filepath.Join(folder, "mayfly-"), "Z.tar.gz") // the oldest first
	for _, name := range old[:max(0, len(old)-int(o.Keep))] {
		err = errors.Join(err, os.Remove(name))
	}
	return r, err
}

// noteOf is the file beside an audit trail that tells the service of the last backup.
func noteOf(trail string) string { return strings.TrimSuffix(trail, filepath.Ext(trail)) + ".backup" }

// Last is when the last backup was made of the CA with this audit trail; 1970 without one.
func Last(trail string) time.Time {
	info, err := os.Stat(noteOf(trail))
	if err != nil {
		return time.Unix(0, 0)
	}
	return info.ModTime()
}

// beside are the files whose paths begin and end so, sorted.
func beside(prefix, suffix string) (found []string, err error) {
	folder, begin := filepath.Split(prefix)
	entries, err := os.ReadDir(filepath.Clean(folder))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), begin) && strings.HasSuffix(e.Name(), suffix) {
			found = append(found, filepath.Join(folder, e.Name()))
		}
	}
	return found, err
}

// archive is one that is being written.
type archive struct {
	*Report
	tar     *tar.Writer
	keys    bool
	alive   func() error
	taken   map[string]bool
	secrets []secret
	folders []File // taken once each file that a setting names is known: a key may be in one
}

func (a *archive) all(ctx context.Context, o Options) (err error) {
	if a.Config, err = filepath.Abs(o.ConfigFile); err != nil {
		return err
	}
	err = a.named("--config", a.Config)
	take := func(at, path string) {
		if path, failed := filepath.Abs(path); failed != nil {
			err = errors.Join(err, failed)
		} else if !a.taken[path] {
			err = errors.Join(err, a.named(at, path))
		}
	}
	if state := o.Config.TUF.StateFile(); state != "" {
		take("tuf.state_file", string(state)) // it is written last, so that what it speaks of is there
	}
	o.Config.Paths(func(at string, what any) {
		switch path := what.(type) {
		case setting.Path:
			if path != "" {
				take(at, string(path))
			}
		case setting.KeyRef:
			if path, isFile := strings.CutPrefix(string(path), "file:"); isFile {
				take(at, path)
			}
		}
	})
	for _, f := range a.folders {
		if err == nil {
			err = a.folder(f.Setting, f.Path)
		}
	}
	if err == nil {
		err = a.trail(string(o.Config.Audit.Path))
	}
	for _, l := range o.Config.CTLog.FrozenLogs() {
		if l.Directory != "" && err == nil {
			err = a.log(ctx, Log{URL: l.URL, Directory: string(l.Directory)})
		}
	}
	for _, l := range o.Config.CTLog.Own() {
		if err == nil {
			err = a.log(ctx, Log{URL: l.URL, Directory: string(l.Directory), MarkFile: string(l.MarkFile)})
		}
	}
	if len(a.secrets) > 0 && err == nil {
		var sealed string
		if sealed, err = seal(a.secrets, o.Passphrase); err == nil {
			err = a.bytes("--keys", keysPath, 0o600, []byte(sealed))
		}
	}
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(a.Manifest, "", " ")
	if err != nil {
		return err
	}
	return a.bytes("", manifestPath, 0o600, text)
}

// named takes what a setting names. What isn't known to be public is a secret, so that a
// setting that comes later is never told to everybody who may read a backup.
func (a *archive) named(at, path string) error {
	a.taken[path] = true
	var public bool
	switch name := at[strings.LastIndexByte(at, '.')+1:]; {
	case name == "mark_file":
		a.leaveOut(at, path, "it alone knows what was promised after this backup")
		return nil
	case at == "store.path":
		a.leaveOut(at, path, "made again from the logs")
		return nil
	case name == "history" || at == "tuf.directory" || at == "revocation.directory":
		a.folders = append(a.folders, File{Path: path, Setting: at})
		return nil
	case name == "directory" || at == "audit.path": // of a log
		return nil
	case name == "key_file": // of logs and of services beside this CA: public ones
		public = strings.HasPrefix(at, "ctlog.") || strings.HasPrefix(at, "trust.")
	default:
		public = slices.Contains([]string{"--config", "chain", "cert_file", "ca_file", "jwks_file", "state_file"}, name)
	}
	data, err := durable.ReadPlain(path, maxKeys)
	if errors.Is(err, fs.ErrNotExist) {
		a.leaveOut(at, path, "it isn't there")
		return nil
	}
	public = public && !bytes.Contains(data, []byte("PRIVATE KEY-----")) // as some have it beside their certificate
	if !public && !a.keys {
		a.leaveOut(at, path, "a secret: --keys takes it")
		return nil
	}
	info, failed := os.Stat(path)
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if public {
		return a.bytes(at, path, info.Mode().Perm(), data)
	}
	a.secrets = append(a.secrets, secret{File{Path: path, Setting: at, Mode: info.Mode().Perm()}, data})
	return nil
}

func (a *archive) leaveOut(at, path, why string) {
	a.LeftOut = append(a.LeftOut, LeftOut{at, path, why})
}

// folder takes the files of a folder, in the order of their names: lists of what is revoked
// before the statements, which are written before them.
func (a *archive) folder(at, dir string) error {
	if setting.Path(a.Out).Inside(setting.Path(dir)) {
		return fmt.Errorf("%s is %s, and each backup there would be in those after it: name another folder", dir, at)
	}
	err := filepath.WalkDir(dir+"/", func(path string, e fs.DirEntry, err error) error { // which may be a link
		if e == nil {
			return err
		}
		if e.IsDir() && durable.OfTheSystem(e.Name()) {
			return fs.SkipDir
		}
		var info fs.FileInfo
		if err == nil {
			info, err = os.Stat(path) // also through a link, as Kubernetes mounts by
		}
		switch {
		case err != nil || e.Name() == "LOCK" || strings.HasPrefix(e.Name(), durable.TempPrefix) || a.taken[path]:
		case info.Mode().IsRegular():
			err = a.file(at, path)
		case !e.IsDir() && !durable.OfTheSystem(e.Name()):
			a.leaveOut(at, path, "no plain file")
		}
		if errors.Is(err, fs.ErrNotExist) { // it was removed meanwhile
			err = nil
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		a.leaveOut(at, dir, "it isn't there")
		return nil
	}
	return err
}

// trail takes the three files of the audit trail, with their rotated parts and how far sinks are.
func (a *archive) trail(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	sinks, err := beside(strings.TrimSuffix(path, filepath.Ext(path))+".sink-", ".json")
	for _, name := range sinks {
		err = errors.Join(err, a.file("audit.sinks", name))
	}
	for _, f := range audit.Files(path) {
		if err == nil {
			err = a.parts(f)
		}
	}
	return err
}

// parts takes a file of the trail with all that was rotated out of it. It is opened before
// the others are listed, so that none is missing between, however soon it is rotated.
func (a *archive) parts(f audit.TrailFile) error {
	_, err := audit.Verify(f, nil, nil, func(fault error) { a.Faults, a.Fault = a.Faults+1, cmp.Or(a.Fault, fault) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	current, err := durable.OpenPlain(f.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // then nothing was recorded since the last rotation
		return err
	}
	all, err := audit.Parts(f.Path)
	for _, name := range all {
		if err != nil || name == f.Path { // which comes last
			continue
		}
		is, _ := os.Stat(name)
		if own, _ := current.Stat(); os.SameFile(is, own) {
			continue // it was rotated just now
		}
		if err = a.file("audit.path", name); errors.Is(err, fs.ErrNotExist) {
			err = a.file("audit.path", name+compressed) // it was compressed meanwhile
		}
		if errors.Is(err, fs.ErrNotExist) { // too old by now
			err = nil
		}
	}
	if current == nil {
		return err
	}
	if err == nil {
		err = a.open("audit.path", f.Path, current)
	}
	return errors.Join(err, current.Close())
}

// log takes what a log has published, and checks it first.
func (a *archive) log(ctx context.Context, l Log) (err error) {
	if l.Directory, err = filepath.Abs(l.Directory); err == nil && l.MarkFile != "" {
		l.MarkFile, err = filepath.Abs(l.MarkFile)
	}
	if err != nil {
		return err
	}
	o := maintain.VerifyOptions{Backup: !logdir.Dir(l.Directory).Exists(logdir.StateDir), MarkFile: l.MarkFile}
	if _, err := maintain.Verify(ctx, l.Directory, o); err != nil {
		return fmt.Errorf("the log in %s isn't whole, and nothing was backed up: %w", l.Directory, err)
	}
	l.Entries, err = maintain.Copy(ctx, l.Directory, func(name string, data []byte) error {
		return a.bytes("ctlog", filepath.Join(l.Directory, name), 0o644, data) // the log is public
	})
	a.Logs = append(a.Logs, l)
	return err
}

func (a *archive) file(at, path string) error {
	file, err := durable.OpenPlain(path)
	if err != nil {
		return err
	}
	return errors.Join(a.open(at, path, file), file.Close())
}

// open takes an open file: as it is now, or as far as its lines are whole.
func (a *archive) open(at, path string, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if ext := filepath.Ext(path); ext == ".jsonl" || at == "audit.path" && ext != compressed {
		tail := make([]byte, min(size, maxLine))
		if _, err := file.ReadAt(tail, size-int64(len(tail))); err != nil {
			return err
		}
		size -= int64(len(tail) - 1 - bytes.LastIndexByte(tail, '\n'))
	}
	return a.stream(at, path, info.Mode().Perm(), size, file)
}

func (a *archive) bytes(at, path string, mode fs.FileMode, data []byte) error {
	return a.stream(at, path, mode, int64(len(data)), bytes.NewReader(data))
}

func (a *archive) stream(at, path string, mode fs.FileMode, size int64, r io.Reader) error {
	a.taken[path] = true
	hash := sha256.New()
	err := a.alive()
	if err == nil {
		err = a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path, "/"), Mode: int64(mode), Size: size, ModTime: a.Time})
	}
	if err == nil {
		_, err = io.CopyN(io.MultiWriter(a.tar, hash), r, size)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	a.Files = append(a.Files, File{path, at, mode, size, hex.EncodeToString(hash.Sum(nil))})
	return nil
}
