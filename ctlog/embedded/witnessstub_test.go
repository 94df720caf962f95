package embedded_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	formats "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// witnessStub is a witness as c2sp.org/tlog-witness describes it, with a fault in
// front of it. It knows the log by its first checkpoint.
type witnessStub struct {
	key      ctlog.WitnessConfig
	signer   *formats.Signer
	verifier note.Verifier
	log      note.Verifier

	mu     sync.Mutex
	size   uint64
	root   []byte
	fault  func(w http.ResponseWriter, r *http.Request, honest http.Handler)
	offers int
}

func newWitness(t *testing.T, name string, log note.Verifier) *witnessStub {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s := &witnessStub{log: log}
	if s.signer, err = formats.NewSignerForCosignatureV1(secret); err != nil {
		t.Fatal(err)
	}
	if s.verifier, err = formats.NewVerifierForCosignatureV1(public); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.key = ctlog.WitnessConfig{URL: server.URL + "/w", Key: public}
	return s
}

// breaks sets the fault; nil ends it.
func (s *witnessStub) breaks(fault func(w http.ResponseWriter, r *http.Request, honest http.Handler)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// stands is the size that was cosigned last, and how many offers there were.
func (s *witnessStub) stands() (size uint64, offers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size, s.offers
}

func (s *witnessStub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	fault := s.fault
	s.offers++
	s.mu.Unlock()
	honest := http.HandlerFunc(s.addCheckpoint)
	if fault != nil {
		fault(w, r, honest)
		return
	}
	honest(w, r)
}

// addCheckpoint is c2sp.org/tlog-witness, "add-checkpoint".
func (s *witnessStub) addCheckpoint(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	head, checkpoint, found := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	old, err2 := strconv.ParseUint(strings.TrimPrefix(lines[0], "old "), 10, 64)
	n, err3 := note.Open(checkpoint, note.VerifierList(s.log))
	if r.URL.Path != "/w/add-checkpoint" || r.Method != http.MethodPost || err != nil || !found || err2 != nil || err3 != nil {
		http.Error(w, fmt.Sprint("malformed: ", r.Method, r.URL, err, err2, err3), http.StatusBadRequest)
		return
	}
	text := strings.Split(n.Text, "\n")
	size, err := strconv.ParseUint(text[1], 10, 64)
	root, err2 := base64.StdEncoding.DecodeString(text[2])
	if err != nil || err2 != nil {
		http.Error(w, "malformed checkpoint", http.StatusBadRequest)
		return
	}
	if old != s.size {
		w.Header().Set("Content-Type", "text/x.tlog.size")
		w.WriteHeader(http.StatusConflict)
		_, _ = fmt.Fprintf(w, "%d\n", s.size)
		return
	}
	var hashes [][]byte
	for _, line := range lines[1:] {
		h, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			http.Error(w, "malformed proof", http.StatusBadRequest)
			return
		}
		hashes = append(hashes, h)
	}
	if old > 0 {
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old, size, hashes, s.root, root); err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
	}
	s.size, s.root = size, root
	_, _ = w.Write(s.cosign(n.Text))
}

// cosign signs any text, which an honest witness only does with what it verified.
func (s *witnessStub) cosign(text string) []byte {
	signed, err := note.Sign(&note.Note{Text: text}, s.signer)
	if err != nil {
		panic(err)
	}
	return signed[len(text)+1:]
}

// hang answers nothing until the client goes away.
func hang(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// answerWith answers the same to everything.
func answerWith(code int, contentType, body string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// held keeps every request until the context ends, and then answers honestly.
func held(until context.Context) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
		<-until.Done()
		honest.ServeHTTP(w, r)
	}
}

// clock stands still until the test moves it.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
