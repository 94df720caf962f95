// Package read serves a log in its two forms, static-ct (c2sp.org/static-ct-api) and
// RFC 6962, out of its directory. Everything is answered from the published checkpoint
// and nothing beyond it. It writes nothing, so a log may be served while another
// goroutine adds to it, and for years after it has ended.
package read

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"

	ct "github.com/google/certificate-transparency-go"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"golang.org/x/mod/sumdb/note"
)

// Options are what an API reads from.
type Options struct {
	Dir      logdir.Dir
	Issuers  *logdir.Issuers // of the directory
	Verifier note.Verifier   // of the log's checkpoints
	Roots    func() [][]byte // DER: what get-roots lists
	Logger   *slog.Logger
}

// API answers the reads of one log. It is safe for concurrent use.
type API struct {
	o           Options
	checkpoints checkpointCache
	hashes      hashIndex
	gzip        gzipCache
}

// New makes the API of a log. It reads nothing yet.
func New(o Options) *API { return &API{o: o} }

// Cache lifetimes. What a tile or an issuer holds never changes; a checkpoint
// is the one thing that does.
const (
	cacheForever = "public, max-age=31536000, immutable"
	cacheNever   = "no-cache"
)

// HandlerFunc serves one path. Its error becomes the answer: a *Refusal as it says,
// os.ErrNotExist as 404, all else as 500 with the cause in the log alone.
type HandlerFunc func(http.ResponseWriter, *http.Request) error

// Handler serves the log below its prefix, which http.StripPrefix has taken off:
// static-ct reads (checkpoint, tile/…, issuer/…, log.v3.json), RFC 6962 reads
// (ct/v1/get-…), and what the log itself takes by POST. Everything else is 404, another
// way to write one of these paths too: each thing has one.
func (a *API) Handler(posts map[string]HandlerFunc) http.Handler {
	reads := map[string]HandlerFunc{
		"/" + logdir.CheckpointName: a.serveCheckpoint,
		"/" + logdir.OwnerName:      a.serveOwner,
		ct.GetSTHPath:               a.query(cacheNever, a.getSTH),
		ct.GetSTHConsistencyPath:    a.query(cacheForever, a.getConsistency, "first", "second"),
		ct.GetProofByHashPath:       a.getProofByHash,
		ct.GetEntriesPath:           a.query(cacheNever, a.getEntries, "start", "end"),
		ct.GetEntryAndProofPath:     a.query(cacheForever, a.getEntryAndProof, "leaf_index", "tree_size"),
		ct.GetRootsPath:             a.getRoots,
	}
	find := func(path string) (serve HandlerFunc, methods string) {
		switch {
		case posts[path] != nil:
			return posts[path], http.MethodPost
		case reads[path] != nil:
			return reads[path], readMethods
		case strings.HasPrefix(path, "/"+logdir.TileDir+"/"):
			return a.serveTile, readMethods
		case strings.HasPrefix(path, "/"+logdir.IssuerDir+"/"):
			return a.serveIssuer, readMethods
		}
		return nil, ""
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.EscapedPath()
		serve, methods := find(path)
		switch {
		case serve == nil, path != r.URL.Path: // no path of the grammar has a byte that needs escaping
			serve = func(http.ResponseWriter, *http.Request) error { return errNotFound }
		case !slices.Contains(strings.Split(methods, ", "), r.Method):
			w.Header().Set("Allow", methods)
			serve = func(http.ResponseWriter, *http.Request) error { return errMethod }
		}
		a.answer(w, r, serve)
	})
}

// readMethods are what reads are asked with; net/http cuts the body of an answer to HEAD.
const readMethods = http.MethodGet + ", " + http.MethodHead

// Refusal is an answer that is the client's own doing: status and fixed text.
type Refusal struct {
	Status     int
	Text       string
	RetryAfter int // seconds; 0: not said
}

func (r *Refusal) Error() string { return r.Text }

