// Package remote reads a log as anybody can, through the static-ct API
// (c2sp.org/static-ct-api) or that of RFC 6962, and verifies its heads under its key.
package remote

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/bounded"
)

// Bounds of one request.
const (
	MaxAnswer = 1 << 20 // bytes of a checkpoint, a tree head or a proof
	timeout   = 30 * time.Second
	userAgent = "mayfly-monitor" // RFC 9110 §10.1.5
)

// ErrAbsent is a 404 or 410: not there, or not yet.
var ErrAbsent = errors.New("the log answers 404: it isn't there")

// Log is a log to be read.
type Log struct {
	Description ctlog.Description
	URL         string        // where it is read, without a final slash; empty: Description.URL
	Client      *http.Client  // nil: http.DefaultClient
	MMD         time.Duration // its maximum merge delay; zero: what public logs promise
}

// Reader reads one log.
type Reader struct {
	Log
	Verifier note.Verifier // of checkpoints and signed tree heads
}

// New makes the reader of a log. It reads nothing yet.
func New(l Log) (*Reader, error) {
	l.URL, l.Client = cmp.Or(strings.TrimSuffix(l.URL, "/"), l.Description.URL), cmp.Or(l.Client, http.DefaultClient)
	v, err := checkpoint.VerifierOf(l.Description)
	return &Reader{Log: l, Verifier: v}, err
}

// Head is what a log says of itself under its key.
type Head struct {
	checkpoint.Head
	Static bool // read through the static-ct API; else through RFC 6962
}

// Head is the log's checkpoint or, where it has none, its signed tree head. The error
// says what failed: the way to the log, or the signature.
func (r *Reader) Head(ctx context.Context) (Head, error) {
	head, err := r.Checkpoint(ctx)
	if errors.Is(err, ErrAbsent) {
		head, err = r.STH(ctx)
		return Head{Head: head}, err
	}
	return Head{head, true}, err
}

// ReadHead is [Reader.Head] of a log that is read once.
func ReadHead(ctx context.Context, l Log) (Head, error) {
	r, err := New(l)
	if err != nil {
		return Head{}, err
	}
	return r.Head(ctx)
}

// Checkpoint is the log's checkpoint, verified.
func (r *Reader) Checkpoint(ctx context.Context) (checkpoint.Head, error) {
	return r.head(ctx, "/checkpoint", checkpoint.Open)
}

// STH is the log's signed tree head (RFC 6962 §4.3), verified.
func (r *Reader) STH(ctx context.Context) (checkpoint.Head, error) {
	return r.head(ctx, "/ct/v1/get-sth", checkpoint.FromSTH)
}

func (r *Reader) head(ctx context.Context, path string, open func([]byte, note.Verifier) (checkpoint.Head, error)) (checkpoint.Head, error) {
	raw, err := r.Get(ctx, path, MaxAnswer)
	if err != nil {
		return checkpoint.Head{}, err
	}
	return open(raw, r.Verifier)
}

// Tile fetches a tile, at most limit bytes of it. A log may keep the full tile alone
// where a partial one is asked for.
func (r *Reader) Tile(ctx context.Context, t logdir.TilePath, limit int64) ([]byte, error) {
	raw, err := r.Get(ctx, "/"+t.Name(), limit)
	if t.Width != 0 && errors.Is(err, ErrAbsent) {
		t.Width = 0
		raw, err = r.Get(ctx, "/"+t.Name(), limit)
	}
	return raw, err
}

// Get fetches a path below the log's URL: at most limit bytes.
func (r *Reader) Get(ctx context.Context, path string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", userAgent)
	answer, err := bounded.Do(r.Client, request, limit)
	switch {
	case answer == nil:
		return nil, err
	case answer.StatusCode == http.StatusNotFound, answer.StatusCode == http.StatusGone:
		err = ErrAbsent
	case answer.StatusCode != http.StatusOK:
		err = fmt.Errorf("the log answered %d", answer.StatusCode)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return answer.Body, nil
}

// Local is a client of a handler in this process: the code that serves everybody,
// without the way through the network, which may not lead from a machine to its own
// public name.
func Local(h http.Handler) *http.Client { return &http.Client{Transport: local{h}} }

type local struct{ handler http.Handler }

// RoundTrip lets the handler answer.
func (l local) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	a := &answer{Response: http.Response{
		StatusCode: http.StatusOK, Header: make(http.Header), Request: r, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}}
	l.handler.ServeHTTP(a, r)
	a.Status, a.Body, a.ContentLength = http.StatusText(a.StatusCode), io.NopCloser(&a.body), int64(a.body.Len())
	return &a.Response, nil
}

// answer is an answer in memory, and what it is written with.
type answer struct {
	http.Response
	body bytes.Buffer
}

// Header is the answer's header.
func (a *answer) Header() http.Header { return a.Response.Header }

// WriteHeader takes the status.
func (a *answer) WriteHeader(code int) { a.StatusCode = code }

// Write adds to the body.
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }
