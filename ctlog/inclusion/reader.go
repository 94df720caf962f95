package inclusion

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	formats "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// brokenError is what no log may answer: a contradiction of its own signature.
type brokenError struct{ what string }

func (e *brokenError) Error() string { return e.what }

// errAbsent is a 404: not there, or not yet.
var errAbsent = errors.New("the log answered 404")

// reader reads one log: what carries a leaf index through the static-ct API, all
// else through RFC 6962.
type reader struct {
	about    ctlog.Description
	url      string
	client   *http.Client
	key      *ecdsa.PublicKey
	verifier note.Verifier // of checkpoints
}

func newReader(l Log) (reader, error) {
	key, err := ctlog.ParseKey(l.About.SPKI)
	if err != nil {
		return reader{}, err
	}
	name, err := url.Parse(l.About.URL)
	if err != nil {
		return reader{}, fmt.Errorf("its URL: %w", err)
	}
	text, err := formats.RFC6962VerifierString(name.Host+name.Path, key) // c2sp.org/static-ct-api: the origin
	if err != nil {
		return reader{}, fmt.Errorf("describing the log's key: %w", err)
	}
	verifier, err := formats.NewRFC6962Verifier(text)
	if err != nil {
		return reader{}, fmt.Errorf("describing the log's key: %w", err)
	}
	r := reader{about: l.About, url: strings.TrimSuffix(l.URL, "/"), client: l.Client, key: key, verifier: verifier}
	if r.url == "" {
		r.url = l.About.URL
	}
	if r.client == nil {
		r.client = http.DefaultClient
	}
	return r, nil
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

// tree is a tree head that the log signed.
type tree struct {
	size   uint64
	root   []byte
	signed time.Time
}

// look is one reading of a log: the heads are fetched once, tiles as needed.
type look struct {
	*reader
	checkpoint, sth *tree
	tiles           map[string]*tile
}

func (r *reader) look() *look { return &look{reader: r, tiles: make(map[string]*tile)} }

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
	head, err := r.look().readCheckpoint(ctx)
	if err == nil {
		return Head{Size: head.size, Signed: head.signed, Static: true}, nil
	}
	if !errors.Is(err, errAbsent) {
		return Head{}, err
	}
	if head, err = r.look().readSTH(ctx); err != nil {
		return Head{}, err
	}
	return Head{Size: head.size, Signed: head.signed}, nil
}

// holds reports whether the log shows the entry, with a proof up to a tree head
// that it signed. The error is a *brokenError when it shows something else.
func (l *look) holds(ctx context.Context, p promise) (bool, error) {
	if p.index != nil {
		return l.holdsAt(ctx, p.leaf, *p.index)
	}
	if l.sth == nil {
		head, err := l.readSTH(ctx)
		if err != nil {
			return false, err
		}
		l.sth = &head
	}
	if l.sth.size == 0 {
		return false, nil
	}
	var answer struct {
		Index uint64   `json:"leaf_index"`
		Path  [][]byte `json:"audit_path"`
	}
	raw, err := l.get(ctx, "/ct/v1/get-proof-by-hash?hash="+url.QueryEscape(base64.StdEncoding.EncodeToString(p.leaf[:]))+
		"&tree_size="+strconv.FormatUint(l.sth.size, 10), maxBody)
	if errors.Is(err, errAbsent) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &answer)
	}
	if err != nil {
		return false, fmt.Errorf("asking for a proof: %w", err)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, answer.Index, l.sth.size, p.leaf[:], answer.Path, l.sth.root); err != nil {
		return false, &brokenError{"the log's proof for the entry does not hold: " + err.Error()}
	}
	return true, nil
}

// holdsAt is holds through the static-ct API.
func (l *look) holdsAt(ctx context.Context, leaf [32]byte, index uint64) (bool, error) {
	if l.checkpoint == nil {
		head, err := l.readCheckpoint(ctx)
		if err != nil {
			return false, err
		}
		l.checkpoint = &head
	}
	if index >= l.checkpoint.size {
		return false, nil
	}
	nodes, err := proof.Inclusion(index, l.checkpoint.size)
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
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, l.checkpoint.size, leaf[:], path, l.checkpoint.root); err != nil {
		return false, &brokenError{fmt.Sprintf("the log of %d entries has another entry at %d than its SCT says, or tiles that don't add up", l.checkpoint.size, index)}
	}
	return true, nil
}

// Tiles have eight levels of the tree (c2sp.org/tlog-tiles).
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	maxTiles   = 1 << 10 // in memory: some 16 MB with the rows above them
)

