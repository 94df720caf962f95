package service

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// oidSCTList is the extension of RFC 6962 §3.3.
const oidSCTList = "1.3.6.1.4.1.11129.2.4.2"

// jumping is a clock that a test moves forward.
type jumping struct{ ahead atomic.Int64 }

func (j *jumping) now() time.Time { return time.Now().Add(time.Duration(j.ahead.Load())) }

// to moves the clock to a moment, if that is ahead.
func (j *jumping) to(t time.Time) { j.ahead.Store(int64(time.Until(t))) }

// newShard makes the key and the empty log of a CA's folder, as log rotate does.
func newShard(t *testing.T, dir, name string, start time.Time) ctlog.EmbeddedConfig {
	t.Helper()
	key := filepath.Join(dir, "ctlog-"+name+".key.pem")
	if _, err := keystore.GenerateFile(key, kms.ECDSAP256, nil); err != nil {
		t.Fatal(err)
	}
	signer, err := keystore.Open(t.Context(), "file:"+key, kms.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := ctlog.EmbeddedConfig{
		Directory: setting.Path(filepath.Join(dir, "ctlog-"+name)), MarkFile: setting.Path(filepath.Join(dir, "ctlog-"+name+".mark")),
		URL: "http://127.0.0.1:5555/ctlog/" + name, Key: setting.KeyRef("file:" + key), Start: start,
	}
	c.SetDefaults()
	c.CheckpointInterval = ctlog.MinCheckpointInterval
	if err := embedded.Create(t.Context(), c, embedded.Options{Signer: signer}); err != nil {
		t.Fatal(err)
	}
	return c
}

// sctOf is the one SCT of a certificate.
func sctOf(t *testing.T, leaf *x509.Certificate) ctlog.SCT {
	t.Helper()
	for _, e := range leaf.Extensions {
		if e.Id.String() == oidSCTList {
			var list []byte
			if _, err := asn1.Unmarshal(e.Value, &list); err != nil {
				t.Fatal(err)
			}
			all, err := ctlog.ParseList(list)
			if err != nil || len(all) != 1 {
				t.Fatalf("%d SCTs, %v", len(all), err)
			}
			return all[0]
		}
	}
	t.Fatal("a certificate without an SCT")
	return ctlog.SCT{}
}

// load asks for certificates from several clients at once, and remembers them all.
type load struct {
	mu     sync.Mutex
	leaves []*x509.Certificate
	stop   atomic.Bool
	done   sync.WaitGroup
}

func newLoad(t *testing.T, r *rig, clients int) *load {
	t.Helper()
	l := &load{}
	o := r.signingRequest(t, r.token(t, nil))
	for i := range clients {
		l.done.Go(func() {
			for !l.stop.Load() {
				a := r.ask(t, edges[i%len(edges)], o)
				if a.reason != "" || a.failed != nil || len(a.chain) == 0 {
					t.Errorf("a request was lost: %s %q %v", a.reason, a.message, a.failed)
					return
				}
				l.mu.Lock()
				l.leaves = append(l.leaves, a.chain[0])
				l.mu.Unlock()
			}
		})
	}
	return l
}

// more waits until n further certificates were issued.
func (l *load) more(t *testing.T, n int) {
	t.Helper()
	want := l.count() + n
	poll(t, fmt.Sprintf("%d certificates", want), func() bool { return l.count() >= want })
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.leaves)
}

func (l *load) end() []*x509.Certificate {
	l.stop.Store(true)
	l.done.Wait()
	return l.leaves
}

