// Package read serves a log in its two forms, static-ct (c2sp.org/static-ct-api) and
// RFC 6962, out of its directory. Everything is answered from the published checkpoint
// and nothing beyond it. It writes nothing, so a log may be served while another
// goroutine adds to it, and for years after it has ended.
package read

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/transparency-dev/tessera/api/layout"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// Options are what an API reads from.
type Options struct {
	Dir     logdir.Dir
	Issuers *logdir.Issuers // of the directory
	// Head is the published checkpoint. All reads are answered from it and from nothing
	// beyond it.
	Head   func() (checkpoint.Head, error)
	Roots  func() [][]byte        // DER: what get-roots lists; nil: none
	Posts  map[string]HandlerFunc // what the log itself takes by POST, by path
	Prefix string                 // the path of the log's URL
	Logger *slog.Logger           // nil: nothing is logged
	Budget *Budget                // of all logs of the process; nil: one for this log alone
}

// API answers the reads of one log. It is safe for concurrent use.
type API struct {
	o      Options
	hashes hashIndex
}

// New makes the API of a log. It reads nothing yet.
func New(o Options) *API {
	if o.Roots == nil {
		o.Roots = func() [][]byte { return nil }
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if o.Budget == nil {
		o.Budget = NewBudget()
	}
	return &API{o: o}
}

// Cache lifetimes. What a tile or an issuer holds never changes; a checkpoint
// is the one thing that does.
const (
	cacheForever = "public, max-age=31536000, immutable"
	cacheNever   = "no-cache"
)

// Answers have to be taken within a time: a part that is always there, and what their
// bytes take at the least speed of an honest reader.
const (
	answerTime  = 10 * time.Second
	answerSpeed = 64 << 10 // bytes a second
)

// HandlerFunc serves one path with what it has of the budget. Its error becomes the
// answer: a *Refusal as it says, os.ErrNotExist as 404, all else as 500 with the cause
// in the log alone.
type HandlerFunc func(http.ResponseWriter, *http.Request, *Place) error

// Handler serves the log below its prefix, which http.StripPrefix has taken off:
// static-ct reads (checkpoint, tile/…, issuer/…, log.v3.json), RFC 6962 reads
// (ct/v1/get-…), and what the log itself takes by POST. Everything else is 404, another
// way to write one of these paths too: each thing has one. All of it is within the
// budget.
func (a *API) Handler() http.Handler { return a.handler(a.o.Posts, a.o.Budget.Enter) }

// Prefix is the path of the log's URL.
func (a *API) Prefix() string { return a.o.Prefix }

// Local serves the reads to this process itself, for which they are always there.
func (a *API) Local() http.Handler {
	return a.handler(nil, func(*http.Request) (*Place, error) { return nil, nil })
}

func (a *API) handler(posts map[string]HandlerFunc, enter func(*http.Request) (*Place, error)) http.Handler {
	reads := map[string]HandlerFunc{
		"/" + logdir.CheckpointName: a.serveCheckpoint,
		"/" + logdir.OwnerName:      a.serveOwner,
		ct.GetSTHPath:               a.query(cacheNever, a.getSTH),
		ct.GetSTHConsistencyPath:    a.query(cacheForever, a.getConsistency, "first", "second"),
		ct.GetProofByHashPath:       a.getProofByHash,
		ct.GetEntriesPath:           a.getEntries,
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
		a.answer(w, r, func() error {
			path := r.URL.EscapedPath()
			serve, methods := find(path)
			switch {
			case serve == nil, path != r.URL.Path: // no path of the grammar has a byte that needs escaping
				return errNotFound
			case !slices.Contains(strings.Split(methods, ", "), r.Method):
				w.Header().Set("Allow", methods)
				return errMethod
			}
			place, err := enter(r)
			if err != nil {
				return err
			}
			defer place.Leave()
			if methods == readMethods {
				LimitTime(w, 0)
			}
			return serve(w, r, place)
		})
	})
}

// LimitTime bounds from now on how long the reader may take for an answer of so many
// bytes. What can't be limited here has the limit of its server.
func LimitTime(w http.ResponseWriter, bytes int64) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime + time.Duration(bytes)*time.Second/answerSpeed))
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
func (a *API) answer(w http.ResponseWriter, r *http.Request, serve func() error) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	err := serve()
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

func (a *API) serveCheckpoint(w http.ResponseWriter, r *http.Request, _ *Place) error {
	h, err := a.o.Head()
	if err != nil {
		return err
	}
	return send(w, r, "text/plain; charset=utf-8", cacheNever, hashTag(h.Raw), bytes.NewReader(h.Raw))
}

func (a *API) serveOwner(w http.ResponseWriter, r *http.Request, _ *Place) error {
	raw, err := os.ReadFile(a.o.Dir.Path(logdir.OwnerName))
	if err != nil {
		return fmt.Errorf("reading whose log this is: %w", err)
	}
	return send(w, r, "application/json", cacheNever, hashTag(raw), bytes.NewReader(raw))
}

func (a *API) serveIssuer(w http.ResponseWriter, r *http.Request, _ *Place) error {
	name := strings.TrimPrefix(r.URL.Path, "/"+logdir.IssuerDir+"/")
	raw, err := hex.DecodeString(name)
	if err != nil || len(raw) != 32 || name != strings.ToLower(name) {
		return errNotFound
	}
	der, err := a.o.Issuers.Get([32]byte(raw))
	if err != nil {
		return err
	}
	return send(w, r, "application/pkix-cert", cacheForever, name, bytes.NewReader(der))
}

