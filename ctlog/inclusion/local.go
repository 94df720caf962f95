package inclusion

import (
	"bytes"
	"io"
	"net/http"
)

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
	a := &answered{header: make(http.Header), code: http.StatusOK}
	l.handler.ServeHTTP(a, r)
	return &http.Response{
		StatusCode: a.code, Status: http.StatusText(a.code), Header: a.header, Request: r,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(&a.body), ContentLength: int64(a.body.Len()),
	}, nil
}

// answered is an answer in memory.
type answered struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

// Header is the answer's header.
func (a *answered) Header() http.Header { return a.header }

// WriteHeader remembers the status.
func (a *answered) WriteHeader(code int) { a.code = code }

// Write adds to the body.
func (a *answered) Write(p []byte) (int, error) { return a.body.Write(p) }
