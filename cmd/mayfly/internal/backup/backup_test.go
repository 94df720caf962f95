package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// member is what a test puts into an archive.
type member struct {
	name, content string
	kind          byte
	records       map[string]string
}

func pack(t testing.TB, all ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	packed := gzip.NewWriter(&b)
	w := tar.NewWriter(packed)
	for _, m := range all {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: m.name, Mode: 0o600, Size: int64(len(m.content)), PAXRecords: m.records}
		if m.kind != 0 {
			h.Typeflag, h.Linkname, h.Size, m.content = m.kind, "/etc/passwd", 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), packed.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const sumOfX = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"

func listing(files ...File) member {
	text, _ := json.Marshal(Manifest{Version: version, Config: "/etc/x", Files: files})
	return member{name: "mayfly-backup.json", content: string(text)}
}

func ignore(string, io.Reader) error { return nil }

// An archive that isn't what was written is refused, with what is wrong.
func TestReadRefuses(t *testing.T) {
	t.Parallel()
	x, listed := member{name: "etc/x", content: "x"}, File{Path: "/etc/x", Size: 1, SHA256: sumOfX}
	good := pack(t, x, listing(listed))
	if _, err := read(bytes.NewReader(good), ignore); err != nil {
		t.Fatal(err)
	}
	other := listed
	other.SHA256 = strings.Repeat("0", 64)
	for want, archive := range map[string][]byte{
		"gzip: invalid header":                               []byte("not packed at all"),
		"cut short before its list":                          pack(t, x),
		"unexpected EOF":                                     good[:len(good)/2],
		"damaged at its end":                                 good[:len(good)-4],
		`"../x" isn't a plain file`:                          pack(t, member{name: "../x", content: "x"}, listing(listed)),
		`"etc/../../x" isn't a plain file`:                   pack(t, member{name: "etc/../../x"}, listing(listed)),
		`"/etc/x" isn't a plain file`:                        pack(t, member{name: "/etc/x", content: "x"}, listing(listed)),
		`"etc/link" isn't a plain file`:                      pack(t, member{name: "etc/link", kind: tar.TypeSymlink}, listing()),
		`"etc/x" isn't a plain file inside, or is there twi`: pack(t, x, x, listing(listed)),
		"something follows":                                  pack(t, listing(), x),
		"/etc/x isn't in its list":                           pack(t, x, listing()),
		"/etc/x is missing":                                  pack(t, listing(listed)),
		"/etc/x is missing, or isn't as it was":              pack(t, x, listing(other)),
		"is missing, or isn't":                               pack(t, x, listing(listed, listed)),
		"it has version 2":                                   pack(t, member{name: "mayfly-backup.json", content: `{"version":2}`}),
		`has the path "/../x"`:                               pack(t, member{name: "mayfly-backup.json", content: `{"version":1,"config":"/../x"}`}),
	} {
		if _, err := read(bytes.NewReader(archive), ignore); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it says %v, want %q", err, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	good := pack(f, member{name: "etc/x", content: "x"}, listing(File{Path: "/etc/x", Size: 1, SHA256: sumOfX}))
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(pack(f, listing()))
	f.Fuzz(func(t *testing.T, archive []byte) {
		var taken []string
		m, err := read(bytes.NewReader(archive), func(path string, _ io.Reader) error {
			taken = append(taken, path)
			return nil
		})
		for _, path := range taken {
			if at := filepath.Join("/root", path); !strings.HasPrefix(at, "/root/") || filepath.Clean(path) != path {
				t.Fatalf("%q leads out", path)
			}
		}
		if err == nil && (len(m.Files) != len(taken) || m.Version != version) {
			t.Fatalf("it takes %v for %v", taken, m.Files)
		}
	})
}

// host is a folder with a configuration's files, and the configuration.
func host(t *testing.T, files map[string]string) (dir string, o Options) {
	t.Helper()
	dir = t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) setting.Path { return setting.Path(filepath.Join(dir, name)) }
	c := config.Default()
	c.CTLog.Mode = ctlog.ModeNone
	c.Audit.Path, c.Audit.KeyFile = in("audit/audit.jsonl"), in("audit.key.pem")
	c.Server.TLS.CertFile, c.Server.TLS.KeyFile = in("tls.crt"), in("tls.key")
	c.TUF.MarkFile = in("tuf.mark")
	return dir, Options{ConfigFile: string(in("mayfly.yaml")), Config: c, Out: filepath.Join(t.TempDir(), "b.tar.gz"), Now: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)}
}

