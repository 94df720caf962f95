package inclusion

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
)

// brokenError is what no log may answer: a contradiction of its own signature.
type brokenError struct{ what string }

func (e *brokenError) Error() string { return e.what }

// errAbsent is a 404: not there, or not yet.
var errAbsent = errors.New("the log answered 404")

// reader reads one log: what carries a leaf index through the static-ct API, all
// else through RFC 6962.
type reader struct {
	description ctlog.Description
	url         string
	client      *http.Client
	verifier    note.Verifier // of checkpoints and signed tree heads
}

func newReader(l Log) (reader, error) {
	verifier, err := checkpoint.VerifierOf(l.Description)
	if err != nil {
		return reader{}, err
	}
	return reader{
		description: l.Description, url: cmp.Or(strings.TrimSuffix(l.URL, "/"), l.Description.URL),
		client: cmp.Or(l.Client, http.DefaultClient), verifier: verifier,
	}, nil
}

// get fetches a path below the log's URL: at most limit bytes.
func (r *reader) get(ctx context.Context, path string, limit int64) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", userAgent)
	response, err := r.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", path, err)
	case response.StatusCode == http.StatusNotFound:
		return nil, errAbsent
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("reading %s: the log answered %d", path, response.StatusCode)
	case int64(len(body)) > limit:
		return nil, fmt.Errorf("reading %s: more than %d bytes", path, limit)
	}
	return body, nil
}

// look is one reading of a log: the heads are fetched once, tiles as needed.
type look struct {
	*reader
	checkpoint, sth *checkpoint.Head
	tiles           map[string]*tile
}

func (r *reader) look() *look { return &look{reader: r, tiles: make(map[string]*tile)} }

// readCheckpoint fetches and verifies the checkpoint, once.
func (l *look) readCheckpoint(ctx context.Context) error {
	return l.readHead(ctx, &l.checkpoint, "the checkpoint", "/checkpoint", checkpoint.Open)
}

// readSTH fetches and verifies the signed tree head (RFC 6962 §4.3), once.
func (l *look) readSTH(ctx context.Context) error {
	return l.readHead(ctx, &l.sth, "the signed tree head", "/ct/v1/get-sth", checkpoint.FromSTH)
}

func (l *look) readHead(ctx context.Context, known **checkpoint.Head, what, path string, open func([]byte, note.Verifier) (checkpoint.Head, error)) error {
	if *known != nil {
		return nil
	}
	raw, err := l.get(ctx, path, maxBody)
	if err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	head, err := open(raw, l.verifier)
	if err == nil {
		*known = &head
	}
	return err
}

// Head is what a log says of itself under its key.
type Head struct {
	Size   uint64
	Signed time.Time
	Static bool // read through the static-ct API; else through RFC 6962
}

// ReadHead fetches the log's checkpoint or, where it has none, its signed tree head,
// from where the monitor reads, and verifies it under the log's key. The error says
// what failed: the way to the log, or the signature.
func ReadHead(ctx context.Context, l Log) (Head, error) {
	r, err := newReader(l)
	if err != nil {
		return Head{}, err
	}
	look := r.look()
	err = look.readCheckpoint(ctx)
	if err == nil {
		return Head{Size: look.checkpoint.Size, Signed: look.checkpoint.Signed(), Static: true}, nil
	}
	if !errors.Is(err, errAbsent) {
		return Head{}, err
	}
	if err := look.readSTH(ctx); err != nil {
		return Head{}, err
	}
	return Head{Size: look.sth.Size, Signed: look.sth.Signed()}, nil
}

