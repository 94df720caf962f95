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
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// workerEnv turns this test binary into a process that writes to a log until it
// is killed, and prints every SCT that it was promised.
const workerEnv = "MAYFLY_TEST_LOG_WORKER"

// job is what the parent tells a worker.
type job struct {
	Config embedded.Config
	Key    []byte // SEC 1
	Issuer [][]byte
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
	l, err := embedded.Open(ctx, j.Config, embedded.Options{Signer: &ctlogtest.Signer{Key: key}, Create: true})
	if err != nil {
		return err
	}
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

func (b *bench) job(t *testing.T) string {
	t.Helper()
	key, err := x509.MarshalECPrivateKey(b.key.Key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(job{Config: b.config, Key: key, Issuer: [][]byte{b.ca.Root.Raw}})
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
	cmd.Env = append(os.Environ(), workerEnv+"="+b.job(t))
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
	var before ctlogtest.Head
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
	_, head, err := logdir.Dir(b.config.Directory).Head(t.Context())
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
func checkPromises(t *testing.T, b *bench, l *embedded.Log, promised map[uint64]string, before ctlogtest.Head) ctlogtest.Head {
	t.Helper()
	url, c := serve(t, l)
	reader := ctlogtest.NewReader(t, l.Description(), url, c)
	highest := uint64(0)
	for index := range promised {
		highest = max(highest, index)
	}
	now := reader.Await(t, highest+1)
	reader.Consistent(t, before, now)
	hashes := reader.LeafHashes(t, now.Size)
	for index, want := range promised {
		if got := hex.EncodeToString(hashes[index]); got != want {
			t.Errorf("entry %d is %s, its SCT promised %s", index, got, want)
		}
	}
	return now
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
	checkPromises(t, b, l, promised, ctlogtest.Head{})
	t.Logf("%d SCTs before the disk was full", len(promised))
	if len(promised) == 0 {
		t.Error("no SCT before the limit: nothing was shown")
	}
}
