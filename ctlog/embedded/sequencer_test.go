package embedded_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/prometheus/client_golang/prometheus"
)

// stall makes the log's next flush wait as a disk does that hangs. It says when that
// has begun, and lets it go on. To be called before the first entry after a first one.
func stall(l *embedded.Log) (hangs <-chan struct{}, resume func()) {
	begun, free := make(chan struct{}), make(chan struct{})
	first := sync.OnceFunc(func() { close(begun) })
	l.Around(func(f wal.Frame, write func(wal.Frame) error) error {
		if f.First > 0 {
			first()
			<-free
		}
		return write(f)
	}, nil)
	return begun, sync.OnceFunc(func() { close(free) })
}

// TestCallerLeavesADiskThatHangs: whoever waits for a disk that hangs goes when its context
// ends. What was handed over gets into the log
// late, without an SCT, and harms nobody.
func TestCallerLeavesADiskThatHangs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	_, resume := stall(l)
	defer resume()
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := l.Submit(ctx, b.ca.Chain(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the disk hangs: %v, want the context's error", err)
	}
	resume()
	sct, err := l.Submit(t.Context(), b.ca.Chain(t))
	if err != nil {
		t.Fatalf("the disk goes on: %v", err)
	}
	if index, _ := sct.LeafIndex(); index != 2 {
		t.Errorf("the next entry is %d, want 2: after the one that nobody waited for", index)
	}
	closeLog(t, l)
	if r, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)}); err != nil || r.Size != 3 {
		t.Errorf("Verify: %+v, %v", r, err)
	}
}

// TestFullQueueRefusesAtOnce: a disk that hangs fills the queue and no more; who comes after that is
// told to come later, at once. When the disk goes on, everyone in the queue gets an SCT.
func TestFullQueueRefusesAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const queue = 8
	b.o.SetMaxQueue(queue)
	l := b.openNow(t)
	_, resume := stall(l)
	defer resume()
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Fatal(err)
	}
	// The batch that hangs holds at most 512, the queue 8.
	const callers, most = 600, 512 + queue
	outcomes := make(chan error, callers)
	for range callers {
		chain, err := quickChain(b.ca.Root.Raw)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := l.Submit(t.Context(), chain)
			outcomes <- err
		}()
	}
	refused := 0
	for range callers - most {
		if err := <-outcomes; fault.From(err).Reason != fault.Overloaded || fault.From(err).RetryAfter <= 0 {
			t.Fatalf("beyond the queue: %v, want OVERLOADED with Retry-After", err)
		}
		refused++
	}
	resume()
	taken := 0
	for range callers - refused {
		switch err := <-outcomes; {
		case err == nil:
			taken++
		case fault.From(err).Reason != fault.Overloaded:
			t.Errorf("with the disk well: %v", err)
		}
	}
	if taken < queue {
		t.Errorf("%d callers got an SCT, want those of the queue at least: %d", taken, queue)
	}
	closeLog(t, l)
	if r, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{}); err != nil || r.Size != uint64(taken)+1 {
		t.Errorf("Verify: %+v, %v; %d SCTs were given", r, err, taken+1)
	}
}

// TestCallersTogetherShareABatch: what arrives while the disk is busy becomes durable together.
func TestCallersTogetherShareABatch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	registry := prometheus.NewRegistry()
	b.o.Metrics = registry
	l := b.open(t)
	_, resume := stall(l)
	defer resume()
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Fatal(err)
	}
	const callers = 200
	var arrived, answered sync.WaitGroup
	arrived.Add(callers)
	for range callers {
		chain := b.ca.Chain(t)
		answered.Go(func() {
			arrived.Done()
			if _, err := l.Submit(t.Context(), chain); err != nil {
				t.Error(err)
			}
		})
	}
	arrived.Wait()
	resume()
	answered.Wait()
	if n := batches(t, registry); n > callers/10 {
		t.Errorf("%d callers at once took %v batches", callers, n)
	}
}

