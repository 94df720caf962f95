package embedded_test

// Each test here is an incident of another log, by name: what happened there must
// not happen to this one. Those that need somebody else's log are in ctlog/external.

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// A full disk corrupted the database of Sectigo's Mammoth. Here a real file system
// fills: no SCT is released for what isn't on it, the log goes on by itself when
// there is room, and is whole.
func TestFullDiskReleasesNothingAndRecovers(t *testing.T) {
	b := newBench(t)
	b.small(t)
	l := b.open(t)
	filler := filepath.Join(filepath.Dir(string(b.config.Directory)), "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	logged := uint64(0)
	for {
		_, err := l.Submit(t.Context(), b.ca.Chain(t))
		if err != nil {
			var f *fault.Error
			if !errors.As(err, &f) || f.Reason != fault.LogUnavailable {
				t.Fatalf("a full disk: %v", err)
			}
			break
		}
		if logged++; logged > 2000 {
			t.Fatal("the disk doesn't fill")
		}
	}
	before := b.key.Calls.Load()
	for range 3 {
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err == nil {
			break // a smaller file may still fit
		}
		if b.key.Calls.Load()-before > 1 { // a checkpoint may be signed meanwhile
			t.Error("a signature for an entry that isn't durable")
		}
	}
	remove(t, filler)
	if err := embeddedReady(t, l); err != nil {
		t.Fatalf("with room: %v", err)
	}
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Errorf("with room: %v", err)
	}
	closeLog(t, l)
	report, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)})
	if err != nil || report.Size < logged+1 {
		t.Errorf("Verify: %+v, %v; %d SCTs were released", report, err, logged+1)
	}
}

// One flipped bit ended DigiCert's Yeti 2022. Here a bit flips in the last, partial
// data tile and is copied on as the tile grows. It is found before the tile is final:
// no checkpoint covers it, and the log takes nothing more.
func TestFlippedBitIsFoundBeforeItsTileIsFull(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	b.load(t, l, 255)
	b.published(t, 255)
	flip(t, b.path("tile", "data", "000.p", "255"))
	b.untilRefused(t, l)
	if err := l.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "entry") {
		t.Errorf("Ready: %v, want it to name the entry", err)
	}
	if err := l.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "entry") {
		t.Errorf("Close: %v, want it to name the entry", err)
	}
	_, head, err := logdir.Dir(b.config.Directory).Head()
	if err != nil || head.Size > 255 {
		t.Errorf("a checkpoint of %d entries was signed over the damaged one (%v)", head.Size, err)
	}
}

// untilRefused submits until the log takes nothing more: it has noticed that its tree
// can't grow. It gives how many entries it took before, all of them durable.
func (b *bench) untilRefused(t *testing.T, l *embedded.Log) (taken uint64) {
	t.Helper()
	b.until(t, "nothing is taken any more", func() bool {
		_, err := l.Submit(t.Context(), b.ca.Chain(t))
		if err == nil {
			taken++
		} else if reason := fault.From(err).Reason; reason != fault.LogUnavailable {
			t.Fatalf("refused with %v: %v", reason, err)
		}
		return err != nil
	})
	return taken
}

// Cloudflare's Raio went on in a bad state after a transient error of its storage.
// Here an integration fails half-written, and the next ones too, until the storage is
// well: nothing is taken meanwhile, the state is read again, and the log that goes on is
// whole. Root writes anywhere, so the obstacle is one that stops root too: a directory
// where a file belongs. The conformance test of this name lets each single call of
// the kernel fail once, on a disk that answers EIO.
func TestTransientStorageErrorReleasesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.open(t)
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Fatal(err)
	}
	b.published(t, 1)
	var obstacles []string
	for size := 2; size < 256; size++ {
		obstacles = append(obstacles, b.path("tile", "0", "000.p", strconv.Itoa(size)))
		makeDir(t, obstacles[len(obstacles)-1])
	}
	taken := 1 + b.untilRefused(t, l)
	before := b.key.Calls.Load()
	for range 3 {
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err == nil {
			t.Fatal("an SCT while the tree can't grow")
		}
	}
	if err := l.Ready(t.Context()); err == nil {
		t.Error("ready while the tree can't grow")
	}
	if signed := b.key.Calls.Load() - before; signed > 0 {
		t.Errorf("%d signatures for entries that aren't durable", signed)
	}
	for _, obstacle := range obstacles {
		remove(t, obstacle)
	}
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Errorf("with the obstacles gone: %v", err)
	}
	b.published(t, taken+1)
	if report, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)}); err != nil || report.Size != taken+1 {
		t.Errorf("Verify: %+v, %v, want %d entries", report, err, taken+1)
	}
}

