package embedded_test

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func (b *bench) path(names ...string) string {
	return filepath.Join(append([]string{string(b.config.Directory)}, names...)...)
}

// write opens the log, submits n chains, and closes it.
func (b *bench) write(t *testing.T, n int) {
	t.Helper()
	l := b.openNow(t)
	for range n {
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
			t.Fatalf("Submit: %v", err)
		}
	}
	closeLog(t, l)
}

func (b *bench) copyDir(t *testing.T, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(b.path())); err != nil {
		t.Fatalf("copying the log: %v", err)
	}
}

// swap puts the copy in the place of the log.
func (b *bench) swap(t *testing.T, with string) {
	t.Helper()
	remove(t, b.path())
	if err := os.Rename(with, b.path()); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOpenRefuses: what a log is not opened on, and what the operator reads.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		harm func(t *testing.T, b *bench)
		want string
	}{
		"older copy": {func(t *testing.T, b *bench) {
			old := t.TempDir() + "/old"
			b.copyDir(t, old)
			b.write(t, 2)
			b.swap(t, old)
		}, "an older copy"},
		"older copy that went on": {func(t *testing.T, b *bench) {
			old, mark := t.TempDir()+"/old", t.TempDir()+"/mark"
			b.copyDir(t, old)
			if err := os.Link(string(b.config.MarkFile), mark); err == nil {
				_ = os.Remove(mark)
			}
			b.write(t, 2)
			kept := readFile(t, string(b.config.MarkFile))
			b.swap(t, old)
			remove(t, string(b.config.MarkFile))
			tree, err := logdir.Dir(b.path()).Tree()
			if err != nil {
				t.Fatal(err)
			}
			if err := logdir.CreateMark(string(b.config.MarkFile), sha256.Sum256(b.key.SPKI(t)), tree); err != nil {
				t.Fatal(err)
			}
			b.write(t, 3)
			if err := os.WriteFile(string(b.config.MarkFile), kept, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "forked"},
		"state deleted":          {func(t *testing.T, b *bench) { remove(t, b.path(".state", "treeState")) }, "state is gone"},
		"state and mark deleted": {func(t *testing.T, b *bench) { remove(t, b.path(".state")); remove(t, string(b.config.MarkFile)) }, "state (.state/treeState) is gone"},
		"directory emptied":      {func(t *testing.T, b *bench) { remove(t, b.path()) }, "state is gone"},
		"mark deleted":           {func(t *testing.T, b *bench) { remove(t, string(b.config.MarkFile)) }, "mark"},
		"mark damaged":           {func(t *testing.T, b *bench) { ruin(t, string(b.config.MarkFile)) }, "damaged"},
		"entry damaged":          {func(t *testing.T, b *bench) { flip(t, b.path("tile", "data", "000.p", "3")) }, "entry"},
		"tile damaged":           {func(t *testing.T, b *bench) { flip(t, b.path("tile", "0", "000.p", "3")) }, "don't add up"},
		"checkpoint damaged":     {func(t *testing.T, b *bench) { flip(t, b.path("checkpoint")) }, "checkpoint"},
		"another key":            {func(t *testing.T, b *bench) { b.o.Signer = ctlogtest.NewSigner(t) }, "another key"},
		"another name":           {func(_ *testing.T, b *bench) { b.config.URL = "https://log.example/2028" }, "name for life"},
		"another log's mark":     {func(t *testing.T, b *bench) { b.stealMark(t) }, "another log"},
		"mark inside":            {func(_ *testing.T, b *bench) { b.config.MarkFile = setting.Path(b.path("mark")) }, "inside"},
		"nothing there, no leave": {func(t *testing.T, b *bench) {
			b.config.Directory = setting.Path(t.TempDir())
			b.config.MarkFile += "2"
			b.o.Create = false
		}, "no log"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.write(t, 3)
			tt.harm(t, b)
			l, err := embedded.Open(t.Context(), b.config, b.o)
			if err == nil {
				closeLog(t, l)
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want it to say %q", err, tt.want)
			}
		})
	}
}