// contents are the files of a backup below a folder, by their names there.
func contents(t *testing.T, path, below string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	found := map[string]string{}
	if _, err := read(file, func(path string, content io.Reader) error {
		text, err := io.ReadAll(content)
		found[strings.TrimPrefix(path, below+"/")] = string(text)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// A part that is compressed is taken once, one that was rotated as the trail was opened not
// again, and a line that is being written not at all.
func TestTrailIsTakenWhole(t *testing.T) {
	t.Parallel()
	dir, o := host(t, map[string]string{"mayfly.yaml": "x", "audit/audit.log": "one\ncut"})
	o.Config.Audit.Path = setting.Path(filepath.Join(dir, "audit/audit.log"))
	r, err := Make(t.Context(), o)
	if err != nil || contents(t, r.Out, dir)["audit/audit.log"] != "one\n" {
		t.Errorf("a trail of another name is taken as %v (%v)", contents(t, r.Out, dir), err)
	}
	dir, o = host(t, map[string]string{
		"mayfly.yaml": "x", "audit/audit.jsonl": "three\nfour\ncut", "audit/audit.admin.jsonl": "act\n",
		"audit/audit-2027-01-01.jsonl.gz": "one", "audit/audit-2027-01-02.jsonl": "two\n", "audit/audit-2027-01-02.jsonl.gz": "tw",
		"audit/audit.refused-2027.jsonl": "no\n", "audit/audit.sink-siem.json": "{}", "audit/audit.jsonl.lock": "", "audit/audit.inclusion.json": "{}",
	})
	if err := os.Link(filepath.Join(dir, "audit/audit.jsonl"), filepath.Join(dir, "audit/audit-2027-01-03.jsonl")); err != nil {
		t.Fatal(err)
	}
	if r, err = Make(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if r.Faults == 0 || r.Fault == nil {
		t.Error("nothing is said of a trail that is none")
	}
	want := map[string]string{
		"mayfly.yaml": "x", "audit/audit.jsonl": "three\nfour\n", "audit/audit.admin.jsonl": "act\n", "audit/audit-2027-01-01.jsonl.gz": "one",
		"audit/audit-2027-01-02.jsonl": "two\n", "audit/audit.refused-2027.jsonl": "no\n", "audit/audit.sink-siem.json": "{}",
	}
	got := contents(t, r.Out, dir)
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s is %q, want %q", name, got[name], content)
		}
	}
	if len(got) != len(want) {
		t.Errorf("it has %d files, want %d: %v", len(got), len(want), got)
	}
	if last := Last(string(o.Config.Audit.Path)); time.Since(last) > time.Hour {
		t.Errorf("the last backup was at %v", last)
	}
}

// Secrets are in a backup only where they are asked for, and then encrypted: also a key that
// stands beside a certificate. A backup is put back as it was, and never over anything.
func TestSecrets(t *testing.T) {
	t.Parallel()
	const key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
	dir, o := host(t, map[string]string{"mayfly.yaml": "x", "tls.crt": "certificate\n" + key, "tls.key": key, "tuf.mark": "7", "audit.key.pem": key, "audit/audit.jsonl": ""})
	r, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if got := contents(t, r.Out, dir); len(got) != 2 || got["mayfly.yaml"] != "x" {
		t.Errorf("without keys it has %v", got)
	}
	if _, err := Make(t.Context(), o); !errors.Is(err, os.ErrExist) {
		t.Errorf("a backup over another says %v", err)
	}
	o.Out, o.Passphrase = o.Out+".keys", []byte("correct horse battery staple")
	if r, err = Make(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for name, content := range contents(t, r.Out, dir) {
		if strings.Contains(content, "PRIVATE KEY") || name == "tuf.mark" {
			t.Errorf("with keys it has %s: %q", name, content)
		}
	}
	root := t.TempDir()
	if _, err := Restore(t.Context(), r.Out, RestoreOptions{Root: root, Passphrase: []byte("wrong horse battery staple")}); err == nil || there(filepath.Join(root, dir)) {
		t.Errorf("with a wrong passphrase it says %v", err)
	}
	if _, err := Restore(t.Context(), r.Out, RestoreOptions{Root: root, Passphrase: o.Passphrase}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mayfly.yaml", "tls.crt", "tls.key", "audit.key.pem", "audit/audit.jsonl"} {
		was, before := os.ReadFile(filepath.Join(dir, name))
		is, after := os.ReadFile(filepath.Join(root, dir, name))
		if info, err := os.Stat(filepath.Join(root, dir, name)); errors.Join(before, after, err) != nil || !bytes.Equal(was, is) || info.Mode() != 0o600 {
			t.Errorf("%s was %q and is %q: %v %v", name, was, is, after, err)
		}
	}
	_, err = Restore(t.Context(), r.Out, RestoreOptions{Root: root})
	if !errors.Is(err, ErrInTheWay) || !strings.Contains(err.Error(), filepath.Join(root, dir, "mayfly.yaml")) {
		t.Errorf("once more it says %v", err)
	}
}

// Secrets that a restore wouldn't read are refused before, and a count of rounds that would take a day as well.
func TestSeal(t *testing.T) {
	t.Parallel()
	passphrase := []byte("correct horse battery staple")
	if _, err := seal([]secret{{Data: make([]byte, maxKeys*9/16)}}, passphrase); err == nil || !strings.Contains(err.Error(), "that a restore reads") {
		t.Errorf("secrets that are too large give %v", err)
	}
	text, err := seal([]secret{{Data: []byte("x")}}, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	header, rest, _ := strings.Cut(text, ".")
	plain, err := base64.RawURLEncoding.DecodeString(header)
	if err != nil || !bytes.Contains(plain, []byte(`"p2c":600000`)) {
		t.Fatalf("%s: %v", plain, err)
	}
	costly := base64.RawURLEncoding.EncodeToString(bytes.Replace(plain, []byte(`"p2c":600000`), []byte(`"p2c":2000000000`), 1))
	if _, err := unseal([]byte(costly+"."+rest), passphrase); err == nil || !strings.Contains(err.Error(), "isn't that of the backup") {
		t.Errorf("two billion rounds give %v", err)
	}
}

// What a failure left half done is removed with the folders, which would be in the way of another try.
func TestFailureLeavesNothing(t *testing.T) {
	t.Parallel()
	x, root := File{Path: "/etc/x", Size: 1, SHA256: sumOfX, Mode: os.ModeSetuid | 0o644}, t.TempDir()
	y, archive := x, filepath.Join(t.TempDir(), "b.tar.gz")
	y.Path = "/etc/x/y" // below a file
	packed := pack(t, member{name: "etc/x", content: "x"}, member{name: "etc/x/y", content: "x"}, listing(x, y))
	if err := os.WriteFile(archive, packed, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Restore(t.Context(), archive, RestoreOptions{Root: filepath.Join(root, "new")})
	if left, failed := os.ReadDir(root); !errors.Is(err, syscall.ENOTDIR) || strings.Contains(err.Error(), "the backup can't") || failed != nil || len(left) > 0 {
		t.Errorf("it says %v and leaves %v (%v)", err, left, failed)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := Restore(ended, archive, RestoreOptions{Root: root}); !errors.Is(err, context.Canceled) {
		t.Errorf("a restore that is ended says %v", err)
	}
	_, o := host(t, map[string]string{"mayfly.yaml": "x", "audit/audit.jsonl": ""})
	if _, err := Make(ended, o); !errors.Is(err, context.Canceled) {
		t.Errorf("a backup that is ended says %v", err)
	}
}

// A secret that stands in a folder with public files isn't taken with those. The folder may be a link.
func TestSecretInAFolder(t *testing.T) {
	t.Parallel()
	dir, o := host(t, map[string]string{"mayfly.yaml": "x", "audit/audit.jsonl": "", "revocations/list.crl": "list", "revocations/a.key": "secret", "revocations/tuf.mark": "7"})
	in := func(name string) setting.Path { return setting.Path(filepath.Join(dir, "revocations", name)) }
	o.Config.Revocation.Directory, o.Config.Revocation.Key, o.Config.TUF.MarkFile = in(""), setting.KeyRef("file:"+in("a.key")), in("tuf.mark")
	if err := errors.Join(os.Rename(string(in("")), dir+"/elsewhere"), os.Symlink("elsewhere", string(in(""))), os.Symlink("..", string(in("up")))); err != nil {
		t.Fatal(err)
	}
	r, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(r.LeftOut, func(l LeftOut) bool { return l.Path == string(in("up")) }) {
		t.Errorf("a link to a folder isn't said to be left out: %v", r.LeftOut)
	}
	if got := contents(t, r.Out, dir); len(got) != 3 || got["revocations/list.crl"] != "list" {
		t.Errorf("it has %v", got)
	}
	o.Out = string(in("b.tar.gz"))
	if _, err := Make(t.Context(), o); err == nil || !strings.Contains(err.Error(), "would be in those after it") {
		t.Errorf("a backup in a folder that is backed up says %v", err)
	}
}

// A folder keeps the newest, and what isn't a backup.
func TestKeep(t *testing.T) {
	t.Parallel()
	_, o := host(t, map[string]string{"mayfly.yaml": "x", "audit/audit.jsonl": ""})
	o.Out, o.Keep = t.TempDir(), 2
	if err := os.WriteFile(filepath.Join(o.Out, "mayfly.tar.gz"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Of a crash long ago; of one that is being written; of another program.
	for name, days := range map[string]int{".tmp-mayfly-backup-1": -2, ".tmp-mayfly-backup-2": 4, ".tmp-1": -2} {
		path, modified := filepath.Join(o.Out, name), o.Now.AddDate(0, 0, days)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, modified, modified)); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		o.Now = o.Now.AddDate(0, 0, 1)
		if _, err := Make(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(o.Out)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if _, err := Make(t.Context(), o); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second backup of one second says %v", err)
	}
	o.Out = filepath.Join(o.Out, "none")
	if _, err := Make(t.Context(), o); err == nil || !strings.Contains(err.Error(), "has to be a folder") {
		t.Errorf("without the folder it says %v", err)
	}
	if want := []string{".tmp-1", ".tmp-mayfly-backup-2", "mayfly-20270105T030405Z.tar.gz", "mayfly-20270106T030405Z.tar.gz", "mayfly.tar.gz"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("it keeps %v (%v), want %v", names, err, want)
	}
}
