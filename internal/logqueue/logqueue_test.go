package logqueue_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/internal/logqueue"
)

// reader is who reads a log: it takes a line when it is let.
type reader struct {
	let   chan struct{} // nil takes all
	fails bool

	mu   sync.Mutex
	text bytes.Buffer
}

func (r *reader) Write(b []byte) (int, error) {
	if r.let != nil {
		<-r.let
	}
	if r.fails {
		return 0, errors.New("broken pipe")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func (r *reader) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(strings.Lines(r.text.String()))
}

func TestLinesArriveInOrder(t *testing.T) {
	t.Parallel()
	r := &reader{}
	q := logqueue.New(r, nil)
	line := make([]byte, 0, 16)
	for i := range 1000 {
		line = fmt.Appendf(line[:0], "%d\n", i) // the caller's buffer is its own again
		if n, err := q.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	q.Close(time.Minute)
	got := r.lines()
	if len(got) != 1000 || got[999] != "999\n" || q.Dropped() != 0 {
		t.Errorf("%d lines, dropped %d", len(got), q.Dropped())
	}
	if _, err := q.Write([]byte("late\n")); err != nil || q.Dropped() != 1 {
		t.Errorf("after Close: %v, dropped %d", err, q.Dropped())
	}
}

// TestStalledReader: lines that don't fit are dropped and counted, nobody waits,
// and the gap is told of once the reader goes on.
func TestStalledReader(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"many lines": 8, "long lines": 64 << 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const written = 10_000
				r := &reader{let: make(chan struct{})}
				var gaps []uint64
				q := logqueue.New(r, func(n uint64) { gaps = append(gaps, n) })
				line := append(bytes.Repeat([]byte("x"), size-1), '\n')
				for range written {
					if _, err := q.Write(line); err != nil {
						t.Fatal(err)
					}
				}
				lost := q.Dropped()
				if kept := written - lost; lost == 0 || kept > 4097 || kept*uint64(size) > 1<<20+1 {
					t.Errorf("%d of %d lines of %d bytes are kept", written-lost, written, size)
				}
				close(r.let)
				q.Close(time.Minute)
				if got := len(r.lines()); uint64(got) != written-lost || !slices.Equal(gaps, []uint64{lost}) {
					t.Errorf("%d lines came, %d were dropped, told %v", got, lost, gaps)
				}
			})
		})
	}
}

func TestCloseDoesNotWaitForAStalledReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &reader{let: make(chan struct{})}
		q := logqueue.New(r, nil)
		if _, err := q.Write([]byte("x\n")); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		q.Close(2 * time.Second)
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("it took %v", took)
		}
		close(r.let) // so that the bubble ends
	})
}

func TestReaderThatIsGone(t *testing.T) {
	t.Parallel()
	r := &reader{fails: true}
	q := logqueue.New(r, func(uint64) { t.Error("nothing was written after the gap") })
	for range 3 {
		if _, err := q.Write([]byte("x\n")); err != nil {
			t.Fatal(err)
		}
	}
	q.Close(time.Minute)
	if q.Dropped() != 3 {
		t.Errorf("dropped %d", q.Dropped())
	}
}
