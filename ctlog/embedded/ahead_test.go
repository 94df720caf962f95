package embedded_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// crashed is what a process leaves that dies with entries in its write-ahead file: the
// first in the tree, and five behind it, of one flush each.
type crashed struct {
	*bench
	chains []ctlog.Chain
	scts   []ctlog.SCT
	frames []int // where each of the five begins in the file
}

const aheadPage = 4096 // frames begin with a page

func crash(t *testing.T) *crashed {
	t.Helper()
	b := newBench(t)
	c := &crashed{bench: b}
	l := b.openNow(t)
	submit := func() {
		t.Helper()
		chain := b.ca.Chain(t)
		sct, err := l.Submit(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		c.chains, c.scts = append(c.chains, chain), append(c.scts, sct)
	}
	submit()
	b.published(t, 1)
	release := l.HoldTree()
	for range 5 {
		submit()
	}
	dir := t.TempDir()
	copyTree(t, b.path(), filepath.Join(dir, "log"))
	copyTree(t, string(b.config.MarkFile), filepath.Join(dir, "mark"))
	release()
	closeLog(t, l)
	c.config.Directory, c.config.MarkFile = setting.Path(filepath.Join(dir, "log")), setting.Path(filepath.Join(dir, "mark"))
	raw := readFile(t, c.path(".state", "ahead-0"))
	for at := aheadPage; at < len(raw); at += aheadPage {
		if bytes.HasPrefix(raw[at:], []byte("entries\n")) && binary.BigEndian.Uint64(raw[at+8:]) > 0 {
			c.frames = append(c.frames, at)
		}
	}
	if len(c.frames) != 5 {
		t.Fatalf("%d frames are in the file, want 5", len(c.frames))
	}
	return c
}

// edit changes a file.
func edit(t *testing.T, path string, change func(raw []byte) []byte) {
	t.Helper()
	if err := os.WriteFile(path, change(readFile(t, path)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wipe overwrites bytes.
func wipe(from, to int, with byte) func([]byte) []byte {
	return func(raw []byte) []byte {
		copy(raw[from:to], bytes.Repeat([]byte{with}, to-from))
		return raw
	}
}

// markBefore tears the newest of the mark's two slots.
func (c *crashed) markBefore(t *testing.T) {
	t.Helper()
	const second = logdir.MaxFlush + 4096
	edit(t, string(c.config.MarkFile), func(raw []byte) []byte {
		at := 0
		if size := func(at int) string { return strings.Split(string(raw[at:]), "\n")[2] }; size(second) > size(0) {
			at = second
		}
		return wipe(at+100, at+200, 0)(raw)
	})
}

// TestOpenAfterACrash: what a log does with a write-ahead file and a mark as a crash, a
// disk, or somebody who copies files may leave them. It opens only with every entry for
// which an SCT may have left, and says otherwise what is wrong.
func TestOpenAfterACrash(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		harm func(t *testing.T, c *crashed)
		want string // of the refusal; empty: it opens
		size uint64
	}{
		"as it was":                          {func(*testing.T, *crashed) {}, "", 6},
		"the last frame is zeros":            {func(t *testing.T, c *crashed) { c.ahead(t, wipe(c.frames[4], c.frames[4]+aheadPage, 0)) }, "", 6},
		"the last frame lacks its beginning": {func(t *testing.T, c *crashed) { c.ahead(t, wipe(c.frames[4], c.frames[4]+512, 0)) }, "", 6},
		"the last frame lacks its end":       {func(t *testing.T, c *crashed) { c.ahead(t, wipe(c.frames[4]+512, c.frames[4]+1024, 0)) }, "", 6},
		"the file ends in the last frame":    {func(t *testing.T, c *crashed) { c.ahead(t, func(raw []byte) []byte { return raw[:c.frames[4]+600] }) }, "", 6},
		"the file ends before the last frame": {func(t *testing.T, c *crashed) {
			c.ahead(t, func(raw []byte) []byte { return raw[:c.frames[4]] })
		}, "", 6},
		"noise behind the last frame": {func(t *testing.T, c *crashed) {
			c.ahead(t, wipe(c.frames[4]+2*aheadPage, c.frames[4]+4*aheadPage, 0x5a))
		}, "", 6},
		"the mark was torn": {func(t *testing.T, c *crashed) { c.markBefore(t) }, "", 6},
		"neither the mark nor the last frame was written": {func(t *testing.T, c *crashed) {
			c.markBefore(t)
			c.ahead(t, wipe(c.frames[4]+512, c.frames[4]+1024, 0))
		}, "", 5},
		"the tree got there, and the file is as before": {func(t *testing.T, c *crashed) {
			c.write(t, 0)
			copyTree(t, c.path(".state", "treeState"), c.path("grown"))
		}, "", 6},
		"the mark was torn, a start was cut short, and the last frame hadn't got to the disk": {func(t *testing.T, c *crashed) {
			c.markBefore(t)
			obstacle := c.path("tile", "data", "000.p", "6")
			makeDir(t, obstacle)
			if l, err := embedded.Open(t.Context(), c.config, c.o); err == nil {
				closeLog(t, l)
				t.Error("opened over an obstacle")
			}
			remove(t, obstacle)
			c.ahead(t, wipe(c.frames[4], c.frames[4]+aheadPage, 0))
		}, "", 6},
		"two frames are gone": {func(t *testing.T, c *crashed) { c.ahead(t, wipe(c.frames[3], c.frames[4]+aheadPage, 0)) }, "an older copy", 0},
		"a frame in the middle is damaged": {func(t *testing.T, c *crashed) {
			c.ahead(t, func(raw []byte) []byte { raw[c.frames[2]+700] ^= 1; return raw })
		}, "can't be read, and others follow", 0},
		"a frame in the middle is zeros": {func(t *testing.T, c *crashed) { c.ahead(t, wipe(c.frames[1], c.frames[1]+aheadPage, 0)) }, "others follow", 0},
		"two frames are swapped": {func(t *testing.T, c *crashed) {
			c.ahead(t, func(raw []byte) []byte {
				one, two := raw[c.frames[1]:c.frames[1]+aheadPage], raw[c.frames[2]:c.frames[2]+aheadPage]
				return bytes.Join([][]byte{raw[:c.frames[1]], two, one, raw[c.frames[2]+aheadPage:]}, nil)
			})
		}, "", 6}, // each says which entries it has
		"the first page is damaged": {func(t *testing.T, c *crashed) { c.ahead(t, wipe(30, 31, 0x5a)) }, "an older copy", 0},
		"the file is gone":          {func(t *testing.T, c *crashed) { remove(t, c.path(".state", "ahead-0")) }, "an older copy", 0},
		"the file of another log": {func(t *testing.T, c *crashed) {
			copyTree(t, crash(t).path(".state", "ahead-0"), c.path(".state", "ahead-0"))
		}, "forked", 0},
		"another log's entries in the mark": {func(t *testing.T, c *crashed) { c.stealMark(t) }, "another log", 0},
		"the tree is an older copy": {func(t *testing.T, c *crashed) {
			state := readFile(t, c.path(".state", "treeState"))
			c.write(t, 3) // the file begins anew behind them
			if err := os.WriteFile(c.path(".state", "treeState"), state, 0o600); err != nil {
				t.Fatal(err)
			}
			remove(t, c.path("checkpoint"))
		}, "an older copy", 0},
		"the tree went another way": {func(t *testing.T, c *crashed) {
			other := *c.bench
			other.config.Directory = setting.Path(filepath.Join(t.TempDir(), "log"))
			other.config.MarkFile = setting.Path(filepath.Join(t.TempDir(), "mark"))
			other.write(t, 3)
			ahead := readFile(t, c.path(".state", "ahead-0"))
			c.swap(t, other.path())
			if err := os.WriteFile(c.path(".state", "ahead-0"), ahead, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "forked", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := crash(t)
			tt.harm(t, c)
			l, err := embedded.Open(t.Context(), c.config, c.o)
			if err != nil || tt.want != "" {
				if err == nil {
					closeLog(t, l)
				}
				if tt.want == "" || err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("Open: %v, want %q", err, tt.want)
				}
				return
			}
			defer closeLog(t, l)
			url, client := serve(t, l)
			reader := ctlogtest.NewReader(t, l.Description(), url, client)
			head := reader.Await(t, tt.size)
			for i, sct := range c.scts[:tt.size] {
				reader.Holds(t, sct, c.chains[i], head)
			}
			sct, err := l.Submit(t.Context(), c.ca.Chain(t))
			if index, _ := sct.LeafIndex(); err != nil || index != tt.size {
				t.Errorf("the next entry is %d, want %d: %v", index, tt.size, err)
			}
		})
	}
}

func (c *crashed) ahead(t *testing.T, change func([]byte) []byte) {
	t.Helper()
	edit(t, c.path(".state", "ahead-0"), change)
}

// TestOneOfTwoWritesThatFails: the disk of the mark, or that of the log, fails for a
// while, and the entries of that time are tried again until both have them. However
// often that was, the next start finds each frame once and every entry that was promised.
func TestOneOfTwoWritesThatFails(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]func(l *embedded.Log, fails *atomic.Bool){
		"mark": func(l *embedded.Log, fails *atomic.Bool) {
			l.Around(nil, func(to logdir.High, advance func(logdir.High) error) error {
				if fails.Load() {
					return syscall.ENOSPC
				}
				return advance(to)
			})
		},
		"file": func(l *embedded.Log, fails *atomic.Bool) {
			l.Around(func(f wal.Frame, write func(wal.Frame) error) error {
				if fails.Load() {
					return syscall.EIO
				}
				return write(f)
			}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			l := b.open(t)
			release := l.HoldTree()
			defer release()
			var fails atomic.Bool
			broken(l, &fails)
			submit := func() error {
				_, err := l.Submit(t.Context(), b.ca.Chain(t))
				return err
			}
			if err := submit(); err != nil {
				t.Fatal(err)
			}
			fails.Store(true)
			for range 5 {
				if err := submit(); err == nil {
					t.Fatal("an SCT although a write failed")
				}
			}
			fails.Store(false)
			if err := submit(); err != nil {
				t.Fatal(err)
			}
			// What a process leaves that dies now. One of the failed attempts has an index,
			// the others were never taken.
			died, dir := *b, t.TempDir()
			died.config.Directory, died.config.MarkFile = setting.Path(filepath.Join(dir, "log")), setting.Path(filepath.Join(dir, "mark"))
			copyTree(t, b.path(), string(died.config.Directory))
			copyTree(t, string(b.config.MarkFile), string(died.config.MarkFile))
			died.open(t)
			died.published(t, 3)
		})
	}
}

// TestRecoveryMayBeCutShort: a recovery that died at any of its writes is done again: the
// files that it had written by then are there beside the old ones.
func TestRecoveryMayBeCutShort(t *testing.T) {
	t.Parallel()
	c := crash(t)
	grown := *c.bench
	grown.config.Directory, grown.config.MarkFile = setting.Path(filepath.Join(t.TempDir(), "log")), setting.Path(filepath.Join(t.TempDir(), "mark"))
	copyTree(t, c.path(), grown.path())
	copyTree(t, string(c.config.MarkFile), string(grown.config.MarkFile))
	grown.write(t, 0)
	written := []string{"tile/data/000.p/6", "tile/0/000.p/6", ".state/treeState", "checkpoint", ".state/ahead-0"}
	for n := range len(written) + 1 {
		cut := *c.bench
		cut.config.Directory, cut.config.MarkFile = setting.Path(filepath.Join(t.TempDir(), "log")), setting.Path(filepath.Join(t.TempDir(), "mark"))
		copyTree(t, c.path(), cut.path())
		copyTree(t, string(c.config.MarkFile), string(cut.config.MarkFile))
		for _, name := range written[:n] {
			copyTree(t, grown.path(name), cut.path(name))
		}
		cut.write(t, 1)
		if r, err := maintain.Verify(t.Context(), cut.path(), maintain.VerifyOptions{MarkFile: string(cut.config.MarkFile)}); err != nil || r.Size != 7 {
			t.Errorf("with %v: %d entries, %v", written[:n], r.Size, err)
		}
	}
}

// TestRecoveryThatFails: where the mark alone has the last entries, it keeps them until
// the tree has them, however many starts fail before that.
func TestRecoveryThatFails(t *testing.T) {
	t.Parallel()
	for failures := 1; failures <= 2; failures++ { // so that either of the mark's slots is written last
		c := crash(t)
		c.ahead(t, wipe(c.frames[4], c.frames[4]+aheadPage, 0))
		obstacle := c.path("tile", "0", "000.p", "6")
		makeDir(t, obstacle)
		for range failures {
			if l, err := embedded.Open(t.Context(), c.config, c.o); err == nil {
				closeLog(t, l)
				t.Fatal("it opens although its tree can't grow")
			}
		}
		remove(t, obstacle)
		c.open(t)
		c.published(t, 6)
	}
}

// TestChecksCountWhatTheTreeDoesNotHave: a check of a log, while it runs and after it
// crashed, and mayfly check, see the entries in the write-ahead file; no log is frozen
// over them, and a backup has what is published.
func TestChecksCountWhatTheTreeDoesNotHave(t *testing.T) {
	t.Parallel()
	c := crash(t)
	marked := maintain.VerifyOptions{MarkFile: string(c.config.MarkFile)}
	report, err := maintain.Verify(t.Context(), c.path(), marked)
	if err != nil || report.Size != 1 || report.Unpublished != 5 || report.MarkSize != 6 {
		t.Errorf("Verify: %+v, %v", report, err)
	}
	if err := maintain.Freeze(c.path(), report, time.Now()); err == nil {
		t.Error("frozen with entries in the write-ahead file")
	}
	if _, inUse, err := embedded.Inspect(t.Context(), c.config, c.key.Public()); err != nil || inUse {
		t.Errorf("Inspect: in use %t, %v", inUse, err)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	if r, err := maintain.Backup(t.Context(), c.path(), backup, maintain.VerifyOptions{}); err != nil || r.Size != 1 {
		t.Errorf("Backup: %+v, %v", r, err)
	}
	if logdir.Dir(backup).Exists(".state") {
		t.Error("the backup has a state")
	}
	edit(t, c.path(".state", "ahead-0"), wipe(c.frames[1], c.frames[4]+aheadPage, 0))
	if _, err := maintain.Verify(t.Context(), c.path(), marked); err == nil {
		t.Error("Verify finds nothing missing")
	}
	if _, _, err := embedded.Inspect(t.Context(), c.config, c.key.Public()); err == nil {
		t.Error("Inspect finds nothing missing")
	}
}

// TestVerifyBesideAWriter: a check of a log that is being written finds nothing, whatever
// it meets half-done: the mark before the file, the file before the tree, a file begun anew.
func TestVerifyBesideAWriter(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	done := make(chan struct{})
	go func() { defer close(done); b.load(t, l, 3000) }()
	for checks := 0; ; checks++ {
		if _, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)}); err != nil {
			t.Errorf("check %d: %v", checks, err)
		}
		select {
		case <-done:
			t.Logf("%d checks", checks)
			return
		default:
		}
	}
}

