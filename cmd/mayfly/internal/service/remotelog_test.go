package service

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// A log elsewhere that fails or lies.

// remoteLog is an honest log behind HTTP, with a fault in front of it.
type remoteLog struct {
	signer *ctlogtest.Signer
	dir    string
	fault  atomic.Pointer[logFault]
	posts  atomic.Int64             // submissions that arrived
	reads  atomic.Pointer[logFault] // as fault, for all else
}

// logFault decides about one submission before the log sees it.
type logFault func(w http.ResponseWriter, r *http.Request, honest http.Handler)

// newRemoteLog starts the log for the CA of r, and puts it into c.
func newRemoteLog(t *testing.T, r *rig, c *config.Config) *remoteLog {
	t.Helper()
	return newRemoteLogAt(t, "log.example", r, c)
}

// newRemoteLogAt gives the log's name another host.
func newRemoteLogAt(t *testing.T, host string, r *rig, c *config.Config) *remoteLog {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, authorityName, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	root, _ := pem.Decode(text)
	dir := t.TempDir()
	l := &remoteLog{signer: ctlogtest.NewSigner(t), dir: filepath.Join(dir, "log")}
	log, err := embedded.Open(t.Context(), embedded.Config{
		Directory: setting.Path(l.dir), MarkFile: setting.Path(filepath.Join(dir, "mark")),
		URL: "https://" + host + "/2027", CheckpointInterval: ctlog.MinCheckpointInterval, Submission: true,
	}, embedded.Options{Signer: l.signer, Create: true, Roots: [][]byte{root.Bytes}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := log.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	honest := http.StripPrefix(log.Prefix(), log.Handler())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			l.posts.Add(1)
			if f := l.fault.Load(); f != nil {
				(*f)(w, r, honest)
				return
			}
		}
		if f := l.reads.Load(); f != nil && r.Method != http.MethodPost {
			(*f)(w, r, honest)
			return
		}
		honest.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	key := setting.Path(filepath.Join(dir, "key.pem"))
	if err := os.WriteFile(string(key), l.signer.PEM(t), 0o600); err != nil {
		t.Fatal(err)
	}
	c.CTLog = ctlog.Config{Mode: ctlog.ModeExternal, Stagger: time.Second, Timeout: 3 * time.Second,
		Logs: []ctlog.ExternalConfig{{URL: s.URL + log.Prefix(), KeyFile: key}}}
	return l
}

func (l *remoteLog) breaks(f logFault) { l.fault.Store(&f) }

// fails asks over every edge and fails the test unless each answers with the
// reason, for which the CA has signed a precertificate and nothing else.
func (r *rig) fails(t *testing.T, name string, reason fault.Reason) {
	t.Helper()
	before := r.counts(t)
	r.refuses(t, name, r.signingRequest(t, r.token(t, nil)), reason)
	after := r.counts(t)
	if n := after["sign"] - before["sign"]; n != 0 {
		t.Errorf("%s: %d final certificates were signed", name, n)
	}
	if n := after["sign_precertificate"] - before["sign_precertificate"]; n != uint64(len(edges)) {
		t.Errorf("%s: %d precertificates were signed, for %d requests", name, n, len(edges))
	}
}

func answerWith(code int) logFault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		http.Error(w, "log-internal-words", code)
	}
}

// silence reads the request, and answers when its client has gone.
func silence(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body) // the server notices that a client goes once the body is read
	<-r.Context().Done()
}

func drop(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// takeAndDrop lets the log take the entry, and loses the reply.
func takeAndDrop(_ http.ResponseWriter, r *http.Request, honest http.Handler) {
	honest.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

func TestLogDown(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]logFault{
		"500": answerWith(500), "429": answerWith(429), "503": answerWith(503), "silent": silence, "no answer": drop,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var l *remoteLog
			r := newRig(t, func(r *rig, c *config.Config) { l = newRemoteLog(t, r, c) })
			r.issues(t, "before", r.signingRequest(t, r.token(t, nil)))
			l.breaks(f)
			r.fails(t, name, fault.LogUnavailable)
			for _, a := range r.answers {
				if bytes.Contains([]byte(a.raw), []byte("log-internal-words")) {
					t.Errorf("%s: the log's own words are in the answer: %s", a.edge, a.raw)
				}
			}
		})
	}
}

// TestLogComesBack issues again when the log does.
func TestLogComesBack(t *testing.T) {
	t.Parallel()
	var l *remoteLog
	r := newRig(t, func(r *rig, c *config.Config) { l = newRemoteLog(t, r, c) })
	down := true
	l.breaks(func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if down {
			down = false
			answerWith(502)(w, req, honest)
			return
		}
		honest.ServeHTTP(w, req)
	})
	r.issues(t, "at the second attempt", r.signingRequest(t, r.token(t, nil)))
}

