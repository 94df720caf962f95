package inclusion_test

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/promises"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
)

// TestEndlessTiles: what a log makes the monitor read is bounded by what its tiles
// may hold, not by what it sends.
func TestEndlessTiles(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write(t, b.submit(t, 2, true))
	b.settle(t)
	b.write(t, b.submit(t, 2, true))
	var taken atomic.Int64
	honest := remote.Local(b.log.Handler()).Transport
	monitor, err := inclusion.New(inclusion.Options{
		Trail: promises.Follow(b.trail, nil), State: filepath.Join(b.dir, "other.json"), Now: func() time.Time { return b.now },
		Logs: []remote.Log{{Description: b.log.Description(), URL: "http://log", Client: &http.Client{Transport: trip(func(r *http.Request) (*http.Response, error) {
			answer, err := honest.RoundTrip(r)
			if err == nil && strings.HasPrefix(r.URL.Path, "/tile/") {
				answer.Body = io.NopCloser(&endless{&taken})
			}
			return answer, err
		})}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := monitor.Look(t.Context()); err == nil {
		t.Error("a tile without end is read")
	}
	if got := taken.Load(); got > 64<<10 {
		t.Errorf("%d bytes of a tile were read", got)
	}
}

// endless counts the bytes that are taken from it.
type endless struct{ taken *atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.taken.Add(int64(len(p)))
	return len(p), nil
}

// TestClockBack: what was recorded after a clock went back is still owed after a
// restart, whether a look came between or not.
func TestClockBack(t *testing.T) {
	t.Parallel()
	for _, looked := range []bool{true, false} {
		b := newBench(t)
		right := b.now.Add(time.Minute)
		b.now = b.now.Add(time.Hour) // the clock is wrong
		b.write(t, b.submit(t, 2, true))
		b.settle(t)
		b.down.Store(true)
		b.now = right
		b.write(t, b.submit(t, 3, true))
		if looked {
			_ = b.monitor.Look(t.Context())
			b.now = b.now.Add(2 * time.Hour)
		}
		b.restart(t)
		_ = b.monitor.Look(t.Context())
		if got := b.value(t, "mayfly_ctlog_promises_pending"); got < 3 { // those from before may be there again
			t.Errorf("after a restart %v are pending, want 3", got)
		}
		b.down.Store(false)
		b.settle(t)
	}
}

// TestFollowWhileHanging: what a service puts in force doesn't wait for a log that hangs.
func TestFollowWhileHanging(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write(t, b.submit(t, 1, true))
	asked := make(chan struct{}, 1)
	logs := []remote.Log{{Description: b.log.Description(), URL: "http://log", Client: &http.Client{Transport: trip(func(r *http.Request) (*http.Response, error) {
		asked <- struct{}{}
		<-r.Context().Done()
		return nil, r.Context().Err()
	})}}}
	monitor, err := inclusion.New(inclusion.Options{Trail: promises.Follow(b.trail, nil), State: filepath.Join(b.dir, "other.json"), Logs: logs})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended, followed := make(chan error, 1), make(chan struct{})
	go func() { ended <- monitor.Run(ctx) }()
	<-asked
	follow, err := monitor.Prepare(logs)
	if err != nil {
		t.Fatal(err)
	}
	go func() { follow(); close(followed) }()
	select {
	case <-followed:
	case <-time.After(10 * time.Second):
		t.Error("following waits for the log")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
