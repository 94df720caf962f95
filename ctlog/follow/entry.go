package follow

import (
	"bytes"
	"context"
	"crypto/x509"
	encoding "encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ctlog/remote"
)

// X509 is the certificate of an entry; of a precertificate it has no signature.
func (e Entry) X509() (*x509.Certificate, error) {
	if e.Precert {
		return x509.ParseCertificate(unsigned(e.Certificate))
	}
	return x509.ParseCertificate(e.Certificate)
}

// unsigned makes a certificate of a TBSCertificate, with a signature of nobody: it is
// RFC 5280 §4.1's around it, with the algorithm that the TBSCertificate names.
func unsigned(tbs []byte) []byte {
	var fields, algorithm cryptobyte.String
	input := cryptobyte.String(tbs)
	if !input.ReadASN1(&fields, asn1.SEQUENCE) ||
		!fields.SkipOptionalASN1(asn1.Tag(0).Constructed().ContextSpecific()) || // version
		!fields.SkipASN1(asn1.INTEGER) || !fields.ReadASN1Element(&algorithm, asn1.SEQUENCE) {
		return nil
	}
	out, _ := encoding.Marshal([]encoding.RawValue{{FullBytes: tbs}, {FullBytes: algorithm}, {FullBytes: []byte{byte(asn1.BIT_STRING), 1, 0}}})
	return out
}

// Shown is an entry as its log shows it, proved to be in the tree that the log signed last.
type Shown struct {
	Entry
	// Submitted is the certificate's DER, or the precertificate's. The tree doesn't commit
	// to a precertificate: its serial number and key were compared; nil where they differ.
	Submitted []byte
	Size      uint64    // of the tree
	Signed    time.Time // when the log signed it
}

// Show reads one entry of a log that is followed, and verifies the proof for it.
func (f *Follower) Show(ctx context.Context, log [32]byte, index uint64) (Shown, error) {
	f.mu.Lock()
	known := f.logs[log]
	f.mu.Unlock()
	if known == nil {
		return Shown{}, errors.New("the log isn't followed any more")
	}
	head, err := known.Head(ctx)
	if err != nil {
		return Shown{}, err
	}
	if index >= head.Size {
		return Shown{}, fmt.Errorf("the log has %d entries, and none of number %d", head.Size, index)
	}
	read := known.entryAndProof
	if head.Static {
		read = known.leafAndPath
	}
	leaf, precertificate, path, err := read(ctx, index, head)
	if err != nil {
		return Shown{}, err
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, head.Size, rfc6962.DefaultHasher.HashLeaf(leaf), path, head.Root); err != nil {
		return Shown{}, fmt.Errorf("the log shows an entry that isn't the one of its tree: %w", err)
	}
	s := Shown{Size: head.Size, Signed: head.Signed()}
	if s.Entry, err = parseLeaf(leaf); err != nil {
		return Shown{}, err
	}
	s.Index, s.Submitted = index, s.Certificate
	if s.Precert {
		s.Submitted = nil
		final, err := s.X509()
		submitted, other := x509.ParseCertificate(precertificate)
		if err == nil && other == nil && final.SerialNumber.Cmp(submitted.SerialNumber) == 0 && bytes.Equal(final.RawSubjectPublicKeyInfo, submitted.RawSubjectPublicKeyInfo) {
			s.Submitted = precertificate
		}
	}
	return s, nil
}

// leafAndPath reads an entry and its proof through the static-ct API.
func (s *source) leafAndPath(ctx context.Context, index uint64, head remote.Head) (leaf, precertificate []byte, path [][]byte, err error) {
	tile, err := s.tile(ctx, index/layout.EntryBundleWidth, head.Size)
	if err != nil {
		return nil, nil, nil, err
	}
	var failed error
	builder, err := s.proofs(ctx, head.Size, &failed)
	if err == nil {
		path, err = builder.InclusionProof(ctx, index)
	}
	one := tile[index%layout.EntryBundleWidth]
	return one.MerkleTreeLeaf(), one.Precertificate, path, errors.Join(err, failed)
}

// entryAndProof reads an entry and its proof through the API of RFC 6962.
func (s *source) entryAndProof(ctx context.Context, index uint64, head remote.Head) (leaf, precertificate []byte, path [][]byte, err error) {
	entries, err := s.entries(ctx, index, index+1, maxTile)
	if err != nil {
		return nil, nil, nil, err
	}
	leaf = entries[0].LeafInput
	extra, first := cryptobyte.String(entries[0].ExtraData), cryptobyte.String(nil)
	_ = extra.ReadUint24LengthPrefixed(&first) // of a certificate it is the chain, which nobody reads
	hash := base64.StdEncoding.EncodeToString(rfc6962.DefaultHasher.HashLeaf(leaf))
	raw, err := s.Get(ctx, fmt.Sprintf("/ct/v1/get-proof-by-hash?hash=%s&tree_size=%d", url.QueryEscape(hash), head.Size), remote.MaxAnswer)
	var proved ct.GetProofByHashResponse
	if err == nil {
		err = json.Unmarshal(raw, &proved)
	}
	return leaf, first, proved.AuditPath, err
}
