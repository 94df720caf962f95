package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// faulty is the real rotating writer with faults in front of it.
type faulty struct {
	storage
	*faults
}

type faults struct {
	writes, syncs atomic.Int64
	write         atomic.Pointer[func(s storage, p []byte) (int, error)] // nil: the real one
	sync          atomic.Pointer[func(s storage) error]
}

func (f faulty) Write(p []byte) (int, error) {
	f.writes.Add(1)
	if w := f.write.Load(); w != nil {
		return (*w)(f.storage, p)
	}
	return f.storage.Write(p)
}

func (f faulty) Sync() error {
	f.syncs.Add(1)
	if s := f.sync.Load(); s != nil {
		return (*s)(f.storage)
	}
	return f.storage.Sync()
}

// openFaulty opens a stream whose storage takes its faults from the second result.
func openFaulty(t *testing.T, path string) (*stream, *faults) {
	t.Helper()
	r := Rotation{MaxSizeMB: 1}
	in := &faults{}
	d := &disk{path: path, open: func() storage { return faulty{rotating(path, r), in} }}
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openStream("trail", d, batchLimit(r), 0, nil, newEnvelope("mayfly", "run", fixed), m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	return s, in
}

func intent(serial string) *Event { return &Event{Type: Intent, Serial: serial} }

// blocked makes every flush wait; it reports each beginning, and release ends them all.
func blocked(in *faults) (began chan struct{}, release func()) {
	began, gate := make(chan struct{}, 100), make(chan struct{})
	hold := func(s storage) error {
		began <- struct{}{}
		<-gate
		return s.Sync()
	}
	in.sync.Store(&hold)
	return began, sync.OnceFunc(func() { close(gate) })
}

func (s *stream) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open.count
}

func TestRecordReturnsAfterTheFlushAndBatchesShareOne(t *testing.T) {
	t.Parallel()
	s, in := openFaulty(t, filepath.Join(t.TempDir(), "audit.jsonl"))
	began, release := blocked(in)
	defer release()
	const rest = 50
	var done atomic.Int64
	var wg sync.WaitGroup
	call := func(i int) {
		wg.Go(func() {
			if err := s.record(t.Context(), intent(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
			done.Add(1)
		})
	}
	call(0)
	<-began
	for i := range rest {
		call(i + 1)
	}
	eventually(t, "all wait in one batch", func() bool { return s.waiting() == rest })
	if n := done.Load(); n != 0 {
		t.Errorf("%d callers returned before the flush", n)
	}
	release()
	wg.Wait()
	if w, f := in.writes.Load(), in.syncs.Load(); w != 2 || f != 2 {
		t.Errorf("%d writes and %d flushes, want 2 and 2", w, f)
	}
}

// TestACallerThatLeavesDoesNotTakeItsRecordAlong: while the disk hangs, callers go when
// their context ends, who would write and the last one of the next batch too. Every
// record gets to the disk all the same, and however many come and go, two goroutines
// wait for it.
func TestACallerThatLeavesDoesNotTakeItsRecordAlong(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	s, in := openFaulty(t, path)
	began, release := blocked(in)
	defer release()
	const callers, rounds = 4, 3
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan error, callers)
		for i := range callers {
			go func() { got <- s.record(ctx, intent(fmt.Sprint(round*callers+i))) }()
			if round == 0 && i == 0 {
				<-began
			}
			eventually(t, "the record is in a batch", func() bool { return s.waiting() == round*callers+i })
		}
		cancel()
		for range callers {
			wantReason(t, <-got, fault.ClientGone)
		}
	}
	var stacks [1 << 20]byte
	if n := bytes.Count(stacks[:runtime.Stack(stacks[:], true)], []byte("(*stream).leave.func")); n > 2 { // one is where a goroutine was created
		t.Errorf("%d mentions of goroutines that wait in a caller's place", n)
	}
	release()
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if n := serials(readFile(t, path)); len(n) != callers*rounds {
		t.Errorf("%d records on the disk, want %d: %v", len(n), callers*rounds, n)
	}
}

