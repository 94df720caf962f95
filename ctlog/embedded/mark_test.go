package embedded_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// markWatch is a log's key that looks, at each signature over a tree, whether the
// durable mark covers the tree. The clock stands still, so that it knows what is signed.
type markWatch struct {
	*ctlogtest.Signer
	t   *testing.T
	b   *bench
	id  [32]byte
	now time.Time

	mu     sync.Mutex
	signed []checkpoint.Tree
}

func watchMark(t *testing.T, b *bench) *markWatch {
	t.Helper()
	w := &markWatch{Signer: b.key, t: t, b: b, id: sha256.Sum256(b.key.SPKI(t)), now: time.Now()}
	b.o.Signer, b.o.Now = w, func() time.Time { return w.now }
	return w
}

func (w *markWatch) Sign(ctx context.Context, digest []byte, h crypto.SignerOpts) ([]byte, error) {
	tree, err := logdir.Dir(w.b.config.Directory).Tree()
	if err != nil {
		w.t.Errorf("a signature before there is a tree: %v", err)
	}
	if head := sha256.Sum256(checkpoint.TreeHead(uint64(w.now.UnixMilli()), tree)); bytes.Equal(head[:], digest) {
		mark, err := logdir.ReadMark(string(w.b.config.MarkFile), w.id)
		if err != nil || mark.Size < tree.Size {
			w.t.Errorf("a checkpoint of size %d is signed while the mark is at %d (%v)", tree.Size, mark.Size, err)
		}
		w.mu.Lock()
		w.signed = append(w.signed, tree)
		w.mu.Unlock()
	}
	return w.Signer.Sign(ctx, digest, h)
}

// trees are those that were signed.
func (w *markWatch) trees() []checkpoint.Tree {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]checkpoint.Tree(nil), w.signed...)
}

// TestNothingIsSignedBeyondTheMark cuts the making of a log and of its entries at each
// point around the mark. The copy that is left there opens as a log only where it
// continues every checkpoint that was signed until then.
func TestNothingIsSignedBeyondTheMark(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	w := watchMark(t, b)
	l := b.open(t)
	points := t.TempDir()
	cut := func(point string) {
		copyTree(t, string(b.config.Directory), filepath.Join(points, point, "log"))
		copyTree(t, string(b.config.MarkFile), filepath.Join(points, point, "mark"))
	}
	writing, written := make(chan struct{}), make(chan struct{})
	l.BeforeMark(func(to logdir.High) error {
		if to.Size == 2 {
			close(writing)
			<-written
		}
		return nil
	})
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Fatal(err)
	}
	older := filepath.Join(points, "an older copy")
	copyTree(t, string(b.config.Directory), filepath.Join(older, "log"))
	last := make(chan error, 1)
	go func() {
		_, err := l.Submit(t.Context(), b.ca.Chain(t))
		last <- err
	}()
	<-writing // the tree has two entries, the mark one
	cut("before the mark")
	copyTree(t, string(b.config.MarkFile), filepath.Join(older, "mark"))
	before := w.trees()
	close(written)
	if err := <-last; err != nil {
		t.Fatal(err)
	}
	cut("after the mark")
	url, c := serve(t, l)
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, 2)
	cut("after the checkpoint")
	closeLog(t, l)
	for point, signed := range map[string][]checkpoint.Tree{"an older copy": before, "before the mark": before, "after the mark": before, "after the checkpoint": w.trees()} {
		copied := *b
		copied.config.Directory = setting.Path(filepath.Join(points, point, "log"))
		copied.config.MarkFile = setting.Path(filepath.Join(points, point, "mark"))
		w.b = &copied
		copied.write(t, 1)
		dir := logdir.Dir(copied.config.Directory)
		now, err := dir.Tree()
		if err != nil {
			t.Fatal(err)
		}
		for _, tree := range signed {
			if err := dir.GrewFrom(t.Context(), tree, now); err != nil {
				t.Errorf("%s: a checkpoint of size %d was signed, and the copy is no continuation: %v", point, tree.Size, err)
			}
		}
	}
}

// TestMarkThatCannotBeWritten: while the mark can't go up there is neither an SCT nor a
// checkpoint; both are there when it can.
func TestMarkThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	w := watchMark(t, b)
	l := b.open(t)
	full := errors.New("no space left")
	var mu sync.Mutex
	l.BeforeMark(func(logdir.High) error {
		mu.Lock()
		defer mu.Unlock()
		return full
	})
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err == nil {
		t.Error("an SCT without the mark")
	}
	if err := l.Settled().Ready(t.Context()); err == nil {
		t.Error("ready without the mark")
	}
	for _, tree := range w.trees() {
		if tree.Size > 0 {
			t.Errorf("a checkpoint of size %d without the mark", tree.Size)
		}
	}
	mu.Lock()
	full = nil
	mu.Unlock()
	if err := l.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	url, c := serve(t, l)
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, 1)
}

// TestMarkGoesUpBeforeALogThatDiedWithoutItSigns: where a process died between the tree
// and the mark, the next one raises the mark before it signs anything.
func TestMarkGoesUpBeforeALogThatDiedWithoutItSigns(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write(t, 2)
	before := map[string][]byte{}
	for _, path := range []string{string(b.config.MarkFile), b.path("checkpoint")} {
		before[path] = readFile(t, path)
	}
	b.write(t, 1)
	for path, raw := range before {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	watchMark(t, b)
	l := b.openNow(t)
	url, c := serve(t, l)
	ctlogtest.NewReader(t, l.Description(), url, c).Await(t, 3)
	closeLog(t, l)
}

// TestMakingALogThatWasCutShort: a log whose making ended after the mark, and before its
// state, is made when it's tried again; a mark that says that there was a log isn't passed over.
func TestMakingALogThatWasCutShort(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := embedded.Create(t.Context(), b.config, b.o); err != nil {
		t.Fatal(err)
	}
	remove(t, b.path())
	b.write(t, 1)
	remove(t, b.path())
	if err := embedded.Create(t.Context(), b.config, b.o); err == nil {
		t.Error("made again over a mark of a log with entries")
	}
}

// copyTree copies a file, or a folder with what is in it.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	info, err := os.Stat(from)
	if err == nil && info.IsDir() {
		for err = os.CopyFS(to, os.DirFS(from)); errors.Is(err, fs.ErrNotExist); err = os.CopyFS(to, os.DirFS(from)) {
			if err := os.RemoveAll(to); err != nil { // a log that runs has put a file in its place meanwhile
				t.Fatal(err)
			}
		}
	} else if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o700)
		if err == nil {
			err = os.WriteFile(to, readFile(t, from), 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}
