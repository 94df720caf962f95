package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/wal"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/sys/unix"
)

// workerEnv turns this test binary into a process that writes to a log until it
// is killed, and prints every SCT that it was promised.
const workerEnv = "MAYFLY_TEST_LOG_WORKER"

// job is what the parent tells a worker.
type job struct {
	Config embedded.Config
	Key    []byte // SEC 1
	Issuer [][]byte
	Point  string // where the worker kills itself; empty: it is killed
	After  int    // how often it passes the point before
}

// promise is one line of a worker's output.
type promise struct {
	Index uint64
	Hash  string // of the leaf that the SCT commits to
}

// worker runs the other side when the environment asks for it.
func worker() bool {
	path := os.Getenv(workerEnv)
	if path == "" {
		return false
	}
	if err := work(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func work(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var j job
	if err := json.Unmarshal(raw, &j); err != nil {
		return err
	}
	key, err := x509.ParseECPrivateKey(j.Key)
	if err != nil {
		return err
	}
	ctx := context.Background()
	o := embedded.Options{Signer: &ctlogtest.Signer{Key: key}, Create: true}
	die := dieAt(j)
	o.SetReached(func(point string) { die(point) })
	l, err := embedded.Open(ctx, j.Config, o)
	if err != nil {
		return err
	}
	arm(l, j, die)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for err == nil {
				chain, chainErr := quickChain(j.Issuer[0])
				if chainErr != nil {
					return
				}
				sct, submitErr := l.Submit(ctx, chain)
				if submitErr != nil {
					fmt.Fprintln(os.Stderr, submitErr)
					return
				}
				signed, signErr := chain.SignedBytes(sct.Timestamp, sct.Extensions)
				if signErr != nil {
					return
				}
				index, _ := sct.LeafIndex()
				line, _ := json.Marshal(promise{Index: index, Hash: hex.EncodeToString(rfc6962.DefaultHasher.HashLeaf(signed))})
				mu.Lock()
				fmt.Println(string(line)) // unbuffered: what is promised is out
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.New("the worker ended by itself")
}

// quickChain is a chain whose precertificate has the shape of one, and random
// bytes where a certificate has its content: a thousand are made in no time.
func quickChain(issuer []byte) (ctlog.Chain, error) {
	content := make([]byte, 600+rand.IntN(600))
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	tagged := func(tag asn1.Tag, fill func(*cryptobyte.Builder)) func(*cryptobyte.Builder) {
		return func(b *cryptobyte.Builder) { b.AddASN1(tag, fill) }
	}
	poison := tagged(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(ctlog.OIDPoison)
		b.AddASN1Boolean(true)
		b.AddASN1OctetString([]byte{5, 0})
	})
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, tagged(asn1.SEQUENCE, func(tbs *cryptobyte.Builder) {
		tbs.AddASN1OctetString(content)
		tbs.AddASN1(asn1.Tag(3).Constructed().ContextSpecific(), tagged(asn1.SEQUENCE, poison))
	}))
	der, err := b.Bytes()
	if err != nil {
		return ctlog.Chain{}, err
	}
	return ctlog.NewChain(der, [][]byte{issuer})
}

func (b *bench) job(t *testing.T, point string, after int) string {
	t.Helper()
	key, err := x509.MarshalECPrivateKey(b.key.Key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(job{Config: b.config, Key: key, Issuer: [][]byte{b.ca.Root.Raw}, Point: point, After: after})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "job.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (b *bench) worker(t *testing.T, before ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(before, exe)
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), workerEnv+"="+b.job(t, "", 0))
	return cmd
}

// kills is how often the test kills: MAYFLY_KILLS, or 20.
func kills(t *testing.T) int {
	text := os.Getenv("MAYFLY_KILLS")
	if text == "" {
		return 20
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("MAYFLY_KILLS=%q: want a number above zero", text)
	}
	return n
}

// TestKillLosesNoPromise kills a writing process at random moments. Every SCT that it printed
// is in the log at its index as promised, and each tree continues the one before.
func TestKillLosesNoPromise(t *testing.T) {
	b := newBench(t)
	b.o.SetLockWait(5 * time.Second)
	promised := make(map[uint64]string)
	var before checkpoint.Tree
	n := kills(t)
	for i := range n {
		for index, hash := range runAndKill(t, b) {
			if old, twice := promised[index]; twice && old != hash {
				t.Fatalf("kill %d: index %d was promised to two certificates", i, index)
			}
			promised[index] = hash
		}
		b.marked(t)
		l := b.openNow(t)
		before = checkPromises(t, b, l, promised, before)
		closeLog(t, l)
	}
	report, err := maintain.Verify(t.Context(), string(b.config.Directory), maintain.VerifyOptions{})
	if err != nil {
		t.Errorf("Verify: %v", err)
	}
	t.Logf("%d kills, %d SCTs printed, log of %d entries", n, len(promised), report.Size)
	if len(promised) == 0 {
		t.Error("no SCT was ever printed; the kills came too early to show anything")
	}
}

