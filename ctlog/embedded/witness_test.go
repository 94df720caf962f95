package embedded_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// verifier is of the log's own signature.
func (b *bench) verifier(t *testing.T) note.Verifier {
	t.Helper()
	text, err := formats.RFC6962VerifierString(b.config.Origin(), b.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	v, err := formats.NewRFC6962Verifier(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// witnessed gives the bench witnesses.
func (b *bench) witnessed(t *testing.T, names ...string) (all []*witnessStub) {
	t.Helper()
	for _, name := range names {
		w := newWitness(t, name, b.verifier(t))
		b.config.Witnesses.List = append(b.config.Witnesses.List, w.key)
		all = append(all, w)
	}
	return all
}

// checkpoint reads the log through its handler: size, and who signed beside the log.
func (b *bench) checkpoint(t *testing.T, l *embedded.Log, witnesses []*witnessStub) (size int, cosigned []string, raw []byte) {
	t.Helper()
	answer := httptest.NewRecorder()
	l.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/checkpoint", nil))
	raw = answer.Body.Bytes()
	verifiers := []note.Verifier{b.verifier(t)}
	for _, w := range witnesses {
		verifiers = append(verifiers, w.verifier)
	}
	n, err := note.Open(raw, note.VerifierList(verifiers...))
	if err != nil || len(n.UnverifiedSigs) > 0 || n.Sigs[0].Name != b.config.Origin() {
		t.Fatalf("the checkpoint %q: %v, %d unknown signatures", raw, err, len(n.UnverifiedSigs))
	}
	for _, s := range n.Sigs[1:] {
		cosigned = append(cosigned, s.Name)
	}
	if _, err := fmt.Sscanf(strings.Split(n.Text, "\n")[1], "%d", &size); err != nil {
		t.Fatal(err)
	}
	return size, cosigned, raw
}

// publishes submits n entries and waits until a checkpoint covers them.
func (b *bench) publishes(t *testing.T, l *embedded.Log, witnesses []*witnessStub, n int) (cosigned []string, raw []byte) {
	t.Helper()
	last := uint64(0)
	for range n {
		sct, err := l.Submit(t.Context(), b.ca.Chain(t))
		if err != nil {
			t.Fatal(err)
		}
		last, _ = sct.LeafIndex()
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		size, cosigned, raw := b.checkpoint(t, l, witnesses)
		if size > int(last) {
			return cosigned, raw
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d entries are published, want more than %d", size, last)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// TestPublishedCheckpointsAreCosigned: every published checkpoint carries the cosignatures of all
// witnesses, each of which verified that the log only grew; also after a restart,
// for which they are kept, and in a backup. All readers take the checkpoint.
func TestPublishedCheckpointsAreCosigned(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ws := b.witnessed(t, "witness.example/one", "witness.example/two")
	l := b.openNow(t)
	if _, cosigned, _ := b.checkpoint(t, l, ws); len(cosigned) != 0 {
		t.Errorf("the empty tree is cosigned by %q", cosigned)
	}
	const both = 2
	for range 3 {
		if cosigned, _ := b.publishes(t, l, ws, 5); len(cosigned) != both {
			t.Fatalf("cosigned by %q", cosigned)
		}
	}
	_, _, before := b.checkpoint(t, l, ws)
	closeLog(t, l)

	l = b.openNow(t)
	if _, _, after := b.checkpoint(t, l, ws); !bytes.Equal(before, after) {
		t.Errorf("after a restart the checkpoint is\n%s, was\n%s", after, before)
	}
	// This process doesn't know how far the witnesses are: they say.
	if cosigned, _ := b.publishes(t, l, ws, 300); len(cosigned) != both {
		t.Errorf("after a restart: cosigned by %q", cosigned)
	}
	url, client := serve(t, l)
	for _, path := range []string{"/ct/v1/get-sth", "/ct/v1/get-sth-consistency?first=1&second=300", "/tile/0/001.p/1", "/tile/data/000"} {
		get(t, client, url+path, http.StatusOK)
	}
	_, _, cosigned := b.checkpoint(t, l, ws)
	closeLog(t, l)
	if size, _ := ws[0].stands(); size != 315 {
		t.Errorf("the witness is at %d entries", size)
	}
	if _, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)}); err != nil {
		t.Error(err)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	if _, err := maintain.Backup(t.Context(), b.path(), backup, maintain.VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	if raw := readFile(t, filepath.Join(backup, "checkpoint")); !bytes.Equal(raw, cosigned) {
		t.Errorf("the backup's checkpoint is\n%s, want\n%s", raw, cosigned)
	}
	archive, err := read.OpenArchive(l.Description(), read.Options{Dir: logdir.Dir(b.path())})
	if err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	archive.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/checkpoint", nil))
	if !bytes.Equal(answer.Body.Bytes(), cosigned) {
		t.Errorf("frozen, the checkpoint is\n%s", answer.Body)
	}
}

// TestCosignaturesThatAnEarlierVersionKeptBeside: an earlier version kept the cosignatures in
// a file of their own, and the checkpoint without them. Its log is served and gone on with
// from the checkpoint alone; the next one has its cosignatures.
func TestCosignaturesThatAnEarlierVersionKeptBeside(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ws := b.witnessed(t, "witness.example/one")
	l := b.openNow(t)
	b.publishes(t, l, ws, 3)
	_, _, cosigned := b.checkpoint(t, l, ws)
	closeLog(t, l)
	plain := cosigned[:bytes.LastIndexByte(cosigned[:len(cosigned)-1], '\n')+1]
	for name, content := range map[string][]byte{"checkpoint": plain, "checkpoint.witnessed": cosigned} {
		if err := os.WriteFile(b.path(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	archive, err := read.OpenArchive(l.Description(), read.Options{Dir: logdir.Dir(b.path())})
	if err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	archive.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/checkpoint", nil))
	if !bytes.Equal(answer.Body.Bytes(), plain) {
		t.Errorf("frozen, the checkpoint is\n%s", answer.Body)
	}
	l = b.openNow(t)
	if size, _, raw := b.checkpoint(t, l, ws); size != 3 || !bytes.Equal(raw, plain) {
		t.Errorf("after the start the checkpoint is\n%s", raw)
	}
	if by, _ := b.publishes(t, l, ws, 1); len(by) != 1 {
		t.Errorf("cosigned by %q", by)
	}
	closeLog(t, l)
	if _, err := maintain.Verify(t.Context(), b.path(), maintain.VerifyOptions{MarkFile: string(b.config.MarkFile)}); err != nil {
		t.Error(err)
	}
}

// TestFailingWitnessCostsItsCosignatureAlone: a witness that fails, lies or hangs costs its cosignature and
// nothing else. The other's is there, and the metric says what happened.
func TestFailingWitnessCostsItsCosignatureAlone(t *testing.T) {
	t.Parallel()
	// lie changes what the honest witness answers.
	lie := func(change func([]byte) []byte) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
			seen := httptest.NewRecorder()
			honest.ServeHTTP(seen, r)
			if seen.Code == http.StatusOK {
				_, _ = w.Write(change(seen.Body.Bytes()))
				return
			}
			w.Header().Set("Content-Type", seen.Header().Get("Content-Type"))
			w.WriteHeader(seen.Code)
			_, _ = w.Write(seen.Body.Bytes())
		}
	}
	for name, tt := range map[string]struct {
		fault   func(http.ResponseWriter, *http.Request, http.Handler)
		outcome string
	}{
		"down":          {func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }, "unavailable"},
		"hangs":         {hang, "unavailable"},
		"500":           {answerWith(500, "text/plain", "no"), "refused"},
		"404":           {answerWith(404, "text/plain", "unknown origin"), "refused"},
		"422":           {answerWith(422, "text/plain", "the proof does not hold"), "refused"},
		"409 same size": {answerWith(409, "text/plain", "another root"), "refused"},
		"409 for ever":  {answerWith(409, "text/x.tlog.size", "1\n"), "refused"},
		"409 ahead":     {answerWith(409, "text/x.tlog.size", "4000000000\n"), "ahead"},
		"409 nonsense":  {answerWith(409, "text/x.tlog.size", "-1\n"), "invalid"},
		"redirect": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "refused"},
		"nothing":         {answerWith(200, "text/plain", ""), "invalid"},
		"not a signature": {answerWith(200, "text/plain", "<html>\n"), "invalid"},
		"endless":         {answerWith(200, "text/plain", strings.Repeat("— a AAAAAAAA\n", 1<<14)), "invalid"},
		"flipped": {lie(func(b []byte) []byte {
			return resign(b, func(sig []byte) { sig[len(sig)-1] ^= 1 })
		}), "invalid"},
		"another time": {lie(func(b []byte) []byte {
			return resign(b, func(sig []byte) { binary.BigEndian.PutUint64(sig[4:], 1) })
		}), "invalid"},
		"more text": {lie(func(b []byte) []byte { return append([]byte("\n"), b...) }), "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ws := b.witnessed(t, "witness.example/bad", "witness.example/good")
			b.config.Witnesses.Required, b.config.Witnesses.Timeout = 2, 2*time.Second
			registry, text := prometheus.NewRegistry(), &catest.Lines{}
			b.o.Metrics, b.o.Logger = registry, slog.New(slog.NewTextHandler(text, nil))
			ws[0].breaks(tt.fault)
			l := b.open(t)
			cosigned, _ := b.publishes(t, l, ws, 2)
			if len(cosigned) != 1 || cosigned[0] != "witness.example/good" {
				t.Errorf("cosigned by %q, want the good witness alone", cosigned)
			}
			if got := offers(t, registry, "witness.example/bad"); got[tt.outcome] == 0 || got["cosigned"] > 0 {
				t.Errorf("the metric says %v, want %s", got, tt.outcome)
			}
			if !strings.Contains(text.String(), "a checkpoint has too few cosignatures") {
				t.Errorf("the log says nothing: %s", text)
			}
		})
	}
}

// resign changes the bytes of the cosignature in an answer.
func resign(answer []byte, change func(sig []byte)) []byte {
	fields := strings.Fields(string(answer))
	raw, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil {
		panic(err)
	}
	change(raw)
	return fmt.Appendf(nil, "— %s %s\n", fields[1], base64.StdEncoding.EncodeToString(raw))
}

// offers are the outcomes of a witness's offers.
func offers(t *testing.T, r *prometheus.Registry, witness string) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "mayfly_ctlog_witness_offers_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["witness"] == witness {
				out[labels["outcome"]] += m.GetCounter().GetValue()
			}
		}
	}
	return out
}