// TestNoSCTBeforeItsFlush: an SCT is signed beside the flush of its entry, and leaves
// after it and after the mark's, whichever takes longer; not at all where one fails.
func TestNoSCTBeforeItsFlush(t *testing.T) {
	t.Parallel()
	for _, slow := range []string{"file", "mark"} {
		b := newBench(t)
		l := b.open(t)
		begun, free := make(chan struct{}, 9), make(chan error)
		hold := func(name string) error {
			if name != slow {
				return nil
			}
			begun <- struct{}{}
			return <-free
		}
		l.Around(func(f wal.Frame, write func(wal.Frame) error) error {
			return errors.Join(hold("file"), write(f))
		}, func(to logdir.High, advance func(logdir.High) error) error {
			return errors.Join(hold("mark"), advance(to))
		})
		for _, outcome := range []error{nil, errors.New("input/output error"), nil} {
			before, done := b.key.Calls.Load(), make(chan error, 1)
			go func() {
				_, err := l.Submit(t.Context(), b.ca.Chain(t))
				done <- err
			}()
			<-begun
			if outcome == nil {
				b.until(t, "the SCT is signed beside the flush", func() bool { return b.key.Calls.Load() > before })
			}
			select {
			case err := <-done:
				t.Fatalf("the %s hangs, and Submit answered %v", slow, err)
			default:
			}
			free <- outcome
			if outcome == nil && len(done) == 0 { // after an error the same entries are written first of all
				select {
				case err := <-done:
					if err != nil {
						t.Errorf("the %s holds: %v", slow, err)
					}
				case <-begun:
					free <- nil
					if err := <-done; err != nil {
						t.Errorf("the %s holds again: %v", slow, err)
					}
				}
				continue
			}
			if err := <-done; (err == nil) != (outcome == nil) {
				t.Errorf("the %s ends with %v, Submit with %v", slow, outcome, err)
			}
		}
		if size := b.published(t, 3).Size; size != 3 {
			t.Errorf("%d entries, want those of the SCTs and the one that failed and was stored at last", size)
		}
	}
}

// TestTreeThatDoesNotFollow: entries that wait for the tree are bounded, and so is how
// long: then the log isn't ready, and callers are told to come later. When the tree
// grows again every promise is kept.
func TestTreeThatDoesNotFollow(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const queue = 64
	b.o.SetMaxQueue(queue)
	registry := prometheus.NewRegistry()
	b.o.Metrics = registry
	var clock atomic.Int64
	clock.Store(time.Now().UnixMilli())
	b.o.Now = func() time.Time { return time.UnixMilli(clock.Load()) }
	l := b.openNow(t)
	release := sync.OnceFunc(l.HoldTree())
	defer release()
	var taken atomic.Uint64
	var refused, stop atomic.Bool
	var callers sync.WaitGroup
	submit := func() {
		chain, err := quickChain(b.ca.Root.Raw)
		if err != nil {
			t.Error(err)
		}
		switch _, err := l.Submit(t.Context(), chain); {
		case err == nil:
			taken.Add(1)
		case fault.From(err).Reason == fault.Overloaded:
			refused.Store(true)
		default:
			t.Error(err)
		}
	}
	for range queue {
		callers.Go(func() {
			for !stop.Load() {
				submit()
			}
		})
	}
	b.until(t, "the entries leave no room for others", l.Full)
	if refused.Load() {
		t.Error("a caller was refused while there was room")
	}
	stop.Store(true)
	for range 512 + queue { // more than a batch and the queue
		callers.Go(submit)
	}
	b.until(t, "callers are told to come later", refused.Load)
	if n := taken.Load(); n == 0 || n > 2048+512 {
		t.Errorf("%d entries were taken that the tree doesn't have", n)
	}
	if got := gauge(t, registry, "mayfly_ctlog_unintegrated_entries"); got < float64(taken.Load()) {
		t.Errorf("%v entries wait for the tree, want %d at least", got, taken.Load())
	}
	if err := l.Ready(t.Context()); err != nil {
		t.Errorf("before the merge delay is half over: %v", err)
	}
	clock.Add(embedded.MMD.Milliseconds()/2 + 1000)
	if err := l.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "checkpoint") {
		t.Errorf("half of the merge delay is over: %v", err)
	}
	if got := gauge(t, registry, "mayfly_ctlog_merge_delay_seconds"); got < embedded.MMD.Seconds()/2 {
		t.Errorf("the merge delay is %vs", got)
	}
	release()
	callers.Wait()
	b.published(t, taken.Load())
	if err := embeddedReady(t, l); err != nil {
		t.Errorf("the tree has followed: %v", err)
	}
	b.until(t, "all is published, and there is no merge delay", func() bool {
		return gauge(t, registry, "mayfly_ctlog_merge_delay_seconds") == 0
	})
	closeLog(t, l)
}

// TestCloseWithAFullBacklog: a log whose tree is far behind closes, and has all of it.
func TestCloseWithAFullBacklog(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	release := sync.OnceFunc(l.HoldTree())
	defer release()
	var taken atomic.Uint64
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			for !l.Due() {
				chain, err := quickChain(b.ca.Root.Raw)
				if err != nil {
					t.Error(err)
				}
				if _, err := l.Submit(t.Context(), chain); err != nil {
					t.Error(err)
					return
				}
				taken.Add(1)
			}
		})
	}
	callers.Wait()
	closed := make(chan error, 1)
	go func() { closed <- l.Close(t.Context()) }()
	b.until(t, "the log is closing", l.Closing)
	release()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	b.published(t, taken.Load())
}