// TestALoneCallerCostsOneFlush: without company, nothing is waited for.
func TestALoneCallerCostsOneFlush(t *testing.T) {
	t.Parallel()
	s, in := openFaulty(t, filepath.Join(t.TempDir(), "audit.jsonl"))
	for i := range 3 {
		if err := s.record(t.Context(), intent(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if n := in.syncs.Load(); n != int64(i+1) {
			t.Errorf("record %d: %d flushes in all", i, n)
		}
	}
}

func TestTheQueueIsBounded(t *testing.T) {
	t.Parallel()
	s, in := openFaulty(t, filepath.Join(t.TempDir(), "audit.jsonl"))
	began, release := blocked(in)
	defer release()
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.record(t.Context(), intent("first")) })
	<-began
	long := intent("long")
	long.SAN = string(make([]byte, maxLong)) // six bytes each when escaped
	overflowed := make(chan error, 1)
	for n := 0; len(overflowed) == 0; n++ {
		wg.Go(func() {
			if err := s.record(t.Context(), long); err != nil {
				select {
				case overflowed <- err:
				default:
				}
			}
		})
		eventually(t, "the record waits or is refused", func() bool { return s.waiting() > n || len(overflowed) > 0 })
	}
	wantReason(t, <-overflowed, fault.AuditUnavailable)
	s.mu.Lock()
	if n := len(s.open.lines); n > 1<<20-maxRecord {
		t.Errorf("%d bytes wait", n)
	}
	s.mu.Unlock()
	release()
	wg.Wait()
}

func TestAStorageFailureFailsTheBatchAndTheNextRecovers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		fail  func(in *faults)
		cause error
		torn  bool // part of a line stays behind
		after int  // times the failed record is in the file: it may have taken effect
	}{
		{"no space, nothing written", func(in *faults) {
			w := func(storage, []byte) (int, error) { return 0, syscall.ENOSPC }
			in.write.Store(&w)
		}, syscall.ENOSPC, false, 0},
		{"no space in the middle of a line", func(in *faults) {
			w := func(s storage, p []byte) (int, error) {
				n, err := s.Write(p[:20])
				return n, errors.Join(syscall.ENOSPC, err)
			}
			in.write.Store(&w)
		}, syscall.ENOSPC, true, 0},
		{"read-only", func(in *faults) {
			w := func(storage, []byte) (int, error) { return 0, syscall.EROFS }
			in.write.Store(&w)
		}, syscall.EROFS, false, 0},
		{"the flush fails", func(in *faults) {
			f := func(storage) error { return syscall.EIO }
			in.sync.Store(&f)
		}, syscall.EIO, false, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			s, in := openFaulty(t, path)
			for _, serial := range []string{"01", "02"} {
				if err := s.record(t.Context(), intent(serial)); err != nil {
					t.Fatal(err)
				}
			}
			tt.fail(in)
			err := s.record(t.Context(), intent("03"))
			wantReason(t, err, fault.AuditUnavailable)
			if !errors.Is(err, tt.cause) {
				t.Errorf("the cause is lost: %v", err)
			}
			wantReason(t, s.ready(t.Context()), fault.AuditUnavailable)

			in.write.Store(nil)
			in.sync.Store(nil)
			if err := s.ready(t.Context()); err != nil { // no traffic is needed
				t.Fatalf("not ready again: %v", err)
			}
			if err := s.record(t.Context(), intent("04")); err != nil {
				t.Fatal(err)
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			records := readFile(t, path)
			n := serials(records)
			if n["01"] != 1 || n["02"] != 1 || n["03"] != tt.after || n["04"] != 1 {
				t.Errorf("records: %v", n)
			}
			mark := records[len(records)-2]
			if mark.Type != recovered.name() || mark.Data["failed_records"] != 1.0 || (mark.Data["torn_line"] != nil) != tt.torn {
				t.Errorf("the mark before the first record after the failure: %+v", mark)
			}
		})
	}
}