func (b *bench) stealMark(t *testing.T) {
	t.Helper()
	other := newBench(t)
	other.write(t, 1)
	if err := os.WriteFile(string(b.config.MarkFile), readFile(t, string(other.config.MarkFile)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func ruin(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSecondOpenerInOneProcessIsRefused: the second opener in one process is refused too; after the
// first has closed, it isn't.
func TestSecondOpenerInOneProcessIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	if _, err := embedded.Open(t.Context(), b.config, b.o); !errors.Is(err, embedded.ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
	closeLog(t, l)
	b.write(t, 1)
}

// TestOnlyTheCopyWithTheMarkIsWrittenTo: of two copies of a log, each with a lock of its own, only the one
// that has the mark is written to, and no backup takes its place meanwhile.
func TestOnlyTheCopyWithTheMarkIsWrittenTo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write(t, 3)
	copied, backup := filepath.Join(t.TempDir(), "copy"), filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(copied, os.DirFS(string(b.config.Directory))); err != nil {
		t.Fatal(err)
	}
	if _, err := maintain.Backup(t.Context(), string(b.config.Directory), backup, maintain.VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	l := b.openNow(t)
	other := b.config
	other.Directory = setting.Path(copied)
	if _, err := embedded.Open(t.Context(), other, b.o); !errors.Is(err, embedded.ErrLocked) {
		t.Errorf("a copy beside the running log: %v, want ErrLocked", err)
	}
	restored := filepath.Join(t.TempDir(), "restored")
	if _, err := maintain.Restore(t.Context(), backup, restored, string(b.config.MarkFile), maintain.VerifyOptions{}); !errors.Is(err, embedded.ErrLocked) {
		t.Errorf("a backup restored beside the running log: %v, want ErrLocked", err)
	}
	closeLog(t, l)
	if _, err := maintain.Restore(t.Context(), backup, restored, string(b.config.MarkFile), maintain.VerifyOptions{}); err != nil {
		t.Errorf("a backup restored after the log has ended: %v", err)
	}
}

// TestLogWithoutItsLockFileTakesNothing: without its lock file a log takes nothing any more.
func TestLogWithoutItsLockFileTakesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	remove(t, b.path("LOCK"))
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); fault.From(err).Reason != fault.LogUnavailable {
		t.Errorf("got %v, want LOG_UNAVAILABLE", err)
	}
	if err := l.Settled().Ready(t.Context()); err == nil {
		t.Error("ready without its lock")
	}
	if err := l.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("closed without its lock: %v", err)
	}
}

// TestSweepRemovesWhatACrashLeft: what a crash left is removed, and what an earlier version
// didn't collect, and nothing else.
func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	b.load(t, l, 259)
	closeLog(t, l)
	leftovers := []string{
		b.path(".tmp-123"), b.path(".state", ".tmp-456"), b.path("tile", "0", "001.p", ".tmp-314"),
		b.path("tile", "data", ".tmp-001"), b.path("issuer", ".tmp-789"), b.path("tile", "data", "000.p"), b.path("tile", "0", "000.p"),
	}
	for _, dir := range leftovers[5:] {
		makeDir(t, dir)
	}
	for _, path := range leftovers[:5] {
		ruin(t, path)
	}
	keep := []string{b.path("notes.txt"), b.path("tile", "data", "001.p", "3"), b.path("tile", "0", "001.p", "3"), b.path("tile", "1", "000.p", "1")}
	ruin(t, keep[0])
	b.write(t, 1)
	for _, path := range leftovers {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", path)
		}
	}
	for _, path := range keep {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("what is no leftover: %v", err)
		}
	}
	if _, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)}); err != nil {
		t.Errorf("Verify: %v", err)
	}
}

// TestVerify: a log of several tiles is whole while it is in use, and what is damaged in
// it is found.
func TestVerify(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	const entries = 600 // two full tiles and a partial one
	b.load(t, l, entries)
	url, c := serve(t, l)
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, entries)
	var last, all uint64
	report, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{
		Key: b.key.SPKI(t), MarkFile: string(b.config.MarkFile),
		Progress: func(done, total uint64) { last, all = done, total },
	})
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	if report.Size != entries || report.Precerts != entries || report.Issuers != 2 || report.MarkSize != entries || last != entries || all != entries {
		t.Errorf("report %+v, progress %d of %d", report, last, all)
	}
	for _, victim := range []string{
		b.path("tile", "data", "001"), b.path("tile", "0", "000"), b.path("checkpoint"), b.path("tile", "1", "000.p", "2"),
		filepath.Join(b.path("issuer"), first(t, b.path("issuer"))),
	} {
		whole := readFile(t, victim)
		flip(t, victim)
		if _, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{}); err == nil {
			t.Errorf("%s: a flipped bit went unseen", victim)
		}
		if err := os.WriteFile(victim, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func first(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		t.Fatalf("reading %s: %v", dir, err)
	}
	return entries[0].Name()
}

// TestClosedLogRefuses: a closed log refuses, and closing twice is harmless.
func TestClosedLogRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	closeLog(t, l)
	closeLog(t, l)
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); fault.From(err).Reason != fault.ShuttingDown {
		t.Errorf("got %v, want SHUTTING_DOWN", err)
	}
	if err := l.Ready(t.Context()); err == nil {
		t.Error("ready after Close")
	}
	b.o.SetLockWait(time.Second)
	if err := embedded.Create(t.Context(), b.config, b.o); err == nil {
		t.Error("Create over a log")
	}
}

func makeDir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
}