// killPoints are where a crash may come between a submission and the end of its
// entry's time in the write-ahead file. The last two are in an integration.
var killPoints = []string{
	"before the append", "in the append", "after the append, before the mark",
	"after the mark, before the append", "after the mark, in the append", "after both, before the SCT", "tiles written", "state written",
}

// dieAt gives a function that kills the process when the job's point is reached once
// more than its number says, after a last thing to do.
func dieAt(j job) func(point string, last ...func()) {
	var passed atomic.Int64
	return func(point string, last ...func()) {
		if point == j.Point && passed.Add(1) > int64(j.After) {
			for _, do := range last {
				do()
			}
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
}

// arm lays the points of a flush, whose two writes would come at the same time, in the
// order that each wants.
func arm(l *embedded.Log, j job, die func(point string, last ...func())) {
	if !strings.Contains(j.Point, "append") && !strings.Contains(j.Point, "both") {
		return
	}
	appended, marked := make(chan struct{}, 1), make(chan struct{}, 1)
	markFirst := strings.HasPrefix(j.Point, "after the mark, ")
	l.Around(func(f wal.Frame, write func(wal.Frame) error) error {
		if markFirst {
			<-marked
		}
		die("before the append")
		die("after the mark, before the append")
		if err := write(f); err != nil {
			return err
		}
		torn := func() { tear(string(j.Config.Directory), f) }
		die("in the append", torn)
		die("after the mark, in the append", torn)
		if !markFirst {
			appended <- struct{}{}
		}
		return nil
	}, func(to logdir.High, advance func(logdir.High) error) error {
		if !markFirst {
			<-appended
			die("after the append, before the mark")
		}
		err := advance(to)
		die("after both, before the SCT")
		if markFirst {
			marked <- struct{}{}
		}
		return err
	})
}

// tear takes a part of a frame out of the write-ahead file, as if it had not got to the
// disk: zeros are there.
func tear(dir string, f wal.Frame) {
	for _, name := range []string{"ahead-0", "ahead-1"} {
		path := filepath.Join(dir, ".state", name)
		raw, err := os.ReadFile(path)
		if begin := bytes.Index(raw, f.Entries); err == nil && begin > 0 {
			if file, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
				_, _ = file.WriteAt(make([]byte, 100), int64(begin-100+rand.IntN(len(f.Entries))))
				_ = file.Close()
			}
		}
	}
}

// TestKillAtEachPoint has a writing process die at each point of the way of an entry,
// early and later in its life. Every SCT that it printed is in the log as promised, and
// the log goes on.
func TestKillAtEachPoint(t *testing.T) {
	t.Parallel()
	for _, point := range killPoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.o.SetLockWait(5 * time.Second)
			promised := make(map[uint64]string)
			var before checkpoint.Tree
			for _, after := range []int{0, 1, 2, 5} {
				cmd := b.worker(t)
				cmd.Env = append(cmd.Env, workerEnv+"="+b.job(t, point, after))
				var out, complaints bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &complaints
				if err := cmd.Run(); err == nil || complaints.Len() > 0 {
					t.Fatalf("the worker ended with %v: %s", err, complaints.String())
				}
				for line := range strings.Lines(out.String()) {
					var p promise
					if err := json.Unmarshal([]byte(line), &p); err != nil {
						break
					}
					if old, twice := promised[p.Index]; twice && old != p.Hash {
						t.Fatalf("index %d was promised to two certificates", p.Index)
					}
					promised[p.Index] = p.Hash
				}
				b.marked(t)
				l := b.openNow(t)
				before = checkPromises(t, b, l, promised, before)
				if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
					t.Error(err)
				}
				closeLog(t, l)
				if _, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)}); err != nil {
					t.Errorf("Verify: %v", err)
				}
			}
			if len(promised) == 0 {
				t.Error("no SCT was ever printed: nothing was shown")
			}
		})
	}
}