// serveTile serves what the published checkpoint covers, out of its file.
func (a *API) serveTile(w http.ResponseWriter, r *http.Request, p *Place) (err error) {
	t, ok := logdir.ParseTilePath(strings.TrimPrefix(r.URL.Path, "/"))
	if !ok {
		return errNotFound
	}
	h, err := a.o.Head()
	if err != nil {
		return err
	}
	if !t.Within(h.Size) {
		return errNotFound
	}
	key := gzipKey{a.o.Dir, t}
	packable := t.Level == logdir.DataLevel && acceptsGzip(r)
	if t.Level == logdir.DataLevel {
		w.Header().Set("Vary", "Accept-Encoding")
	}
	if packed := a.o.Budget.packed.find(key); packable && packed != nil {
		if err := p.spend(r.Context(), int64(len(packed))); err != nil {
			return err
		}
		return sendPacked(w, r, t, packed)
	}
	if err := p.compute(r.Context()); err != nil {
		return err
	}
	f, length, err := a.o.Dir.OpenTile(t, h.Size)
	p.idle()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := p.spend(r.Context(), length); err != nil {
		return err
	}
	tile := io.NewSectionReader(f, 0, length)
	// A partial tile is asked for again only while it is the newest.
	if packable && (t.Width == 0 || t.Index*layout.EntryBundleWidth+uint64(t.Width) == h.Size) {
		packed, err := a.o.Budget.pack(key, tile, length)
		if err != nil {
			return err
		}
		if packed != nil {
			return sendPacked(w, r, t, packed)
		}
		if _, err := tile.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	LimitTime(w, length)
	return send(w, r, "application/octet-stream", cacheForever, t.Name(), tile)
}

func sendPacked(w http.ResponseWriter, r *http.Request, t logdir.TilePath, packed []byte) error {
	LimitTime(w, int64(len(packed)))
	w.Header().Set("Content-Encoding", "gzip")
	return send(w, r, "application/octet-stream", cacheForever, t.Name()+"+gzip", bytes.NewReader(packed))
}

// send answers with something that is there, or with the part of it that is asked for,
// or that the reader has it already (RFC 9110 §13 and §14): tag names its bytes.
func send(w http.ResponseWriter, r *http.Request, contentType, cache, tag string, body io.ReadSeeker) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", cache)
	w.Header().Set("ETag", strconv.Quote(tag))
	http.ServeContent(w, r, "", time.Time{}, body)
	return nil
}

func hashTag(raw []byte) string { return fmt.Sprintf("%x", sha256.Sum256(raw)) }

// acceptsGzip reads Accept-Encoding (RFC 9110 §12.5.3), refusing gzip;q=0.
func acceptsGzip(r *http.Request) bool {
	for _, part := range strings.Split(r.Header.Get("Accept-Encoding"), ",") {
		coding, weight, _ := strings.Cut(strings.ToLower(strings.ReplaceAll(part, " ", "")), ";")
		if coding == "gzip" && (weight == "" || strings.Trim(strings.TrimPrefix(weight, "q="), "0.") != "") {
			return true
		}
	}
	return false
}

// OpenArchive serves a log that nothing is added to any more: its directory as the
// log left it, or a backup of it. It verifies whose log the options' directory holds, and
// its checkpoint; Issuers, Head and Prefix are set here. It writes nothing, and holds
// nothing open.
func OpenArchive(description ctlog.Description, o Options) (*API, error) {
	verifier, err := checkpoint.VerifierOf(description)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(description.URL)
	if err != nil {
		return nil, fmt.Errorf("the log's URL: %w", err)
	}
	if description.ID != sha256.Sum256(description.SPKI) {
		return nil, errors.New("the log's id is not its key's hash")
	}
	o.Issuers, o.Prefix = o.Dir.Issuers(), strings.TrimSuffix(u.Path, "/")
	var mu sync.Mutex
	var last checkpoint.Head // that was verified
	o.Head = func() (checkpoint.Head, error) {
		raw, err := os.ReadFile(o.Dir.Path(logdir.CheckpointName))
		if err != nil {
			return checkpoint.Head{}, fmt.Errorf("reading the checkpoint: %w", err)
		}
		mu.Lock()
		defer mu.Unlock()
		if last.Raw != nil && bytes.Equal(raw, last.Raw) { // else each read would cost a signature check
			return last, nil
		}
		head, err := checkpoint.Open(raw, verifier)
		if err == nil {
			last = head
		}
		return head, err
	}
	if _, err := o.Head(); err != nil {
		return nil, fmt.Errorf("the frozen log in %s: %w", o.Dir, err)
	}
	return New(o), nil
}

// Published reads the checkpoint in a log's directory and verifies it under the
// log's key, with nothing else of the log opened.
func Published(c ctlog.EmbeddedConfig, key crypto.PublicKey) (checkpoint.Head, error) {
	verifier, err := checkpoint.NewVerifier(c.Origin(), key)
	if err != nil {
		return checkpoint.Head{}, err
	}
	return logdir.Dir(c.Directory).OpenCheckpoint(verifier)
}
