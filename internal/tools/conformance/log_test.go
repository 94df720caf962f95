package conformance

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/jsonclient"
	"github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/crypto/cryptobyte"
)

// testCTClient reads the log as a monitor of RFC 6962 logs does: the signed
// tree head, every entry and a proof that each is in the tree.
func testCTClient(t *testing.T, m *mayfly, _ *timestampAuthority) { readAll(t, m, 1) }

// readAll reads every entry, and has every nth of them proved.
func readAll(t *testing.T, m *mayfly, nth int64) {
	t.Helper()
	reader, err := client.New(strings.TrimSuffix(m.CTLog, "/"), http.DefaultClient, jsonclient.Options{PublicKeyDER: m.logKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	head := headWith(t, reader, m.leaf)
	roots, err := reader.GetAcceptedRoots(t.Context())
	if err != nil || len(roots) == 0 {
		t.Fatalf("accepted roots: %d, %v", len(roots), err)
	}
	var next int64
	for next < int64(head.TreeSize) {
		entries, err := reader.GetEntries(t.Context(), next, int64(head.TreeSize)-1)
		if err != nil || len(entries) == 0 {
			t.Fatalf("entries from %d: %d, %v", next, len(entries), err)
		}
		for _, entry := range entries {
			if entry.Index != next || entry.Precert == nil {
				t.Fatalf("entry %d: index %d, precertificate %t", next, entry.Index, entry.Precert != nil)
			}
			if next%nth == 0 {
				testInclusion(t, reader, head, entry)
			}
			next++
		}
	}
	t.Logf("%d entries", head.TreeSize)
}

// headWith waits until the log has signed a tree with this leaf: what was logged
// is published a little later.
func headWith(t *testing.T, reader *client.LogClient, leaf uint64) *ct.SignedTreeHead {
	t.Helper()
	deadline := time.After(startWithin)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		head, err := reader.GetSTH(t.Context()) // verifies the log's signature
		if err != nil {
			t.Fatal(err)
		}
		if head.TreeSize > leaf {
			return head
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("leaf %d is not in a signed tree after %v: size %d", leaf, startWithin, head.TreeSize)
		}
	}
}

func testInclusion(t *testing.T, reader *client.LogClient, head *ct.SignedTreeHead, entry ct.LogEntry) {
	t.Helper()
	hash, err := ct.LeafHashForLeaf(&entry.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := reader.GetProofByHash(t.Context(), hash[:], head.TreeSize)
	if err != nil {
		t.Fatal(err)
	}
	if answer.LeafIndex != entry.Index {
		t.Errorf("proof of entry %d is of %d", entry.Index, answer.LeafIndex)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(entry.Index), head.TreeSize,
		hash[:], answer.AuditPath, head.SHA256RootHash[:]); err != nil {
		t.Errorf("entry %d: %v", entry.Index, err)
	}
}

// testFsck lets Tessera's own check recompute every tile and the root of the
// static-ct log from its entries, over HTTP.
func testFsck(t *testing.T, m *mayfly, _ *timestampAuthority) {
	tiles := tileReader{base: m.CTLog}
	checkpoint, err := tiles.ReadCheckpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	origin, _, _ := strings.Cut(string(checkpoint), "\n")
	key, err := x509.ParsePKIXPublicKey(m.logKey(t))
	if err != nil {
		t.Fatal(err)
	}
	logKey, ok := key.(*ecdsa.PublicKey)
	if !ok {
		t.Fatalf("log key is a %T", key)
	}
	name, err := note.RFC6962VerifierString(origin, logKey)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewRFC6962Verifier(name)
	if err != nil {
		t.Fatal(err)
	}
	check := fsck.New(origin, verifier, tiles, staticCTLeafHashes, fsck.Opts{})
	if err := check.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Log(check.Status())
}

// tileReader reads a static-ct log's resources (c2sp.org/static-ct-api).
type tileReader struct{ base string }

func (r tileReader) ReadCheckpoint(ctx context.Context) ([]byte, error) {
	return r.read(ctx, layout.CheckpointPath)
}

func (r tileReader) ReadTile(ctx context.Context, level, index uint64, partial uint8) ([]byte, error) {
	return r.read(ctx, layout.TilePath(level, index, partial))
}

// ReadEntryBundle differs from tlog-tiles in its path alone.
func (r tileReader) ReadEntryBundle(ctx context.Context, index uint64, partial uint8) ([]byte, error) {
	return r.read(ctx, "tile/data/"+layout.NWithSuffix(0, index, partial))
}

// read answers with os.ErrNotExist for a 404, as fsck expects of a Fetcher.
func (r tileReader) read(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(r.base, "/")+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return io.ReadAll(response.Body)
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", path, os.ErrNotExist)
	default:
		return nil, fmt.Errorf("%s: %s", path, response.Status)
	}
}

var errBundle = errors.New("malformed entry bundle")

// staticCTLeafHashes parses a bundle of TileLeaf structures (c2sp.org/static-ct-api,
// "Log Entries") and hashes the RFC 6962 §3.4 MerkleTreeLeaf of each.
func staticCTLeafHashes(bundle []byte) ([][]byte, error) {
	var hashes [][]byte
	rest := cryptobyte.String(bundle)
	for !rest.Empty() {
		var (
			timestamp                      uint64
			entryType                      uint16
			issuer, signed                 cryptobyte.String
			extensions, precertificate, fp cryptobyte.String
		)
		if !rest.ReadUint64(&timestamp) || !rest.ReadUint16(&entryType) || entryType > uint16(ct.PrecertLogEntryType) {
			return nil, errBundle
		}
		isPrecertificate := entryType == uint16(ct.PrecertLogEntryType)
		if isPrecertificate && !rest.ReadBytes((*[]byte)(&issuer), len(ct.SHA256Hash{})) {
			return nil, errBundle
		}
		if !rest.ReadUint24LengthPrefixed(&signed) || !rest.ReadUint16LengthPrefixed(&extensions) {
			return nil, errBundle
		}
		if isPrecertificate && !rest.ReadUint24LengthPrefixed(&precertificate) {
			return nil, errBundle
		}
		if !rest.ReadUint16LengthPrefixed(&fp) {
			return nil, errBundle
		}

		leaf := cryptobyte.NewBuilder(nil)
		leaf.AddUint8(uint8(ct.V1))
		leaf.AddUint8(uint8(ct.TimestampedEntryLeafType))
		leaf.AddUint64(timestamp)
		leaf.AddUint16(entryType)
		leaf.AddBytes(issuer)
		leaf.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(signed) })
		leaf.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(extensions) })
		encoded, err := leaf.Bytes()
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(encoded))
	}
	return hashes, nil
}

// leafHash is the hash of an entry, in hexadecimal.
func (m *mayfly) leafHash(t *testing.T, index int64) string {
	t.Helper()
	reader, err := client.New(strings.TrimSuffix(m.CTLog, "/"), http.DefaultClient, jsonclient.Options{PublicKeyDER: m.logKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := reader.GetEntries(t.Context(), index, index)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := ct.LeafHashForLeaf(&entries[0].Leaf)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(hash[:])
}