// BadRequest refuses with the status 400.
func BadRequest(format string, args ...any) error {
	return &Refusal{Status: http.StatusBadRequest, Text: fmt.Sprintf(format, args...)}
}

var (
	errNotFound = &Refusal{Status: http.StatusNotFound, Text: "not in this log, or not yet published"}
	errMethod   = &Refusal{Status: http.StatusMethodNotAllowed, Text: "this method isn't allowed here"}
)

// answer turns an error into a status: a refusal's own, 404 for what is not
// there, and for all else 500 with fixed text and the cause in the log only.
func (a *API) answer(w http.ResponseWriter, r *http.Request, serve HandlerFunc) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	err := serve(w, r)
	if err == nil {
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	var known *Refusal
	switch {
	case errors.As(err, &known):
		if known.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(known.RetryAfter))
		}
		http.Error(w, known.Text, known.Status)
	case errors.Is(err, os.ErrNotExist):
		http.Error(w, errNotFound.Text, errNotFound.Status)
	case r.Context().Err() != nil: // nobody reads it
	default:
		a.o.Logger.ErrorContext(r.Context(), "serving the log", slog.String("path", r.URL.Path), slog.Any("error", err))
		http.Error(w, "internal error", http.StatusInternalServerError)
	}
}

func (a *API) serveCheckpoint(w http.ResponseWriter, r *http.Request) error {
	h, err := a.Head(r.Context())
	if err != nil {
		return err
	}
	return write(w, "text/plain; charset=utf-8", cacheNever, h.Raw)
}

func (a *API) serveOwner(w http.ResponseWriter, _ *http.Request) error {
	raw, err := os.ReadFile(a.o.Dir.Path(logdir.OwnerName))
	if err != nil {
		return fmt.Errorf("reading whose log this is: %w", err)
	}
	return write(w, "application/json", cacheNever, raw)
}

func (a *API) serveIssuer(w http.ResponseWriter, r *http.Request) error {
	name := strings.TrimPrefix(r.URL.Path, "/"+logdir.IssuerDir+"/")
	raw, err := hex.DecodeString(name)
	if err != nil || len(raw) != 32 || name != strings.ToLower(name) {
		return errNotFound
	}
	der, err := a.o.Issuers.Get([32]byte(raw))
	if err != nil {
		return err
	}
	return write(w, "application/pkix-cert", cacheForever, der)
}

// serveTile serves what the published checkpoint covers.
func (a *API) serveTile(w http.ResponseWriter, r *http.Request) error {
	t, ok := logdir.ParseTilePath(strings.TrimPrefix(r.URL.Path, "/"))
	if !ok {
		return errNotFound
	}
	h, err := a.Head(r.Context())
	if err != nil {
		return err
	}
	if !t.Within(h.Size) {
		return errNotFound
	}
	data, err := a.o.Dir.Tile(r.Context(), t, h.Size)
	if err != nil {
		return err
	}
	if t.Level == logdir.DataLevel {
		w.Header().Set("Vary", "Accept-Encoding")
		if acceptsGzip(r) {
			if data, err = a.gzip.get(t, data); err != nil {
				return err
			}
			w.Header().Set("Content-Encoding", "gzip")
		}
	}
	return write(w, "application/octet-stream", cacheForever, data)
}

func write(w http.ResponseWriter, contentType, cache string, body []byte) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", cache)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) //nolint:gosec // G705: never HTML; an error here is the reader gone away
	return nil
}

// acceptsGzip reads Accept-Encoding (RFC 9110 §12.5.3), refusing gzip;q=0.
func acceptsGzip(r *http.Request) bool {
	for _, part := range strings.Split(r.Header.Get("Accept-Encoding"), ",") {
		coding, weight, _ := strings.Cut(strings.ToLower(strings.ReplaceAll(part, " ", "")), ";")
		if coding == "gzip" && strings.Trim(strings.TrimPrefix(weight, "q="), "0.") != "" || coding == "gzip" && weight == "" {
			return true
		}
	}
	return false
}