// TestRotationUnderLoad: a service goes from one log to the next by the clock,
// without a restart and without losing a request. Each SCT is of the log whose time
// it is, the trusted root lists the new log before its first SCT, and the old one is
// frozen, and served, while the new one is in use.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	var clock jumping
	r := newReloading(t, func(r *rig, _ *config.Config) { r.now = clock.now })
	first := r.started.CTLog.Embedded
	at := time.Now().Add(3 * time.Minute).UTC().Truncate(time.Second)
	second := newShard(t, r.dir, "next", at)
	l := newLoad(t, r.rig, 8)
	l.more(t, 20)

	rotated := func(c *config.Config) { c.CTLog.Embedded.End, c.CTLog.Shards = at, []ctlog.EmbeddedConfig{second} }
	r.offer(rotated)
	r.hup()
	r.expect(t, "rotation", 1, 0)
	r.further = append(r.further, second)
	_, root, err := get(t.Context(), r.url+"/trusted_root.json")
	if err != nil || strings.Count(string(root), `"logId"`) != 2 || !strings.Contains(string(root), second.URL) {
		t.Errorf("the trusted root doesn't list the next log before its time: %s, %v", root, err)
	}
	if code, _, err := get(t.Context(), r.url+"/ctlog/next/checkpoint"); code != http.StatusOK || err != nil {
		t.Errorf("the next log isn't served: %d, %v", code, err)
	}
	l.more(t, 20)
	clock.to(at.Add(-150 * time.Millisecond)) // the switch itself happens by the running clock
	l.more(t, 20)
	poll(t, "the switch", func() bool { return clock.now().After(at) })
	l.more(t, 20)

	ids := map[[32]byte]int{}
	for _, one := range r.state().logs.shards {
		ids[one.Description().ID] = 0
	}
	firstID, secondID := r.state().logs.shards[0].Description().ID, r.state().logs.shards[1].Description().ID
	frozen := freeze(t, r.dir, first, at)
	r.offer(func(c *config.Config) {
		rotated(c)
		c.CTLog.Shards = []ctlog.EmbeddedConfig{second}
		c.CTLog.Embedded = ctlog.EmbeddedConfig{}
		c.CTLog.Frozen = []ctlog.FrozenConfig{frozen}
	})
	r.hup()
	r.expect(t, "freezing", 2, 0)
	l.more(t, 20)
	leaves := l.end()
	for _, leaf := range leaves {
		sct := sctOf(t, leaf)
		want := firstID
		if !time.UnixMilli(int64(sct.Timestamp)).Before(at) {
			want = secondID
		}
		if sct.LogID != want {
			t.Fatalf("an SCT of %s, from the log %x", time.UnixMilli(int64(sct.Timestamp)), sct.LogID)
		}
		ids[want]++
	}
	if ids[firstID] < 40 || ids[secondID] < 20 {
		t.Errorf("%d certificates from the first log, %d from the second", ids[firstID], ids[secondID])
	}
	_, checkpoint, err := get(t.Context(), r.url+strings.TrimPrefix(first.URL, "http://127.0.0.1:5555")+"/checkpoint")
	if err != nil || !slices.Contains(strings.Split(string(checkpoint), "\n"), fmt.Sprint(ids[firstID])) {
		t.Errorf("the frozen log's checkpoint isn't over its %d entries: %q, %v", ids[firstID], checkpoint, err)
	}
	if log, err := r.openShard(t.Context(), first, nil, nil, 0); err == nil {
		t.Errorf("a frozen log opens again: %v", log.Close(t.Context()))
	}
}

// freeze does to the log what log freeze does, but for the configuration.
func freeze(t *testing.T, dir string, log ctlog.EmbeddedConfig, end time.Time) ctlog.FrozenConfig {
	t.Helper()
	var report maintain.Report
	poll(t, "the last checkpoint", func() (whole bool) {
		var err error
		report, err = maintain.Verify(t.Context(), string(log.Directory), maintain.VerifyOptions{MarkFile: string(log.MarkFile)})
		return err == nil && report.Unpublished == 0
	})
	if err := maintain.Freeze(string(log.Directory), report, time.Now()); err != nil {
		t.Fatal(err)
	}
	owner, err := logdir.Dir(log.Directory).Owner()
	if err != nil {
		t.Fatal(err)
	}
	key := setting.Path(filepath.Join(dir, "old.pub.pem"))
	if err := os.WriteFile(string(key), []byte(toPEM("PUBLIC KEY", owner.Key)), 0o600); err != nil {
		t.Fatal(err)
	}
	return ctlog.FrozenConfig{URL: log.URL, KeyFile: key, Directory: log.Directory, Start: log.Start, End: end}
}

// TestFrozenLogIsHeldToItsPromises: a certificate whose submission crossed the log's
// end is on record after the check that froze it, and a backup in a lost log's place
// may not have what was promised last.
func TestFrozenLogIsHeldToItsPromises(t *testing.T) {
	t.Parallel()
	end := time.Now().Add(time.Minute).UTC().Truncate(time.Second)
	r := &rig{issuer: startIssuer(t), dir: filepath.Join(t.TempDir(), "ca"), lines: &catest.Lines{}}
	c := r.configuration(t)
	old := c.CTLog.Embedded
	c.CTLog.Embedded = newShard(t, r.dir, "next", end)
	frozen := freeze(t, r.dir, old, end)
	c.CTLog.Frozen = []ctlog.FrozenConfig{frozen}
	owner, err := logdir.Dir(old.Directory).Owner()
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf(`{"type":"dev.mayfly.certificate.issued","time":%q,"data":{"serial":"5e41a1","log_id":"%x","leaf_hash":"%x","log_index":0,"sct_timestamp":%[1]q}}`+"\n",
		end.Add(-time.Second).Format(time.RFC3339Nano), sha256.Sum256(owner.Key), sha256.Sum256(nil))
	if err := os.WriteFile(string(c.Audit.Path), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return end.Add(10 * time.Minute) }
	if r.Service, err = Open(t.Context(), c, Dependencies{Now: now, Logger: r.logger()}, Overrides{}, Source{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if err := r.promises.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := r.sum(t, "mayfly_ctlog_promises_overdue", map[string]string{"log": old.URL}); n != 1 {
		t.Errorf("%v certificates are overdue in the frozen log; want 1", n)
	}
}
