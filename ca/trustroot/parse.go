package trustroot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rootpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// MaxDocument is the largest trusted root that Parse reads, in bytes; the
// public one has under 10 kB.
const MaxDocument = 4 << 20

// mediaTypes are the forms of a trusted root that Parse reads.
var mediaTypes = []string{TrustedRootMediaType, "application/vnd.dev.sigstore.trustedroot.v0.2+json"}

// Parse reads a trusted root, Mayfly's or another's, as a history without issuers
// and operators. Unknown fields are passed over, CT logs with keys other than ECDSA
// on P-256 too; whatever else can't be trusted as it stands is an error.
func Parse(trustedRoot []byte) (*History, error) {
	if len(trustedRoot) > MaxDocument {
		return nil, fmt.Errorf("trustroot: larger than %d bytes", MaxDocument)
	}
	var doc rootpb.TrustedRoot
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(trustedRoot, &doc); err != nil {
		return nil, fmt.Errorf("trustroot: not a trusted root: %w", err)
	}
	if !slices.Contains(mediaTypes, doc.GetMediaType()) {
		return nil, fmt.Errorf("trustroot: media type %q; %q is expected", doc.GetMediaType(), TrustedRootMediaType)
	}
	var h History
	var err error
	if h.Authorities, err = parseAuthorities("certificateAuthorities", doc.GetCertificateAuthorities()); err != nil {
		return nil, err
	}
	if len(h.Authorities) == 0 {
		return nil, errors.New("trustroot: no certificate authority: nothing could be verified")
	}
	if h.TimestampAuthorities, err = parseAuthorities("timestampAuthorities", doc.GetTimestampAuthorities()); err != nil {
		return nil, err
	}
	var ids [][sha256.Size]byte
	for i, entry := range doc.GetCtlogs() {
		if entry.GetPublicKey().GetKeyDetails() != commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256 {
			continue
		}
		l, err := parseLog(entry)
		if err == nil {
			err = checkLog(l)
		}
		if err != nil {
			return nil, fmt.Errorf("trustroot: ctlogs[%d]: %w", i, err)
		}
		h.CTLogs, ids = append(h.CTLogs, l), append(ids, l.ID)
	}
	for i, entry := range doc.GetTlogs() {
		l, err := parseLog(entry)
		if err != nil {
			return nil, fmt.Errorf("trustroot: tlogs[%d]: %w", i, err)
		}
		h.TransparencyLogs = append(h.TransparencyLogs, TransparencyLog{Description: l})
	}
	if err := checkDistinct("log", ids); err != nil {
		return nil, err
	}
	return &h, nil
}

func parseAuthorities(list string, entries []*rootpb.CertificateAuthority) ([]Authority, error) {
	var all []Authority
	for i, entry := range entries {
		var ders [][]byte
		for _, c := range entry.GetCertChain().GetCertificates() {
			ders = append(ders, c.GetRawBytes())
		}
		a := Authority{URL: entry.GetUri()}
		var err error
		if a.Chain, err = ParseChain(ders); err == nil {
			err = checkOrder(a.Chain)
		}
		if err == nil {
			a.Start, a.End, err = times(entry.GetValidFor())
		}
		if err != nil {
			return nil, fmt.Errorf("trustroot: %s[%d]: %w", list, i, err)
		}
		all = append(all, a)
	}
	return all, nil
}

func parseLog(entry *rootpb.TransparencyLogInstance) (ctlog.Description, error) {
	start, end, err := times(entry.GetPublicKey().GetValidFor())
	if err != nil {
		return ctlog.Description{}, err
	}
	l := ctlog.Description{SPKI: entry.GetPublicKey().GetRawBytes(), URL: entry.GetBaseUrl(), Start: start, End: end}
	id := entry.GetLogId().GetKeyId()
	if len(id) != len(l.ID) {
		return ctlog.Description{}, fmt.Errorf("the log id has %d bytes, not %d", len(id), len(l.ID))
	}
	copy(l.ID[:], id)
	return l, nil
}

// times reads a window, which must have a start.
func times(r *commonpb.TimeRange) (start, end time.Time, err error) {
	if r.GetStart().CheckValid() != nil {
		return start, end, errors.New("validFor.start is missing or no time")
	}
	start = r.GetStart().AsTime()
	if r.GetEnd() == nil {
		return start, end, nil
	}
	if r.GetEnd().CheckValid() != nil || r.GetEnd().AsTime().Before(start) {
		return start, end, errors.New("validFor.end is no time or before its start")
	}
	return start, r.GetEnd().AsTime(), nil
}