// TestLogOfAnEarlierVersion: a log that an earlier version closed opens, and goes on.
func TestLogOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write(t, 3)
	for _, name := range []string{"ahead-0", "ahead-1"} {
		remove(t, b.path(".state", name))
	}
	for _, name := range []string{"treeState.lock", "gcState", "gcState.lock", "publish.lock", "version"} { // which are Tessera's
		if err := os.WriteFile(b.path(".state", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(string(readFile(t, string(b.config.MarkFile))), "\n")
	slot := markOfVersion1(lines[1], lines[2], lines[3])
	if err := os.WriteFile(string(b.config.MarkFile), append(slot, slot...), 0o600); err != nil {
		t.Fatal(err)
	}
	b.write(t, 3)
	if r, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)}); err != nil || r.Size != 6 || r.MarkSize != 6 {
		t.Errorf("Verify: %+v, %v", r, err)
	}
}

// TestFullTilesHaveNoPartialOnes: once a checkpoint covers a full tile the partial ones
// before it are gone, and readers of an older tree still get their part of it.
func TestFullTilesHaveNoPartialOnes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	b.load(t, l, 100)
	old := b.published(t, 100)
	b.load(t, l, 500)
	b.published(t, 600)
	b.until(t, "the partial tiles are gone", func() bool {
		for _, name := range []string{"tile/data/000.p", "tile/data/001.p", "tile/0/000.p", "tile/0/001.p"} {
			if logdir.Dir(b.config.Directory).Exists(filepath.FromSlash(name)) {
				return false
			}
		}
		return true
	})
	url, c := serve(t, l)
	reader := ctlogtest.NewReader(t, l.Description(), url, c)
	now := reader.Await(t, 600) // readers have a checkpoint once it is on disk for good
	for _, path := range []string{"/tile/data/000.p/100", "/tile/0/000.p/100", "/tile/data/002.p/88"} {
		answer, err := c.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		if answer.Body.Close(); answer.StatusCode != 200 {
			t.Errorf("%s: %s", path, answer.Status)
		}
	}
	reader.Consistent(t, checkpoint.Tree{Size: old.Size, Root: old.Root}, now)
}

// markOfVersion1 is a slot of a mark as earlier versions wrote it.
func markOfVersion1(id, size, root string) []byte {
	text := "mayfly log mark v1\n" + id + "\n" + size + "\n" + root + "\n"
	text += fmt.Sprintf("%x\n", sha256.Sum256([]byte(text)))
	return append([]byte(text), bytes.Repeat([]byte("\n"), 512-len(text))...)
}
