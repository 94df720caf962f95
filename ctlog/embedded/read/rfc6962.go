package read

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"

	ct "github.com/google/certificate-transparency-go"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/transparency-dev/tessera/api/layout"
)

// rootsBody is RFC 6962 §4.7; a []byte is base64 in JSON.
type rootsBody struct {
	Certificates [][]byte `json:"certificates"`
}

// answerer makes the body of an answer from the published checkpoint and the
// numbers that were asked with.
type answerer func(ctx context.Context, head checkpoint.Head, numbers []uint64) (body any, err error)

// query is a read with decimal parameters, each of which must be there once.
func (a *API) query(cache string, answer answerer, parameters ...string) HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		numbers := make([]uint64, len(parameters))
		for i, name := range parameters {
			values := r.URL.Query()[name]
			if len(values) != 1 {
				return BadRequest("%s: required, once", name)
			}
			var err error
			if numbers[i], err = strconv.ParseUint(values[0], 10, 63); err != nil {
				return BadRequest("%s: want a decimal number", name)
			}
		}
		head, err := a.Head(r.Context())
		if err != nil {
			return err
		}
		body, err := answer(r.Context(), head, numbers)
		if err != nil {
			return err
		}
		return WriteJSON(w, cache, body)
	}
}

// getSTH is RFC 6962 §4.3, from the same checkpoint that the static API serves:
// its note signature is the tree head's.
func (a *API) getSTH(_ context.Context, head checkpoint.Head, _ []uint64) (any, error) {
	return ct.GetSTHResponse{TreeSize: head.Size, Timestamp: head.Timestamp, SHA256RootHash: head.Root, TreeHeadSignature: head.Signature}, nil
}

// getConsistency is RFC 6962 §4.4.
func (a *API) getConsistency(ctx context.Context, head checkpoint.Head, numbers []uint64) (any, error) {
	first, second := numbers[0], numbers[1]
	if first > second || second > head.Size {
		return nil, BadRequest("want first <= second <= the published tree size, %d", head.Size)
	}
	if first == 0 || first == second { // RFC 6962 §2.1.2: the proof is empty
		return ct.GetSTHConsistencyResponse{Consistency: [][]byte{}}, nil
	}
	path, err := a.o.Dir.Consistency(ctx, first, second, head.Size)
	return ct.GetSTHConsistencyResponse{Consistency: path}, err
}

// getProofByHash is RFC 6962 §4.5.
func (a *API) getProofByHash(w http.ResponseWriter, r *http.Request) error {
	hash, err := base64.StdEncoding.DecodeString(r.URL.Query().Get("hash"))
	if err != nil || len(hash) != 32 {
		return BadRequest("hash: want the base64 of 32 bytes")
	}
	return a.query(cacheForever, func(ctx context.Context, head checkpoint.Head, numbers []uint64) (any, error) {
		size := numbers[0]
		if size == 0 || size > head.Size {
			return nil, BadRequest("want 1 <= tree_size <= the published tree size, %d", head.Size)
		}
		index, found, err := a.hashes.find(ctx, a.o.Dir, [32]byte(hash), head.Size)
		if err != nil {
			return nil, err
		}
		if !found || index >= size {
			return nil, errNotFound
		}
		path, err := a.o.Dir.Inclusion(ctx, index, size)
		return ct.GetProofByHashResponse{LeafIndex: int64(index), AuditPath: orEmpty(path)}, err
	}, "tree_size")(w, r)
}

// getEntries is RFC 6962 §4.6. An answer ends with a data tile, so it may hold
// fewer entries than were asked for.
func (a *API) getEntries(ctx context.Context, head checkpoint.Head, numbers []uint64) (any, error) {
	start, end := numbers[0], numbers[1]
	if start > end || start >= head.Size {
		return nil, BadRequest("want start <= end and start < the published tree size, %d", head.Size)
	}
	tile := start / layout.EntryBundleWidth
	first := tile * layout.EntryBundleWidth
	end = min(end, head.Size-1, first+layout.EntryBundleWidth-1)
	leaves, err := a.o.Dir.Bundle(ctx, tile, head.Size)
	if err != nil {
		return nil, err
	}
	body := ct.GetEntriesResponse{Entries: make([]ct.LeafEntry, 0, end-start+1)}
	for _, leaf := range leaves[start-first : end-first+1] {
		e, err := a.entry(leaf)
		if err != nil {
			return nil, err
		}
		body.Entries = append(body.Entries, e)
	}
	return body, nil
}

// getEntryAndProof is RFC 6962 §4.8.
func (a *API) getEntryAndProof(ctx context.Context, head checkpoint.Head, numbers []uint64) (any, error) {
	index, size := numbers[0], numbers[1]
	if index >= size || size > head.Size {
		return nil, BadRequest("want leaf_index < tree_size <= the published tree size, %d", head.Size)
	}
	path, err := a.o.Dir.Inclusion(ctx, index, size)
	if err != nil {
		return nil, err
	}
	leaves, err := a.o.Dir.Bundle(ctx, index/layout.EntryBundleWidth, head.Size)
	if err != nil {
		return nil, err
	}
	e, err := a.entry(leaves[index%layout.EntryBundleWidth])
	return ct.GetEntryAndProofResponse{LeafInput: e.LeafInput, ExtraData: e.ExtraData, AuditPath: orEmpty(path)}, err
}

// getRoots is RFC 6962 §4.7.
func (a *API) getRoots(w http.ResponseWriter, _ *http.Request) error {
	return WriteJSON(w, cacheNever, rootsBody{Certificates: orEmpty(a.o.Roots())})
}

// entry puts an entry into the form of get-entries, with its chain.
func (a *API) entry(leaf logdir.Leaf) (ct.LeafEntry, error) {
	chain := make([][]byte, 0, len(leaf.Fingerprints))
	for _, f := range leaf.Fingerprints {
		der, err := a.o.Issuers.Get([32]byte(f))
		if errors.Is(err, os.ErrNotExist) { // ours, not the reader's: no 404
			err = fmt.Errorf("the issuer %x of an entry is missing", f)
		}
		if err != nil {
			return ct.LeafEntry{}, err
		}
		chain = append(chain, der)
	}
	return ct.LeafEntry{LeafInput: leaf.MerkleTreeLeaf(), ExtraData: leaf.ExtraData(chain)}, nil
}

func orEmpty(list [][]byte) [][]byte {
	if list == nil {
		return [][]byte{}
	}
	return list
}

// WriteJSON answers with a body in JSON.
func WriteJSON(w http.ResponseWriter, cache string, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding an answer: %w", err)
	}
	return write(w, "application/json", cache, raw)
}
