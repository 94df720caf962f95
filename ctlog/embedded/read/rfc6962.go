package embedded

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"

	"github.com/transparency-dev/tessera/api/layout"
)

// The bodies of RFC 6962 §4.3 to §4.8. A []byte is base64 in JSON.
type (
	sthBody struct {
		TreeSize  uint64 `json:"tree_size"`
		Timestamp uint64 `json:"timestamp"`
		RootHash  []byte `json:"sha256_root_hash"`
		Signature []byte `json:"tree_head_signature"`
	}
	consistencyBody struct {
		Consistency [][]byte `json:"consistency"`
	}
	proofBody struct {
		LeafIndex uint64   `json:"leaf_index"`
		AuditPath [][]byte `json:"audit_path"`
	}
	entryBody struct {
		LeafInput []byte `json:"leaf_input"`
		ExtraData []byte `json:"extra_data"`
	}
	entriesBody struct {
		Entries []entryBody `json:"entries"`
	}
	entryAndProofBody struct {
		entryBody
		AuditPath [][]byte `json:"audit_path"`
	}
	rootsBody struct {
		Certificates [][]byte `json:"certificates"`
	}
)

// getSTH is RFC 6962 §4.3, from the same checkpoint that the static API serves:
// its note signature is the tree head's.
func (l *Log) getSTH(w http.ResponseWriter, r *http.Request) error {
	h, err := l.head(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, cacheNever, sthBody{TreeSize: h.size, Timestamp: h.timestamp, RootHash: h.root, Signature: h.signature})
}

// getConsistency is RFC 6962 §4.4.
func (l *Log) getConsistency(w http.ResponseWriter, r *http.Request) error {
	first, err := number(r, "first")
	if err != nil {
		return err
	}
	second, err := number(r, "second")
	if err != nil {
		return err
	}
	h, err := l.head(r.Context())
	if err != nil {
		return err
	}
	if first > second || second > h.size {
		return badRequest("want first <= second <= the published tree size, %d", h.size)
	}
	body := consistencyBody{Consistency: [][]byte{}}
	if first > 0 && first < second { // RFC 6962 §2.1.2: else the proof is empty
		if body.Consistency, err = l.store.consistency(r.Context(), first, second, h.size); err != nil {
			return err
		}
	}
	return writeJSON(w, cacheForever, body)
}

// getProofByHash is RFC 6962 §4.5.
func (l *Log) getProofByHash(w http.ResponseWriter, r *http.Request) error {
	hash, err := base64.StdEncoding.DecodeString(r.URL.Query().Get("hash"))
	if err != nil || len(hash) != 32 {
		return badRequest("hash: want the base64 of 32 bytes")
	}
	size, err := number(r, "tree_size")
	if err != nil {
		return err
	}
	h, err := l.head(r.Context())
	if err != nil {
		return err
	}
	if size == 0 || size > h.size {
		return badRequest("want 1 <= tree_size <= the published tree size, %d", h.size)
	}
	index, found, err := l.index.find(r.Context(), l.store, [32]byte(hash), h.size)
	if err != nil {
		return err
	}
	if !found || index >= size {
		return errNotFound
	}
	path, err := l.store.inclusion(r.Context(), index, size)
	if err != nil {
		return err
	}
	return writeJSON(w, cacheForever, proofBody{LeafIndex: index, AuditPath: orEmpty(path)})
}

// getEntries is RFC 6962 §4.6. An answer ends with a data tile, so it may hold
// fewer entries than were asked for.
func (l *Log) getEntries(w http.ResponseWriter, r *http.Request) error {
	start, err := number(r, "start")
	if err != nil {
		return err
	}
	end, err := number(r, "end")
	if err != nil {
		return err
	}
	h, err := l.head(r.Context())
	if err != nil {
		return err
	}
	if start > end || start >= h.size {
		return badRequest("want start <= end and start < the published tree size, %d", h.size)
	}
	tile := start / layout.EntryBundleWidth
	first := tile * layout.EntryBundleWidth
	end = min(end, h.size-1, first+layout.EntryBundleWidth-1)
	leaves, err := l.store.bundle(r.Context(), tile, h.size)
	if err != nil {
		return err
	}
	body := entriesBody{Entries: make([]entryBody, 0, end-start+1)}
	for _, one := range leaves[start-first : end-first+1] {
		e, err := l.entry(one)
		if err != nil {
			return err
		}
		body.Entries = append(body.Entries, e)
	}
	return writeJSON(w, cacheNever, body)
}

// getEntryAndProof is RFC 6962 §4.8.
func (l *Log) getEntryAndProof(w http.ResponseWriter, r *http.Request) error {
	index, err := number(r, "leaf_index")
	if err != nil {
		return err
	}
	size, err := number(r, "tree_size")
	if err != nil {
		return err
	}
	h, err := l.head(r.Context())
	if err != nil {
		return err
	}
	if index >= size || size > h.size {
		return badRequest("want leaf_index < tree_size <= the published tree size, %d", h.size)
	}
	path, err := l.store.inclusion(r.Context(), index, size)
	if err != nil {
		return err
	}
	leaves, err := l.store.bundle(r.Context(), index/layout.EntryBundleWidth, h.size)
	if err != nil {
		return err
	}
	e, err := l.entry(leaves[index%layout.EntryBundleWidth])
	if err != nil {
		return err
	}
	return writeJSON(w, cacheForever, entryAndProofBody{entryBody: e, AuditPath: orEmpty(path)})
}

// getRoots is RFC 6962 §4.7.
func (l *Log) getRoots(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, cacheNever, rootsBody{Certificates: orEmpty(l.acceptedRoots())})
}

// entry puts an entry into the form of get-entries, with its chain.
func (l *Log) entry(one leaf) (entryBody, error) {
	chain := make([][]byte, 0, len(one.fingerprints))
	for _, f := range one.fingerprints {
		der, err := l.issuers.get([32]byte(f))
		if errors.Is(err, os.ErrNotExist) { // ours, not the reader's: no 404
			err = fmt.Errorf("the issuer %x of an entry is missing", f)
		}
		if err != nil {
			return entryBody{}, err
		}
		chain = append(chain, der)
	}
	return entryBody{LeafInput: one.merkleTreeLeaf(), ExtraData: one.extraData(chain)}, nil
}

// number reads a decimal parameter that must be there once.
func number(r *http.Request, name string) (uint64, error) {
	values := r.URL.Query()[name]
	if len(values) != 1 {
		return 0, badRequest("%s: required, once", name)
	}
	n, err := strconv.ParseUint(values[0], 10, 63)
	if err != nil {
		return 0, badRequest("%s: want a decimal number", name)
	}
	return n, nil
}

func orEmpty(list [][]byte) [][]byte {
	if list == nil {
		return [][]byte{}
	}
	return list
}

func writeJSON(w http.ResponseWriter, cache string, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding an answer: %w", err)
	}
	return write(w, "application/json", cache, raw)
}