// node is the hash over the 2^level entries from index·2^level on, all of them in the tree.
func (l *look) node(ctx context.Context, level uint, index uint64) ([]byte, error) {
	tileLevel, rest := level/tileHeight, level%tileHeight
	number := (index << rest) / tileWidth
	t, err := l.tile(ctx, tileLevel, number)
	if err != nil {
		return nil, err
	}
	row, place := t.row(rest), index%(tileWidth>>rest)
	if uint64(len(row)) < (place+1)*sha256.Size {
		return nil, fmt.Errorf("tile %d of level %d is cut short", number, tileLevel)
	}
	return row[place*sha256.Size:][:sha256.Size], nil
}

// tile is a hash tile with the rows of the tree above its own, as far as they
// were asked for: of the many proofs of one look, each would hash most of a tile.
type tile struct{ rows [tileHeight][]byte }

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
func (l *look) tile(ctx context.Context, level uint, index uint64) (*tile, error) {
	path := "/tile/" + strconv.FormatUint(uint64(level), 10) + "/" + tileName(index)
	if width := (l.checkpoint.size >> (tileHeight * level)) - index*tileWidth; width < tileWidth {
		path += ".p/" + strconv.FormatUint(width, 10)
	}
	if known := l.tiles[path]; known != nil {
		return known, nil
	}
	data, err := l.get(ctx, path, tileWidth*sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(l.tiles) >= maxTiles { // a log chooses the indices of its SCTs, and so the tiles that are read
		clear(l.tiles)
	}
	l.tiles[path] = &tile{rows: [tileHeight][]byte{data}}
	return l.tiles[path], nil
}

// tileName writes an index in groups of three digits (c2sp.org/tlog-tiles): x001/x234/067.
func tileName(index uint64) string {
	name := fmt.Sprintf("%03d", index%1000)
	for index /= 1000; index > 0; index /= 1000 {
		name = fmt.Sprintf("x%03d/%s", index%1000, name)
	}
	return name
}

func (l *look) readCheckpoint(ctx context.Context) (tree, error) {
	raw, err := l.get(ctx, "/checkpoint", maxBody)
	if err != nil {
		return tree{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	n, err := note.Open(raw, note.VerifierList(l.verifier))
	if err != nil {
		return tree{}, fmt.Errorf("the checkpoint is not signed by the log: %w", err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) < 4 || lines[0] != l.verifier.Name() {
		return tree{}, errors.New("the checkpoint is not this log's")
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return tree{}, errors.New("the checkpoint's size is malformed")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size {
		return tree{}, errors.New("the checkpoint's root is malformed")
	}
	at, err := signedAt(n.Sigs[0])
	if err != nil {
		return tree{}, err
	}
	return tree{size: size, root: root, signed: at}, nil
}

// signedAt is the time in an RFC6962NoteSignature (c2sp.org/static-ct-api): behind
// the four bytes of the key's hash.
func signedAt(s note.Signature) (time.Time, error) {
	raw, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(raw) < 12 {
		return time.Time{}, errors.New("the checkpoint's signature is malformed")
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(raw[4:]))), nil
}

// readSTH is RFC 6962 §4.3.
func (l *look) readSTH(ctx context.Context) (tree, error) {
	var body struct {
		Size      uint64 `json:"tree_size"`
		Timestamp uint64 `json:"timestamp"`
		Root      []byte `json:"sha256_root_hash"`
		Signature []byte `json:"tree_head_signature"`
	}
	raw, err := l.get(ctx, "/ct/v1/get-sth", maxBody)
	if err == nil {
		err = json.Unmarshal(raw, &body)
	}
	if err != nil {
		return tree{}, fmt.Errorf("reading the signed tree head: %w", err)
	}
	head := tree{size: body.Size, root: body.Root, signed: time.UnixMilli(int64(body.Timestamp))} // a time beyond int64 only fails to look right
	if err := verifyTreeHead(l.key, body.Timestamp, head, body.Signature); err != nil {
		return tree{}, err
	}
	return head, nil
}

// verifyTreeHead verifies a DigitallySigned (RFC 5246 §4.7) over a tree head (RFC 6962 §3.5).
func verifyTreeHead(key *ecdsa.PublicKey, timestamp uint64, t tree, signed []byte) error {
	sha256WithECDSA := []byte{4, 3} // RFC 5246 §7.4.1.4.1
	if len(t.root) != sha256.Size || len(signed) < 4 || !bytes.Equal(signed[:2], sha256WithECDSA) ||
		int(binary.BigEndian.Uint16(signed[2:])) != len(signed)-4 {
		return errors.New("the signed tree head is malformed")
	}
	message := []byte{0, 1} // version v1, signature type tree_hash
	message = binary.BigEndian.AppendUint64(message, timestamp)
	message = binary.BigEndian.AppendUint64(message, t.size)
	digest := sha256.Sum256(append(message, t.root...))
	if !ecdsa.VerifyASN1(key, digest[:], signed[4:]) {
		return errors.New("the tree head is not signed by the log")
	}
	return nil
}
