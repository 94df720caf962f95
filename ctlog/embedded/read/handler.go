package embedded

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/transparency-dev/tessera/api/layout"
)

// Cache lifetimes. What a tile or an issuer holds never changes; a checkpoint
// is the one thing that does.
const (
	cacheForever = "public, max-age=31536000, immutable"
	cacheNever   = "no-cache"
)

// serving is one read or submission; its error becomes the answer.
type serving func(http.ResponseWriter, *http.Request) error

// Handler serves the log below its prefix, which http.StripPrefix has taken off
// with [Log.Prefix]: static-ct reads (checkpoint, tile/…, issuer/…,
// log.v3.json), RFC 6962 reads (ct/v1/get-…), and, when the configuration turns
// it on, submission (ct/v1/add-chain, add-pre-chain). Everything else is 404, another
// way to write one of these paths too: each thing has one.
func (l *Log) Handler() http.Handler {
	reads := map[string]serving{
		"/" + checkpointName:         l.serveCheckpoint,
		"/" + aboutName:              l.serveAbout,
		"/ct/v1/get-sth":             l.getSTH,
		"/ct/v1/get-sth-consistency": l.getConsistency,
		"/ct/v1/get-proof-by-hash":   l.getProofByHash,
		"/ct/v1/get-entries":         l.getEntries,
		"/ct/v1/get-entry-and-proof": l.getEntryAndProof,
		"/ct/v1/get-roots":           l.getRoots,
	}
	posts := map[string]serving{}
	if l.config.Submission {
		posts["/ct/v1/add-chain"], posts["/ct/v1/add-pre-chain"] = l.addChain, l.addPreChain
	}
	find := func(path string) (serve serving, methods string) {
		switch {
		case posts[path] != nil:
			return posts[path], http.MethodPost
		case reads[path] != nil:
			return reads[path], readMethods
		case strings.HasPrefix(path, "/"+tileDir+"/"):
			return l.serveTile, readMethods
		case strings.HasPrefix(path, "/"+issuerDir+"/"):
			return l.serveIssuer, readMethods
		}
		return nil, ""
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// No path of the grammar has a byte that could be escaped.
		serve, methods := find(r.URL.EscapedPath())
		switch {
		case serve == nil:
			serve = func(http.ResponseWriter, *http.Request) error { return errNotFound }
		case !slices.Contains(strings.Split(methods, ", "), r.Method):
			w.Header().Set("Allow", methods)
			serve = func(http.ResponseWriter, *http.Request) error { return errMethod }
		}
		l.answer(w, r, serve)
	})
}

// readMethods are what reads are asked with; net/http cuts the body of an answer to HEAD.
const readMethods = http.MethodGet + ", " + http.MethodHead

// refusal is an answer that is the reader's own doing: status and fixed text.
type refusal struct {
	status     int
	text       string
	retryAfter int // seconds; 0: not said
}

func (r *refusal) Error() string { return r.text }

func badRequest(format string, args ...any) error {
	return &refusal{status: http.StatusBadRequest, text: fmt.Sprintf(format, args...)}
}

var (
	errNotFound = &refusal{status: http.StatusNotFound, text: "not in this log, or not yet published"}
	errMethod   = &refusal{status: http.StatusMethodNotAllowed, text: "this method isn't allowed here"}
)

// answer turns an error into a status: a refusal's own, 404 for what is not
// there, and for all else 500 with fixed text and the cause in the log only.
func (l *Log) answer(w http.ResponseWriter, r *http.Request, serve serving) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	err := serve(w, r)
	if err == nil {
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	var known *refusal
	switch {
	case errors.As(err, &known):
		if known.retryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(known.retryAfter))
		}
		http.Error(w, known.text, known.status)
	case errors.Is(err, os.ErrNotExist):
		http.Error(w, errNotFound.text, errNotFound.status)
	case r.Context().Err() != nil: // nobody reads it
	default:
		l.o.Logger.ErrorContext(r.Context(), "serving the log", slog.String("path", r.URL.Path), slog.Any("error", err))
		http.Error(w, "internal error", http.StatusInternalServerError)
	}
}

func (l *Log) serveCheckpoint(w http.ResponseWriter, r *http.Request) error {
	h, err := l.head(r.Context())
	if err != nil {
		return err
	}
	return write(w, "text/plain; charset=utf-8", cacheNever, h.raw)
}

func (l *Log) serveAbout(w http.ResponseWriter, _ *http.Request) error {
	raw, err := os.ReadFile(l.store.path(aboutName))
	if err != nil {
		return fmt.Errorf("reading whose log this is: %w", err)
	}
	return write(w, "application/json", cacheNever, raw)
}

func (l *Log) serveIssuer(w http.ResponseWriter, r *http.Request) error {
	name := strings.TrimPrefix(r.URL.Path, "/"+issuerDir+"/")
	raw, err := hex.DecodeString(name)
	if err != nil || len(raw) != 32 || name != strings.ToLower(name) {
		return errNotFound
	}
	der, err := l.issuers.get([32]byte(raw))
	if err != nil {
		return err
	}
	return write(w, "application/pkix-cert", cacheForever, der)
}

// serveTile serves what the published checkpoint covers. A partial tile is cut
// out of the present one, so a reader with an older checkpoint gets its tile even
// after the file has gone.
func (l *Log) serveTile(w http.ResponseWriter, r *http.Request) error {
	t, ok := parseTilePath(strings.TrimPrefix(r.URL.Path, "/"))
	if !ok {
		return errNotFound
	}
	h, err := l.head(r.Context())
	if err != nil {
		return err
	}
	if !t.within(h.size) {
		return errNotFound
	}
	data, err := l.store.tile(r.Context(), t, h.size)
	if err != nil {
		return err
	}
	if t.level == dataLevel {
		w.Header().Set("Vary", "Accept-Encoding")
		if acceptsGzip(r) {
			if data, err = l.packed.get(t, data); err != nil {
				return err
			}
			w.Header().Set("Content-Encoding", "gzip")
		}
	}
	return write(w, "application/octet-stream", cacheForever, data)
}

// tile reads the tile as it is in a log of the size given, cut to its width.
func (s store) tile(ctx context.Context, t tilePath, size uint64) ([]byte, error) {
	if t.level != dataLevel {
		level := uint64(t.level)
		data, err := s.ReadTile(ctx, level, t.index, layout.PartialTileSize(level, t.index, size))
		if want := int(t.width) * 32; err == nil && t.width > 0 && len(data) >= want {
			data = data[:want]
		}
		return data, err
	}
	data, err := s.ReadEntryBundle(ctx, t.index, layout.PartialTileSize(0, t.index, size))
	if err != nil || t.width == 0 {
		return data, err
	}
	leaves, err := parseBundle(data, t.index*layout.EntryBundleWidth)
	if err != nil {
		return nil, fmt.Errorf("data tile %d: %w", t.index, err)
	}
	if len(leaves) < int(t.width) {
		return nil, fmt.Errorf("data tile %d has %d entries, want %d", t.index, len(leaves), t.width)
	}
	end := 0
	for _, one := range leaves[:t.width] {
		end += len(one.raw)
	}
	return data[:end], nil
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

func compress(data []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = z.Write(data)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compressing a tile: %w", err)
	}
	return b.Bytes(), nil
}
