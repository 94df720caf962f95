package ca

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// victimEnv turns TestKillBetweenFlushes into the CA that it kills.
const victimEnv = "MAYFLY_TEST_CA_VICTIM"

// The points of an issuance between which something is made durable, or a key is used.
// At each the process dies in turn.
var killPoints = []string{
	"before the intent", "after the intent", // the key is used from here on
	"before the log", "after the log", // the SCT is here
	"before the outcome", "after the outcome", // the certificate leaves from here on
	"at random",
}

// victim is what a CA needs that is killed and started again over the same files.
type victim struct {
	Dir         string
	Key, LogKey []byte // PKCS #8
	Chain       [][]byte
	Point       string
	Nth         int64 // passage of Point at which it dies
	Start       time.Time
}

const victimCallers = 8

func (v victim) trail() string { return filepath.Join(v.Dir, "audit.jsonl") }

// left is one line of a victim's output: a certificate that its client has.
type left struct{ Serial, Fingerprint string }

// dieAt kills the process when it comes by the victim's point for the nth time.
func (v victim) dieAt() func(point string) {
	var passed atomic.Int64
	return func(point string) {
		if point == v.Point && passed.Add(1) == v.Nth {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
}

// dyingAuditor is the real trail, with a death before and after each record.
type dyingAuditor struct {
	audit.Recorder
	at func(string)
}

func (d dyingAuditor) Record(ctx context.Context, e audit.Event) error {
	which := map[audit.Type]string{audit.Intent: "intent", audit.Issued: "outcome"}[e.Type]
	d.at("before the " + which)
	err := d.Recorder.Record(ctx, e)
	d.at("after the " + which)
	return err
}

// dyingLog is the real log, with a death before and after each entry.
type dyingLog struct {
	Log
	at func(string)
}

func (d dyingLog) Submit(ctx context.Context, c ctlog.Chain) ([]ctlog.SCT, error) {
	d.at("before the log")
	scts, err := d.Log.Submit(ctx, c)
	d.at("after the log")
	return scts, err
}

// clock goes on from the victim's start, so that no test depends on the machine's.
func (v victim) clock() func() time.Time {
	began := time.Now()
	return func() time.Time { return v.Start.Add(time.Since(began)) }
}

func (v victim) openLog(t *testing.T) *embedded.Log {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(v.LogKey)
	if err != nil {
		t.Fatal(err)
	}
	c := embedded.Config{
		Directory: setting.Path(filepath.Join(v.Dir, "log")), MarkFile: setting.Path(filepath.Join(v.Dir, "mark")),
		URL: "https://log.example/2026", CheckpointInterval: 100 * time.Millisecond,
	}
	l, err := embedded.Open(t.Context(), c, embedded.Options{Signer: kms.InMemory(key.(crypto.Signer)), Create: true, Now: v.clock()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// beVictim is the CA that TestKillBetweenFlushes kills: a real trail, a real log and
// the real policy, which print each certificate that leaves.
func beVictim(t *testing.T, file string) {
	t.Helper()
	var v victim
	if text, err := os.ReadFile(file); err != nil || json.Unmarshal(text, &v) != nil {
		t.Fatal(err)
	}
	at := v.dieAt()
	c := audit.DefaultConfig()
	c.Path = setting.Path(v.trail())
	trail, err := audit.Open(c, audit.Options{Now: v.clock()})
	if err != nil {
		t.Fatal(err)
	}
	policy, err := ctlog.NewPolicy([]ctlog.Log{v.openLog(t)}, ctlog.Options{Now: v.clock()})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, kms.ECDSAP256, func(_ *Config, o *Options) {
		key, err := x509.ParsePKCS8PrivateKey(v.Key)
		if err != nil {
			t.Fatal(err)
		}
		certs := make([]*x509.Certificate, len(v.Chain))
		for i, der := range v.Chain {
			if certs[i], err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
		}
		o.Now, o.Auditor, o.Log = v.clock(), dyingAuditor{trail, at}, dyingLog{policy, at}
		o.Authorities = authority.Single(newAuthority(t, certs, kms.InMemory(key.(crypto.Signer)), authority.Config{}))
	})
	who := identitytest.Principal(t, nil)
	key := proven(t, who, kms.ECDSAP256)
	var callers errgroup.Group
	for range victimCallers {
		callers.Go(func() error {
			for {
				cert, err := r.issuer.Issue(t.Context(), who, key)
				if err != nil {
					return err
				}
				sum := sha256.Sum256(cert.Leaf)
				line, err := json.Marshal(left{cert.Serial.Text(16), hex.EncodeToString(sum[:])})
				if err != nil {
					return err
				}
				if _, err := os.Stdout.Write(append(line, '\n')); err != nil { // unbuffered: what is printed has left
					return err
				}
			}
		})
	}
	t.Fatal(callers.Wait())
}

// run starts the victim and gives the certificates that left before its death.
func (v victim) run(t *testing.T) []left {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	job := filepath.Join(v.Dir, "job.json")
	if err := os.WriteFile(job, text, 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestKillBetweenFlushes$")
	cmd.Env = append(os.Environ(), victimEnv+"="+job)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var got []left
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var one left
		if json.Unmarshal(lines.Bytes(), &one) != nil || one.Fingerprint == "" {
			fmt.Fprintln(&said, lines.Text()) // of the testing package, or cut short
			continue
		}
		if got = append(got, one); len(got) == 1 && v.Point == "at random" {
			time.AfterFunc(time.Duration(rand.IntN(100))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		}
	}
	err = cmd.Wait()
	var died *exec.ExitError
	if errors.As(err, &died) {
		if status, ok := died.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
			return got
		}
	}
	t.Fatalf("%s: the victim ended with %v and not by a kill: %s%s", v.Point, err, said.String(), complaints.String())
	return nil
}

// records reads the trail that a death left.
type records struct{ intents, issued map[string]audit.Event } // by serial

func (v victim) records(t *testing.T) records {
	t.Helper()
	c := audit.DefaultConfig()
	c.Path = setting.Path(v.trail())
	f, err := audit.Open(c, audit.Options{}) // sets a cut line aside
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r := records{map[string]audit.Event{}, map[string]audit.Event{}}
	follower := audit.Follow(v.trail(), time.Time{}, "")
	defer follower.Close()
	for e, err := range follower.Unread() {
		if err != nil {
			t.Fatal(err)
		}
		switch e.Type {
		case audit.Intent:
			r.intents[e.Serial] = e
		case audit.Issued:
			r.issued[e.Serial] = e
		default:
			t.Errorf("a record of type %s: %+v", e.Type, e)
		}
	}
	return r
}

// checkLeft wants the intent and the outcome of each certificate that left.
func (v victim) checkLeft(t *testing.T, r records, all []left) {
	t.Helper()
	for _, c := range all {
		if _, ok := r.intents[c.Serial]; !ok || r.issued[c.Serial].Fingerprint != c.Fingerprint {
			t.Errorf("%s: the certificate %s left; its intent is on record: %t; its outcome has the fingerprint %q", v.Point, c.Serial, ok, r.issued[c.Serial].Fingerprint)
		}
	}
}

// checkLog wants an intent of each entry, from seen on, and the entry of each outcome,
// once the log, which is open, has published it.
func (v victim) checkLog(t *testing.T, r records, seen uint64) uint64 {
	t.Helper()
	outcomes, want := map[uint64]audit.Event{}, uint64(0)
	for _, e := range r.issued {
		outcomes[*e.LogIndex], want = e, max(want, *e.LogIndex+1)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; {
		entry, err := read.EntryAt(t.Context(), filepath.Join(v.Dir, "log"), seen)
		switch {
		case err != nil && seen < want && time.Now().Before(deadline):
			<-tick.C
			continue
		case err != nil && seen < want:
			t.Fatalf("%s: the trail speaks of entry %d, of %s: %v", v.Point, seen, outcomes[seen].Serial, err)
		case errors.Is(err, read.ErrNoEntry):
			return seen
		case err != nil:
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(entry.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		serial := c.SerialNumber.Text(16)
		if _, ok := r.intents[serial]; !ok {
			t.Errorf("%s: entry %d, of %s, has no intent", v.Point, seen, serial)
		}
		if e, ok := outcomes[seen]; ok && (e.Serial != serial || e.LeafHash != hex.EncodeToString(entry.LeafHash[:])) {
			t.Errorf("%s: entry %d is %s with the hash %x; the trail has %s, %s", v.Point, seen, serial, entry.LeafHash, e.Serial, e.LeafHash)
		}
		seen++
	}
}

func pkcs8(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// kills is how often the CA is killed at each point: a twentieth of MAYFLY_KILLS, or once.
func kills(t *testing.T) int {
	text := os.Getenv("MAYFLY_KILLS")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("MAYFLY_KILLS=%q: want a number above zero", text)
	}
	return max(1, n/20)
}

// TestKillBetweenFlushes kills a CA that issues to several callers, at each point between
// the durable steps of an issuance and at random. What each death leaves behind: every
// certificate that left has its intent and its outcome in the trail; every entry of the
// log has an intent, so no key was used without one; and no outcome speaks of an entry
// that the log doesn't have.
func TestKillBetweenFlushes(t *testing.T) {
	if file := os.Getenv(victimEnv); file != "" {
		beVictim(t, file)
		return
	}
	t.Parallel()
	key, _ := clientKey(t, kms.ECDSAP256)
	logKey, _ := clientKey(t, kms.ECDSAP256)
	v := victim{Dir: t.TempDir(), Start: noon, Key: pkcs8(t, key), LogKey: pkcs8(t, logKey)}
	for _, c := range chainFor(t, key.Public(), cacert.Profile{}) {
		v.Chain = append(v.Chain, c.Raw)
	}
	var all []left
	var seen uint64
	for range kills(t) {
		for _, v.Point = range killPoints {
			v.Nth, v.Start = 1+rand.Int64N(3*victimCallers), v.Start.Add(time.Minute)
			all = append(all, v.run(t)...)
			r := v.records(t)
			v.checkLeft(t, r, all)
			l := v.openLog(t)
			seen = v.checkLog(t, r, seen)
			if err := l.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if t.Logf("%d certificates left, %d entries in the log", len(all), seen); len(all) == 0 {
		t.Error("no certificate ever left: nothing was shown")
	}
}
