package embedded_test

import (
	"context"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestBackup: a backup taken under load is whole, grows with the next one, and
// becomes a log again only where nothing was promised after it.
func TestBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	b.load(t, l, 300)
	to := filepath.Join(t.TempDir(), "backup")
	loaded := make(chan struct{})
	go func() { defer close(loaded); b.load(t, l, 200) }()
	first, err := maintain.Backup(t.Context(), b.path(), to, maintain.VerifyOptions{})
	<-loaded
	if err != nil {
		t.Fatalf("under load: %v", err)
	}
	restored, mark := filepath.Join(t.TempDir(), "log"), string(b.config.MarkFile)
	closeLog(t, l)
	if first.Size < 500 {
		if _, err := maintain.Restore(t.Context(), to, restored, mark, maintain.VerifyOptions{}); !errors.Is(err, maintain.ErrBehind) {
			t.Errorf("restoring what is behind the mark: %v", err)
		}
	}
	last, err := maintain.Backup(t.Context(), b.path(), to, maintain.VerifyOptions{})
	if err != nil || last.Size != 500 {
		t.Fatalf("the second backup: %+v, %v", last, err)
	}
	before := b.config.Directory
	b.config.Directory = setting.Path(to)
	if l, err := embedded.Open(t.Context(), b.config, b.o); err == nil {
		closeLog(t, l)
		t.Error("a log opened on a backup")
	}
	b.config.Directory = before
	if _, err := maintain.Restore(t.Context(), to, b.path(), mark, maintain.VerifyOptions{}); err == nil {
		t.Error("restored over a log")
	}
	if _, err := maintain.Restore(t.Context(), to, restored, mark+"2", maintain.VerifyOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the mark: %v", err)
	}
	if _, err := maintain.Restore(t.Context(), to, restored, mark, maintain.VerifyOptions{}); err != nil {
		t.Fatalf("Restore: %v", err)
	}
	b.config.Directory = setting.Path(restored)
	b.write(t, 3)
	if r, err := maintain.Verify(t.Context(), restored, maintain.VerifyOptions{MarkFile: mark}); err != nil || r.Size != 503 {
		t.Errorf("the restored log: %+v, %v", r, err)
	}
}

func TestBackupRefusals(t *testing.T) {
	t.Parallel()
	b, other := newBench(t), newBench(t)
	b.write(t, 3)
	other.write(t, 3)
	to := filepath.Join(t.TempDir(), "backup")
	if _, err := maintain.Backup(t.Context(), b.path(), to, maintain.VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	used := t.TempDir()
	if err := os.WriteFile(filepath.Join(used, "mayfly.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"another's":       second(maintain.Backup(t.Context(), other.path(), to, maintain.VerifyOptions{})),
		"onto a log":      second(maintain.Backup(t.Context(), b.path(), other.path(), maintain.VerifyOptions{})),
		"among something": second(maintain.Backup(t.Context(), b.path(), used, maintain.VerifyOptions{})),
		"no log":          second(maintain.Backup(t.Context(), t.TempDir(), to, maintain.VerifyOptions{})),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	flip(t, filepath.Join(to, "tile", "data", "000.p", "3"))
	if _, err := maintain.Restore(t.Context(), to, t.TempDir(), string(b.config.MarkFile), maintain.VerifyOptions{}); err == nil {
		t.Error("restored a damaged backup")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := maintain.Backup(ctx, b.path(), filepath.Join(t.TempDir(), "x"), maintain.VerifyOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestEntry: entries are found by index and by serial number, each with a proof.
func TestEntry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	b.load(t, l, 258)
	chain := b.ca.Chain(t)
	sct, err := l.Submit(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	c, err := x509.ParseCertificate(chain.Precertificate)
	if err != nil {
		t.Fatal(err)
	}
	want, err := chain.LeafHash(sct)
	if err != nil {
		t.Fatal(err)
	}
	e, err := read.FindEntry(t.Context(), b.path(), c.SerialNumber)
	if err != nil || e.LeafHash != want || e.Timestamp != sct.Timestamp || !e.Precert {
		t.Errorf("by serial: %+v, %v", e, err)
	}
	if index, _ := sct.LeafIndex(); e.Index != index || e.Size != 259 {
		t.Errorf("index %d of %d, the SCT says %d", e.Index, e.Size, index)
	}
	if p := string(e.Proof()); !strings.HasPrefix(p, "c2sp.org/tlog-proof@v1\nindex 258\n") || !strings.Contains(p, "\n\nlog.example/2027\n259\n") {
		t.Errorf("proof: %s", p)
	}
	if e, err := read.EntryAt(t.Context(), b.path(), 7); err != nil || e.Index != 7 {
		t.Errorf("by index: %+v, %v", e, err)
	}
	for name, err := range map[string]error{
		"index":  second(read.EntryAt(t.Context(), b.path(), 259)),
		"serial": second(read.FindEntry(t.Context(), b.path(), big.NewInt(1))),
	} {
		if !errors.Is(err, read.ErrNoEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFrozenLogStaysFrozen: a log that was frozen takes nothing after it was restored,
// whether it was frozen before its first backup or after it.
func TestFrozenLogStaysFrozen(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{true, false} {
		b := newBench(t)
		b.write(t, 3)
		backup, restored, mark := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "log"), string(b.config.MarkFile)
		take := func() {
			t.Helper()
			if _, err := maintain.Backup(t.Context(), b.path(), backup, maintain.VerifyOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if !early {
			take()
		}
		report, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := maintain.Freeze(b.path(), report, time.Now()); err != nil {
			t.Fatal(err)
		}
		take()
		if _, err := maintain.Restore(t.Context(), backup, restored, mark, maintain.VerifyOptions{}); err != nil {
			t.Fatal(err)
		}
		b.config.Directory = setting.Path(restored)
		if _, err := embedded.Open(t.Context(), b.config, b.o); !errors.Is(err, embedded.ErrFrozen) {
			t.Errorf("frozen before the first backup: %v; the restored log: %v, want ErrFrozen", early, err)
		}
		if _, err := maintain.Verify(t.Context(), restored, maintain.VerifyOptions{MarkFile: mark}); err != nil {
			t.Error(err)
		}
	}
}