// TestHangingWitnessesDelayNoSCT: SCTs are given while every witness hangs, in either mode.
func TestHangingWitnessesDelayNoSCT(t *testing.T) {
	t.Parallel()
	for _, mode := range []ctlog.WitnessMode{ctlog.WitnessOpen, ctlog.WitnessClosed} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ws := b.witnessed(t, "witness.example/one", "witness.example/two")
			b.config.Witnesses.Mode, b.config.Witnesses.Timeout = mode, ctlog.MaxWitnessTimeout
			until, release := context.WithCancel(t.Context())
			defer release()
			for _, w := range ws {
				w.breaks(held(until))
			}
			l := b.open(t)
			for range 20 { // a checkpoint is offered after the first of these
				if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
					t.Fatal(err)
				}
			}
			for deadline := time.Now().Add(5 * time.Second); ; <-time.After(5 * time.Millisecond) {
				if _, n := ws[0].stands(); n > 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("nothing was offered")
				}
			}
			for range 20 {
				if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
					t.Fatal(err)
				}
			}
			if _, n := ws[0].stands(); n > 1 {
				t.Errorf("%d offers: the witness wasn't hanging all the time", n)
			}
			if size, _, _ := b.checkpoint(t, l, ws); size != 0 {
				t.Errorf("%d entries are published before the witnesses answered", size)
			}
			release()
			if cosigned, _ := b.publishes(t, l, ws, 1); len(cosigned) != 2 {
				t.Errorf("cosigned by %q", cosigned)
			}
		})
	}
}