// lie is the honest log's answer, changed.
func (l *remoteLog) lie(t *testing.T, change func(sct map[string]any, chain ctlog.Chain)) logFault {
	return func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		var body struct{ Chain [][]byte }
		if err := json.Unmarshal(data, &body); err != nil {
			t.Error(err)
			return
		}
		chain, err := ctlog.NewChain(body.Chain[0], body.Chain[1:])
		if err != nil {
			t.Error(err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(data))
		seen := httptest.NewRecorder()
		honest.ServeHTTP(seen, r)
		var sct map[string]any
		if err := json.Unmarshal(seen.Body.Bytes(), &sct); err != nil {
			t.Error(err)
			return
		}
		change(sct, chain)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(sct) // the client may have gone
	}
}

func TestLyingLog(t *testing.T) {
	t.Parallel()
	var l *remoteLog
	r := newRig(t, func(r *rig, c *config.Config) { l = newRemoteLog(t, r, c) })
	other := ctlogtest.NewSigner(t)
	foreign := ctlogtest.NewCA(t).Chain(t)
	put := func(sct map[string]any, from ctlog.SCT) {
		sct["timestamp"], sct["signature"] = from.Timestamp, signatureOf(from)
	}
	for name, change := range map[string]func(sct map[string]any, chain ctlog.Chain){
		"wrong log id": func(sct map[string]any, _ ctlog.Chain) { sct["id"] = make([]byte, 32) },
		"wrong signature": func(sct map[string]any, chain ctlog.Chain) {
			put(sct, other.SCT(t, chain, time.Now(), extensionsOf(t, sct)))
		},
		"another certificate's": func(sct map[string]any, _ ctlog.Chain) {
			put(sct, l.signer.SCT(t, foreign, time.Now(), extensionsOf(t, sct)))
		},
		"an hour ago": func(sct map[string]any, chain ctlog.Chain) {
			put(sct, l.signer.SCT(t, chain, time.Now().Add(-time.Hour), extensionsOf(t, sct)))
		},
		"in an hour": func(sct map[string]any, chain ctlog.Chain) {
			put(sct, l.signer.SCT(t, chain, time.Now().Add(time.Hour), extensionsOf(t, sct)))
		},
	} {
		alarms := r.sum(t, "mayfly_ctlog_bad_sct_total", nil)
		l.breaks(l.lie(t, change))
		r.fails(t, name, fault.ReasonInternal)
		if n := r.sum(t, "mayfly_ctlog_bad_sct_total", nil) - alarms; n < float64(len(edges)) {
			t.Errorf("%s: the alarm rose by %v, for %d lies", name, n, len(edges))
		}
	}
	for _, a := range r.answers {
		if a.message != "internal error" {
			t.Errorf("%s: %q", a.edge, a.message)
		}
	}
	l.fault.Store(nil)
	r.issues(t, "the truth again", r.signingRequest(t, r.token(t, nil)))
}

// signatureOf is a DigitallySigned (RFC 5246 §4.7): SHA-256, ECDSA, vector.
func signatureOf(s ctlog.SCT) []byte {
	return append([]byte{4, 3, byte(len(s.Signature) >> 8), byte(len(s.Signature))}, s.Signature...)
}

func extensionsOf(t *testing.T, sct map[string]any) []byte {
	t.Helper()
	var v struct{ Extensions []byte }
	data, err := json.Marshal(sct)
	if err != nil {
		t.Error(err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Error(err)
	}
	return v.Extensions
}

func TestLogReplyLost(t *testing.T) {
	t.Parallel()
	var l *remoteLog
	r := newRig(t, func(r *rig, c *config.Config) { l = newRemoteLog(t, r, c) })
	// Once: the second attempt gets the SCT of the entry that is there.
	var lost atomic.Bool
	l.breaks(func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if lost.CompareAndSwap(false, true) {
			takeAndDrop(w, req, honest)
		}
		honest.ServeHTTP(w, req)
	})
	r.issues(t, "after a lost reply", r.signingRequest(t, r.token(t, nil)))
	// Always: the log knows more than clients, never less.
	l.breaks(takeAndDrop)
	r.fails(t, "every reply lost", fault.LogUnavailable)
	entries := func() uint64 {
		report, err := maintain.Verify(t.Context(), l.dir, maintain.VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return report.Size + report.Unpublished
	}
	if n, most := entries(), uint64(2*len(edges)); n < uint64(r.issued.Load()) || n > most {
		t.Errorf("%d entries, for %d certificates and %d lost ones", n, r.issued.Load(), len(edges))
	}
}