func TestAFullDeviceIsAnErrorForEveryCaller(t *testing.T) {
	t.Parallel()
	r := Rotation{MaxSizeMB: 1}
	// The real device and the real library, past usable, which refuses devices.
	d := &disk{path: "/dev/full", open: func() storage { return rotating("/dev/full", r) }}
	if err := d.append([]byte("{}\n")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("append = %v, want ENOSPC", err)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

func TestAMissingFolderFailsUntilItIsBack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "audit.jsonl")
	s, _ := openFaulty(t, path)
	if err := s.record(t.Context(), intent("01")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	wantReason(t, s.record(t.Context(), intent("02")), fault.AuditUnavailable)
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if err := s.record(t.Context(), intent("03")); err != nil {
		t.Fatal(err)
	}
	if n := serials(readFile(t, path)); n["01"] != 1 || n["03"] != 1 {
		t.Errorf("records: %v", n)
	}
}

func TestAClosedStreamCommitsWhatWaits(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	s, in := openFaulty(t, path)
	began, release := blocked(in)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			if err := s.record(t.Context(), intent(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
		if i == 0 {
			<-began
		}
	}
	eventually(t, "two wait", func() bool { return s.waiting() == 2 })
	closed := make(chan error, 1)
	go func() { closed <- s.close() }()
	release()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n := serials(readFile(t, path)); len(n) != 3 {
		t.Errorf("records: %v", n)
	}
}

func TestPaceLeavesThePauseAfterACommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := openFaulty(t, filepath.Join(t.TempDir(), "audit.jsonl"))
		s.pace = time.Hour
		began := time.Now()
		for i, want := range []time.Duration{0, time.Hour, 2 * time.Hour} {
			if err := s.record(t.Context(), intent(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took != want {
				t.Errorf("record %d is durable after %v, want %v", i, took, want)
			}
		}
		got := make(chan error, 1)
		go func() { got <- s.record(t.Context(), intent("last")) }()
		synctest.Wait()
		if err := s.close(); err != nil { // closing doesn't wait for the pause
			t.Fatal(err)
		}
		if err := <-got; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 2*time.Hour {
			t.Errorf("closed after %v, want %v", took, 2*time.Hour)
		}
	})
}

// TestAPartThatCantBeReadIsNoEnd: the chain doesn't go on from a line before it.
func TestAPartThatCantBeReadIsNoEnd(t *testing.T) {
	t.Parallel()
	for what, put := range map[string]func(string, uint32) error{"a folder": syscall.Mkdir, "a pipe": syscall.Mkfifo} {
		r := newTrail(t)
		r.write(t, r.part(1), r.lines("1"))
		if err := put(r.part(2), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := lastOfParts(r.path); err == nil || !strings.Contains(err.Error(), "isn't a plain file") {
			t.Errorf("%s in place of a part: %v", what, err)
		}
	}
}

// TestAFailingDiskLosesNoRecord: whatever a disk does, who gives up, and whenever the
// stream is closed: what was said to be durable is there once, in a chain that holds.
func TestAFailingDiskLosesNoRecord(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	s, in := openFaulty(t, path)
	write := func(to storage, p []byte) (int, error) {
		if rand.IntN(8) > 0 {
			return to.Write(p)
		}
		n, _ := to.Write(p[:rand.IntN(len(p))])
		return n, syscall.ENOSPC
	}
	flush := func(of storage) error {
		if rand.IntN(8) > 0 {
			return of.Sync()
		}
		return syscall.EIO
	}
	in.write.Store(&write)
	in.sync.Store(&flush)
	var durable sync.Map
	var kept, failed atomic.Int64
	enough, once := make(chan struct{}), sync.Once{}
	var callers sync.WaitGroup
	for c := range 20 {
		callers.Go(func() {
			for i := 0; ; i++ {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rand.IntN(20))*time.Millisecond)
				err := s.record(ctx, intent(fmt.Sprintf("%d-%d", c, i)))
				switch cancel(); {
				case err == nil:
					durable.Store(fmt.Sprintf("%d-%d", c, i), 0)
					kept.Add(1)
				case strings.Contains(fmt.Sprint(errors.Unwrap(err)), "closed"):
					return
				default:
					failed.Add(1)
				}
				if kept.Load() >= 200 && failed.Load() >= 200 {
					once.Do(func() { close(enough) })
				}
			}
		})
	}
	<-enough
	_ = s.close() // what it commits may fail as all else
	callers.Wait()
	found := map[string]int{}
	for e, err := range Follow(path, time.Time{}, Intent).Unread() {
		if err != nil {
			t.Fatal(err)
		}
		found[e.Serial]++
	}
	said := 0
	durable.Range(func(serial, _ any) bool {
		if said++; found[serial.(string)] != 1 {
			t.Errorf("the record %s is there %d times", serial, found[serial.(string)])
		}
		return true
	})
	if said < 200 {
		t.Errorf("%d records were durable, of %d", said, kept.Load())
	}
	if _, err := Verify(TrailFile{"trail", path}, nil, nil, func(err error) { t.Error(err) }); err != nil {
		t.Error(err)
	}
}