// A migration lost rows of Let's Encrypt's Oak 2022. Here a log moves by way of a
// backup that loses something on the way: whatever it is, no log comes of it, and the
// backup that is taken again is whole.
func TestBackupThatLostSomethingMakesNoLog(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	b.load(t, l, 600) // two full tiles and a partial one
	closeLog(t, l)
	for name, lost := range map[string]string{
		"256 entries in the middle": "tile/data/001",
		"the last entries":          "tile/data/002.p/88",
		"hashes in the middle":      "tile/0/001",
		"the last hashes":           "tile/0/002.p/88",
		"the upper hashes":          "tile/1/000.p/2",
		"an issuer":                 "issuer/" + first(t, b.path("issuer")),
		"the checkpoint":            "checkpoint",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			backup, moved, mark := filepath.Join(dir, "backup"), filepath.Join(dir, "moved"), filepath.Join(dir, "mark")
			if err := os.WriteFile(mark, readFile(t, string(b.config.MarkFile)), 0o600); err != nil {
				t.Fatal(err)
			}
			take := func() error {
				_, err := maintain.Backup(t.Context(), b.path(), backup, maintain.VerifyOptions{})
				return err
			}
			if err := take(); err != nil {
				t.Fatal(err)
			}
			remove(t, filepath.Join(backup, filepath.FromSlash(lost)))
			if _, err := maintain.Verify(t.Context(), backup, maintain.VerifyOptions{Backup: true}); err == nil {
				t.Error("Verify finds nothing missing")
			}
			if _, err := maintain.Restore(t.Context(), backup, moved, mark, maintain.VerifyOptions{}); err == nil {
				t.Error("restored without it")
			}
			there := *b
			there.config.Directory, there.config.MarkFile = setting.Path(moved), setting.Path(mark)
			if l, err := embedded.Open(t.Context(), there.config, there.o); err == nil {
				closeLog(t, l)
				t.Error("what was restored opens as a log")
			}
			remove(t, moved)
			if err := take(); err != nil {
				t.Fatalf("the backup, taken again: %v", err)
			}
			if r, err := maintain.Restore(t.Context(), backup, moved, mark, maintain.VerifyOptions{}); err != nil || r.Size != 600 {
				t.Fatalf("Restore: %+v, %v", r, err)
			}
			there.write(t, 1)
		})
	}
}

// A flood of submissions without a limit on their rate took a log of DigiCert's down.
// Here outsiders flood the submission API with honest, different certificates: most
// are told to come later, the CA's own submissions go on, and every SCT that anybody
// got is kept well within the merge delay.
func TestFloodFromOutsideLeavesTheCAItsPlace(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.config.Submission = true
	now := time.Now() // stands still, so that the rate lets exactly its burst through
	b.o.Now = func() time.Time { return now }
	l := b.openNow(t)
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // outsiders come from everywhere
		r.RemoteAddr = fmt.Sprintf("198.51.100.%d:1", asked.Add(1)%200)
		http.StripPrefix(l.Prefix(), l.Handler()).ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	url, c := s.URL+l.Prefix(), s.Client()
	const outsiders, each, burst, ours = 16, 40, 200, 20
	var taken, refused atomic.Int64
	var wg sync.WaitGroup
	for range outsiders {
		wg.Go(func() {
			for range each {
				switch status, text := post(t, c, url+"/ct/v1/add-chain", chainBody(t, b.ca.Certificate(t)...)); status {
				case http.StatusOK:
					taken.Add(1)
				case http.StatusTooManyRequests:
					refused.Add(1)
				default:
					t.Errorf("%d: %s", status, text)
				}
			}
		})
	}
	var scts []ctlog.SCT
	var chains []ctlog.Chain
	slowest := time.Duration(0)
	for range ours {
		chain, begin := b.ca.Chain(t), time.Now()
		sct, err := l.Submit(t.Context(), chain)
		if err != nil {
			t.Errorf("the CA's own submission: %v", err)
			continue
		}
		slowest = max(slowest, time.Since(begin))
		scts, chains = append(scts, sct), append(chains, chain)
	}
	wg.Wait()
	begin := time.Now()
	reader := ctlogtest.NewReader(t, l.Description(), url, c)
	head := reader.Await(t, uint64(taken.Load())+ours)
	published := time.Since(begin)
	for i, sct := range scts {
		reader.Holds(t, sct, chains[i], head)
	}
	closeLog(t, l)
	report, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)})
	if err != nil || report.Size != uint64(taken.Load())+ours {
		t.Errorf("Verify: %+v, %v; want %d entries", report, err, taken.Load()+ours)
	}
	if taken.Load() != burst || refused.Load() != outsiders*each-burst {
		t.Errorf("of %d outsiders %d were taken and %d refused, want %d taken", outsiders*each, taken.Load(), refused.Load(), burst)
	}
	if bound := ctlog.DefaultTimeout; slowest > bound || published > embedded.MMD/2 {
		t.Errorf("the CA waited %v (bound %v), everything was published after %v (bound %v)", slowest, bound, published, embedded.MMD/2)
	}
	t.Logf("of outsiders %d taken, %d refused; the CA waited %v at most; published after %v", taken.Load(), refused.Load(), slowest, published)
}