func (b *bench) openNow(t *testing.T) *embedded.Log {
	t.Helper()
	l, err := embedded.Open(t.Context(), b.config, b.o)
	if err != nil {
		t.Fatalf("Open after a kill: %v", err)
	}
	return l
}

// runAndKill lets a worker write for a random time after its first SCT.
func runAndKill(t *testing.T, b *bench) map[uint64]string {
	t.Helper()
	cmd := b.worker(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	got := make(map[uint64]string)
	lines := bufio.NewScanner(out)
	var timer *time.Timer
	for lines.Scan() {
		var p promise
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			break // a line that the kill cut short
		}
		got[p.Index] = p.Hash
		if timer == nil { // some die with their first batch, some under load
			timer = time.AfterFunc(time.Duration(rand.IntN(120))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); err == nil || timer == nil {
		t.Fatalf("the worker ended with %v before it was killed: %s", err, complaints.String())
	}
	return got
}

// marked fails where a process that was killed left a checkpoint beyond its mark.
func (b *bench) marked(t *testing.T) {
	t.Helper()
	_, head, err := logdir.Dir(b.config.Directory).Head()
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if mark, err := logdir.ReadMark(string(b.config.MarkFile), sha256.Sum256(b.key.SPKI(t))); err != nil || mark.Size < head.Size {
		t.Errorf("killed with a checkpoint of %d entries and a mark of %d (%v)", head.Size, mark.Size, err)
	}
}

// checkPromises waits until the log has published all that was promised, and
// reads it back over HTTP.
func checkPromises(t *testing.T, b *bench, l *embedded.Log, promised map[uint64]string, before checkpoint.Tree) checkpoint.Tree {
	t.Helper()
	url, c := serve(t, l)
	reader := ctlogtest.NewReader(t, l.Description(), url, c)
	size := uint64(0)
	for index := range promised {
		size = max(size, index+1)
	}
	now := reader.Await(t, size)
	reader.Consistent(t, before, now)
	hashes := leafHashes(t, reader, now.Size)
	for index, want := range promised {
		if got := hex.EncodeToString(hashes[index]); got != want {
			t.Errorf("entry %d is %s, its SCT promised %s", index, got, want)
		}
	}
	return now
}

// leafHashes reads all entries and hashes them as the tree does.
func leafHashes(t *testing.T, r *ctlogtest.Reader, size uint64) [][]byte {
	t.Helper()
	hashes := make([][]byte, 0, size)
	for uint64(len(hashes)) < size {
		got, err := r.GetRawEntries(t.Context(), int64(len(hashes)), int64(size-1))
		if err != nil {
			t.Fatalf("get-entries: %v", err)
		}
		if len(got.Entries) == 0 {
			t.Fatal("get-entries gave none")
		}
		for _, e := range got.Entries {
			hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(e.LeafInput))
		}
	}
	return hashes
}

// TestSecondProcessIsRefused: a second process doesn't get the log while the first has it.
func TestSecondProcessIsRefused(t *testing.T) {
	b := newBench(t)
	cmd := b.worker(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if !bufio.NewScanner(out).Scan() {
		t.Fatal("the worker printed nothing")
	}
	if _, err := embedded.Open(t.Context(), b.config, b.o); !errors.Is(err, embedded.ErrLocked) {
		t.Errorf("a second process: %v, want ErrLocked", err)
	}
}

// TestFileSizeLimitReleasesNothing limits the size of files of a writing process (RLIMIT_FSIZE, as
// every user may): the storage fails with a real error from the kernel, no SCT is
// released for what isn't durable, and the log goes on without the limit.
func TestFileSizeLimitReleasesNothing(t *testing.T) {
	b := newBench(t)
	cmd := b.worker(t, "/bin/sh", "-c", `ulimit -f 3000; exec "$0"`) // 3000 blocks of 512 or 1024 bytes, a few hundred entries
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err == nil {
		t.Fatal("the worker can't have ended well")
	}
	if !strings.Contains(complaints.String(), string("LOG_UNAVAILABLE")) {
		t.Fatalf("the worker complained of something else: %s", complaints.String())
	}
	promised := make(map[uint64]string)
	for line := range strings.Lines(out.String()) {
		var p promise
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		promised[p.Index] = p.Hash
	}
	l := b.openNow(t)
	defer closeLog(t, l)
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	checkPromises(t, b, l, promised, checkpoint.Tree{})
	t.Logf("%d SCTs before the disk was full", len(promised))
	if len(promised) == 0 {
		t.Error("no SCT before the limit: nothing was shown")
	}
}
