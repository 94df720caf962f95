package embedded_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// furnish puts into a folder what file systems and platforms have there by themselves,
// and says where.
func furnish(t *testing.T, dir string) []string {
	t.Helper()
	var things []string
	for _, name := range []string{"lost+found", ".snapshot", "..2026_11_29"} {
		file := filepath.Join(dir, name, durable.TempPrefix+"1")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		things = append(things, file)
	}
	things = append(things, filepath.Join(dir, ".DS_Store"))
	for _, file := range things {
		if err := os.WriteFile(file, []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("..2026_11_29", filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	return things
}

// TestFoldersWithThingsOfTheirOwn: what a file system or platform keeps in a folder is in
// nobody's way: a log is made beside it, opened, backed up and restored, and it is
// neither copied nor changed. What is something else is named.
func TestFoldersWithThingsOfTheirOwn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	backup, restored := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "restored")
	things := slices.Concat(furnish(t, b.path()), furnish(t, backup), furnish(t, restored))
	if err := embedded.Create(t.Context(), b.config, b.o); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b.write(t, 2)
		things = append(things, furnish(t, t.TempDir())[0])
		if _, err := maintain.Backup(t.Context(), b.path(), backup, maintain.VerifyOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	stray := b.path("issuer", "notes.txt")
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := maintain.Restore(t.Context(), backup, restored, string(b.config.MarkFile), maintain.VerifyOptions{}); err != nil || r.Size != 4 {
		t.Fatalf("Restore: %+v, %v", r, err)
	}
	there := *b
	there.config.Directory = setting.Path(restored)
	there.write(t, 1)
	for _, thing := range things {
		if raw, err := os.ReadFile(thing); err != nil || string(raw) != "theirs" {
			t.Errorf("%s: %q, %v", thing, raw, err)
		}
	}
	for _, dir := range []string{backup, restored} {
		if _, err := os.Stat(filepath.Join(dir, "issuer", "notes.txt")); err == nil {
			t.Errorf("%s has what is no issuer", dir)
		}
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis.odt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, backupErr := maintain.Backup(t.Context(), b.path(), full, maintain.VerifyOptions{})
	_, restoreErr := maintain.Restore(t.Context(), backup, full, string(b.config.MarkFile), maintain.VerifyOptions{})
	for _, err := range []error{backupErr, restoreErr} {
		if err == nil || !strings.Contains(err.Error(), "thesis.odt") {
			t.Errorf("a folder of somebody's: %v, want it named", err)
		}
	}
}

// TestWhatRootMakesBelongsToTheService: a log, its mark, a backup and what is restored
// belong to the owner of the folder that they are in, whoever ran the command; and what
// was there before stays its owner's.
func TestWhatRootMakesBelongsToTheService(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	const service = 4242
	home := t.TempDir()
	if err := os.Chown(home, service, service); err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	b.config.Directory = setting.Path(filepath.Join(home, "logs", "2027"))
	b.config.MarkFile = setting.Path(filepath.Join(home, "marks", "2027.mark"))
	things := furnish(t, filepath.Join(home, "restored"))
	if err := os.Chown(filepath.Join(home, "restored"), service, service); err != nil {
		t.Fatal(err)
	}
	if err := embedded.Create(t.Context(), b.config, b.o); err != nil {
		t.Fatal(err)
	}
	if _, err := maintain.Backup(t.Context(), b.path(), filepath.Join(home, "backup"), maintain.VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	report, err := maintain.Restore(t.Context(), filepath.Join(home, "backup"), filepath.Join(home, "restored"), string(b.config.MarkFile), maintain.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := maintain.Freeze(b.path(), report, time.Now()); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(home, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		want := uint32(service)
		if slices.Contains(things, path) || durable.OfTheSystem(filepath.Base(path)) {
			want = 0
		}
		if is := info.Sys().(*syscall.Stat_t); is.Uid != want || is.Gid != want { //nolint:forcetypeassert // on Linux
			t.Errorf("%s belongs to %d:%d, want %d", path, is.Uid, is.Gid, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