// TestFailingWitnessIsLeftAlone: a witness that fails again and again is left alone for a
// while, so that checkpoints don't wait for it.
func TestFailingWitnessIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ws := b.witnessed(t, "witness.example/one")
	ws[0].breaks(answerWith(500, "text/plain", "no"))
	now := newClock()
	b.o.Now = now.read
	l := b.open(t)
	for range 5 {
		b.publishes(t, l, ws, 1)
	}
	if _, n := ws[0].stands(); n != 3 {
		t.Errorf("asked %d times in five rounds, want 3", n)
	}
	ws[0].breaks(nil)
	now.add(time.Minute)
	if cosigned, _ := b.publishes(t, l, ws, 1); len(cosigned) != 1 {
		t.Errorf("back again, cosigned by %q", cosigned)
	}
}

// TestCosignatureOfAnotherTimeIsNone: a cosignature of another time is none, however well it is signed.
func TestCosignatureOfAnotherTimeIsNone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ws := b.witnessed(t, "witness.example/one")
	now := newClock()
	now.add(4 * time.Minute)
	registry := prometheus.NewRegistry()
	b.o.Now, b.o.Metrics = now.read, registry
	l := b.open(t)
	if cosigned, _ := b.publishes(t, l, ws, 1); len(cosigned) != 1 {
		t.Errorf("four minutes apart: cosigned by %q", cosigned)
	}
	now.add(2 * time.Minute)
	if cosigned, _ := b.publishes(t, l, ws, 1); len(cosigned) != 0 {
		t.Errorf("six minutes apart: cosigned by %q", cosigned)
	}
	if got := offers(t, registry, "witness.example/one"); got["invalid"] != 1 || got["cosigned"] != 1 {
		t.Errorf("the metric says %v", got)
	}
}

