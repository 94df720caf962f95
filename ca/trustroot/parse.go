package trustroot

import (
	"crypto/x509"
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

// Root is what a client trusts.
type Root struct {
	Authorities []Issuer
	Logs        map[[32]byte]ctlog.Description // by log id
}

// Issuer is a certificate authority and the time in which its leaves are trusted.
type Issuer struct {
	Chain []*x509.Certificate // issuing certificate first, self-signed root last
	// Start and End bound it, both included; a zero End is open.
	Start, End time.Time
}

// Holds reports whether a leaf that begins at t falls into the authority's time.
func (i Issuer) Holds(t time.Time) bool {
	return !t.Before(i.Start) && (i.End.IsZero() || !t.After(i.End))
}

// Parse reads a trusted root, Mayfly's or another's. Unknown fields are passed
// over, logs with keys other than ECDSA on P-256 too; whatever else can't be
// trusted as it stands is an error.
func Parse(trustedRoot []byte) (*Root, error) {
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
	root := &Root{Logs: make(map[[32]byte]ctlog.Description)}
	for i, entry := range doc.GetCertificateAuthorities() {
		a, err := parseAuthority(entry)
		if err != nil {
			return nil, fmt.Errorf("trustroot: certificateAuthorities[%d]: %w", i, err)
		}
		root.Authorities = append(root.Authorities, a)
	}
	if len(root.Authorities) == 0 {
		return nil, errors.New("trustroot: no certificate authority: nothing could be verified")
	}
	for i, entry := range doc.GetCtlogs() {
		if entry.GetPublicKey().GetKeyDetails() != commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256 {
			continue
		}
		l, err := parseLog(entry)
		if err != nil {
			return nil, fmt.Errorf("trustroot: ctlogs[%d]: %w", i, err)
		}
		if _, twice := root.Logs[l.ID]; twice {
			return nil, fmt.Errorf("trustroot: ctlogs[%d]: the log is listed twice", i)
		}
		root.Logs[l.ID] = l
	}
	return root, nil
}

func parseAuthority(entry *rootpb.CertificateAuthority) (Issuer, error) {
	var a Authority
	for _, c := range entry.GetCertChain().GetCertificates() {
		a.Chain = append(a.Chain, c.GetRawBytes())
	}
	chain, err := a.parse(false)
	if err != nil {
		return Issuer{}, err
	}
	start, end, err := times(entry.GetValidFor())
	return Issuer{Chain: chain, Start: start, End: end}, err
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
	return l, checkLog(l)
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
