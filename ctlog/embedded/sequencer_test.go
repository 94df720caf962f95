package embedded_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// stall stops the log's storage as a disk does that hangs: it holds the lock that
// Tessera takes for each batch. The lock is the open file's, so that it keeps out
// this process too. The answer lets the storage go on.
func (b *bench) stall(t *testing.T) (resume func()) {
	t.Helper()
	f, err := os.OpenFile(b.path(".state", "treeState.lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestCallerLeavesADiskThatHangs: whoever waits for a disk that hangs goes when its context
// ends, though Tessera's own wait has none. What was handed over gets into the log
// late, without an SCT, and harms nobody.
func TestCallerLeavesADiskThatHangs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	l := b.openNow(t)
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Fatal(err)
	}
	resume := b.stall(t)
	defer resume()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := l.Submit(ctx, b.ca.Chain(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the disk hangs: %v, want the context's error", err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("the context ended after 200ms, Submit after %v", took)
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
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Fatal(err)
	}
	resume := b.stall(t)
	defer resume()
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
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Fatal(err)
	}
	resume := b.stall(t)
	defer resume()
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