// TestClosedModePublishesNothingWithoutCosignatures: in the closed mode nothing is published without enough
// cosignatures; SCTs are given, nothing is lost, and all of it is published when the
// witness is back. A new log starts all the same.
func TestClosedModePublishesNothingWithoutCosignatures(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ws := b.witnessed(t, "witness.example/one", "witness.example/two")
	b.config.Witnesses.Mode, b.config.Witnesses.Required = ctlog.WitnessClosed, 2
	ws[1].breaks(answerWith(500, "text/plain", "no"))
	l := b.open(t)
	for range 3 {
		if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(5 * time.Millisecond) {
		if _, n := ws[1].stands(); n >= 5 { // also beyond what is left alone in the open mode
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it isn't asked again")
		}
	}
	if size, _, _ := b.checkpoint(t, l, ws); size != 0 {
		t.Errorf("%d entries are published with one of two cosignatures", size)
	}
	if err := l.Ready(t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
	ws[1].breaks(nil)
	if cosigned, _ := b.publishes(t, l, ws, 1); len(cosigned) != 2 {
		t.Errorf("cosigned by %q", cosigned)
	}
}

// TestClosedModeShutdownLeavesTheRestToTheNextStart: what couldn't be published before the end is published
// by the next start. The end says so, and comes in time.
func TestClosedModeShutdownLeavesTheRestToTheNextStart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ws := b.witnessed(t, "witness.example/one")
	b.config.Witnesses.Mode = ctlog.WitnessClosed
	ws[0].breaks(hang)
	l := b.openNow(t)
	if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := l.Close(ctx); err == nil || !strings.Contains(err.Error(), "publishing the last checkpoint") {
		t.Errorf("Close: %v", err)
	}
	ws[0].breaks(nil)
	l = b.open(t)
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(5 * time.Millisecond) {
		if size, cosigned, _ := b.checkpoint(t, l, ws); size == 1 && len(cosigned) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the entry isn't published after the restart")
		}
	}
}

// TestWitnessConfig: all faults at once.
func TestWitnessConfig(t *testing.T) {
	t.Parallel()
	good := newWitness(t, "witness.example/one", nil).key
	for name, tt := range map[string]struct {
		c    ctlog.WitnessesConfig
		want int
	}{
		"none":          {ctlog.WitnessesConfig{}, 0},
		"one":           {ctlog.WitnessesConfig{List: []ctlog.WitnessConfig{good}, Required: 1, Mode: ctlog.WitnessClosed}, 0},
		"too many":      {ctlog.WitnessesConfig{List: []ctlog.WitnessConfig{good}, Required: 2}, 1},
		"twice":         {ctlog.WitnessesConfig{List: []ctlog.WitnessConfig{good, good}}, 1},
		"no key":        {ctlog.WitnessesConfig{List: []ctlog.WitnessConfig{{URL: good.URL}}}, 1},
		"http":          {ctlog.WitnessesConfig{List: []ctlog.WitnessConfig{{URL: "http://w.example", Key: good.Key}}}, 1},
		"allowed":       {ctlog.WitnessesConfig{List: []ctlog.WitnessConfig{{URL: "http://w.example", Key: good.Key, AllowHTTP: true}}}, 0},
		"the log's":     {ctlog.WitnessesConfig{List: []ctlog.WitnessConfig{{URL: good.URL, Key: "sum.golang.org+033de0ae+BADBADBA"}}}, 1},
		"mode, timeout": {ctlog.WitnessesConfig{Mode: "ajar", Timeout: time.Minute}, 2},
	} {
		var f setting.Faults
		tt.c.Check("witnesses", &f)
		if f.Len() != tt.want {
			t.Errorf("%s: %v, want %d faults", name, f.Err(), tt.want)
		}
	}
}