// holds reports whether the log shows the entry, with a proof up to a tree head
// that it signed. The error is a *brokenError when it shows something else.
func (l *look) holds(ctx context.Context, p promise) (bool, error) {
	if p.Index != nil {
		return l.holdsAt(ctx, p.Leaf, *p.Index)
	}
	if err := l.readSTH(ctx); err != nil {
		return false, err
	}
	if l.sth.Size == 0 {
		return false, nil
	}
	var answer struct {
		Index uint64   `json:"leaf_index"`
		Path  [][]byte `json:"audit_path"`
	}
	raw, err := l.get(ctx, "/ct/v1/get-proof-by-hash?hash="+url.QueryEscape(base64.StdEncoding.EncodeToString(p.Leaf[:]))+
		"&tree_size="+strconv.FormatUint(l.sth.Size, 10), maxBody)
	if errors.Is(err, errAbsent) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &answer)
	}
	if err != nil {
		return false, fmt.Errorf("asking for a proof: %w", err)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, answer.Index, l.sth.Size, p.Leaf[:], answer.Path, l.sth.Root); err != nil {
		return false, &brokenError{"the log's proof for the entry does not hold: " + err.Error()}
	}
	return true, nil
}

// holdsAt is holds through the static-ct API.
func (l *look) holdsAt(ctx context.Context, leaf [32]byte, index uint64) (bool, error) {
	if err := l.readCheckpoint(ctx); err != nil {
		return false, err
	}
	if index >= l.checkpoint.Size {
		return false, nil
	}
	nodes, err := proof.Inclusion(index, l.checkpoint.Size)
	if err != nil {
		return false, fmt.Errorf("planning a proof: %w", err)
	}
	hashes := make([][]byte, 0, len(nodes.IDs))
	for _, id := range nodes.IDs {
		h, err := l.node(ctx, id.Level, id.Index)
		if err != nil {
			return false, err
		}
		hashes = append(hashes, h)
	}
	path, err := nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
	if err != nil {
		return false, fmt.Errorf("making a proof: %w", err)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, l.checkpoint.Size, leaf[:], path, l.checkpoint.Root); err != nil {
		return false, &brokenError{fmt.Sprintf("the log of %d entries has another entry at %d than its SCT says, or tiles that don't add up", l.checkpoint.Size, index)}
	}
	return true, nil
}

// maxTiles is how many tiles are in memory: some 16 MB with the rows above them.
const maxTiles = 1 << 10

// node is the hash over the 2^level entries from index·2^level on, all of them in the tree.
func (l *look) node(ctx context.Context, level uint, index uint64) ([]byte, error) {
	tileLevel, tileIndex, row, place := layout.NodeCoordsToTileAddress(uint64(level), index)
	t, err := l.tile(ctx, tileLevel, tileIndex)
	if err != nil {
		return nil, err
	}
	hashes := t.row(row)
	if uint64(len(hashes)) < (place+1)*sha256.Size {
		return nil, fmt.Errorf("tile %d of level %d is cut short", tileIndex, tileLevel)
	}
	return hashes[place*sha256.Size:][:sha256.Size], nil
}

// tile is a hash tile with the rows of the tree above its own, as far as they
// were asked for: of the many proofs of one look, each would hash most of a tile, as
// Tessera's client does.
type tile struct{ rows [layout.TileHeight][]byte }

// row holds the hashes of the level'th row, the tile's own being 0, of all
// subtrees that are whole.
func (t *tile) row(level uint) []byte {
	if level == 0 || t.rows[level] != nil {
		return t.rows[level]
	}
	below := t.row(level - 1)
	row := make([]byte, 0, len(below)/2)
	pair := [1 + 2*sha256.Size]byte{rfc6962.RFC6962NodeHashPrefix}
	for ; len(below) >= 2*sha256.Size; below = below[2*sha256.Size:] {
		copy(pair[1:], below)
		hash := sha256.Sum256(pair[:])
		row = append(row, hash[:]...)
	}
	t.rows[level] = row
	return row
}

// tile fetches a hash tile as wide as the tree makes it.
func (l *look) tile(ctx context.Context, level, index uint64) (*tile, error) {
	path := "/" + layout.TilePath(level, index, layout.PartialTileSize(level, index, l.checkpoint.Size))
	if known := l.tiles[path]; known != nil {
		return known, nil
	}
	data, err := l.get(ctx, path, layout.TileWidth*sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(l.tiles) >= maxTiles { // a log chooses the indices of its SCTs, and so the tiles that are read
		clear(l.tiles)
	}
	l.tiles[path] = &tile{rows: [layout.TileHeight][]byte{data}}
	return l.tiles[path], nil
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
