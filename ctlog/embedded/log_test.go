package embedded_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if worker() { // this binary is its own victim: see kill_test.go
		return
	}
	goleak.VerifyTestMain(m)
}

// bench is a log's surroundings: directory, mark, key and CA, without the log.
type bench struct {
	config embedded.Config
	o      embedded.Options
	ca     *ctlogtest.CA
	key    *ctlogtest.Signer
}

func newBench(t testing.TB) *bench {
	t.Helper()
	root := t.TempDir()
	b := &bench{ca: ctlogtest.NewCA(t), key: ctlogtest.NewSigner(t)}
	b.config = embedded.Config{
		Directory: setting.Path(filepath.Join(root, "log")), MarkFile: setting.Path(filepath.Join(root, "mark")),
		URL: "https://log.example/2027", CheckpointInterval: 100 * time.Millisecond,
	}
	b.o = embedded.Options{
		Signer: b.key, Create: true,
		Roots: [][]byte{b.ca.Root.Raw},
	}
	b.o.SetLockWait(500 * time.Millisecond) // a program that another test starts holds the lock for a moment
	return b
}

// open opens the log and closes it when the test ends, unless the test has.
func (b *bench) open(t testing.TB) *embedded.Log {
	t.Helper()
	l, err := embedded.Open(t.Context(), b.config, b.o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	return l
}

func closeLog(t testing.TB, l *embedded.Log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// until waits for a condition.
func (b *bench) until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30s: %s", what)
		}
	}
}

// published waits until a checkpoint covers so many entries.
func (b *bench) published(t testing.TB, size uint64) (head checkpoint.Head) {
	t.Helper()
	b.until(t, "a checkpoint covers the entries", func() bool {
		var err error
		_, head, err = logdir.Dir(b.config.Directory).Head()
		return err == nil && head.Size >= size
	})
	return head
}

// serve puts the log's handler on a real port, below its prefix.
func serve(t testing.TB, l *embedded.Log) (url string, c *http.Client) {
	t.Helper()
	s := httptest.NewServer(http.StripPrefix(l.Prefix(), l.Handler()))
	t.Cleanup(s.Close)
	return s.URL + l.Prefix(), s.Client()
}
