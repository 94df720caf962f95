package trustroot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rootpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// Render writes the three documents. It refuses a history that some client
// couldn't use: no authority, a chain that doesn't end in a self-signed root,
// differing Organizations, a log listed twice or with an id that isn't its key's.
func Render(h History) (Documents, error) {
	h = h.ordered()
	if err := h.check(); err != nil {
		return Documents{}, err
	}
	root, err := trustedRoot(h)
	if err != nil {
		return Documents{}, err
	}
	ca, oidc, rekor, tsa := h.services()
	signing := signingConfig(services(ca), services(oidc), services(rekor), services(tsa))
	var d Documents
	for _, doc := range []struct {
		into    *[]byte
		message proto.Message
	}{
		{&d.TrustedRoot, root},
		{&d.SigningConfig, signing},
		{&d.TrustConfig, &rootpb.ClientTrustConfig{MediaType: TrustConfigMediaType, TrustedRoot: root, SigningConfig: signing}},
	} {
		if *doc.into, err = line(doc.message); err != nil {
			return Documents{}, err
		}
		if len(h.TransparencyLogs) == 0 {
			*doc.into = bytes.Replace(*doc.into, []byte(beforeLogs), []byte(beforeLogs+`,"tlogs":[]`), 1)
		}
	}
	return d, nil
}

// beforeLogs is what stands before the Rekor logs of a trusted root. sigstore-python
// wants that list, an empty one too, and an older gh can't read a root with every
// field that is empty.
const beforeLogs = `"mediaType":"` + TrustedRootMediaType + `"`

// line is a message as one line of JSON: protojson varies its white space on
// purpose, so that goes.
func line(m proto.Message) ([]byte, error) {
	loose, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("trustroot: encoding: %w", err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, loose); err != nil {
		return nil, fmt.Errorf("trustroot: encoding: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func trustedRoot(h History) (*rootpb.TrustedRoot, error) {
	root := &rootpb.TrustedRoot{
		MediaType:              TrustedRootMediaType,
		CertificateAuthorities: authorities(h.Authorities),
		TimestampAuthorities:   authorities(h.TimestampAuthorities),
	}
	for _, l := range h.CTLogs {
		root.Ctlogs = append(root.Ctlogs, instance(l, commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256))
	}
	for _, l := range h.TransparencyLogs {
		details, err := l.details()
		if err != nil {
			return nil, err
		}
		if l.Origin != "" {
			l.URL = "https://" + l.Origin // what clients take the name from
		}
		root.Tlogs = append(root.Tlogs, instance(l.Description, details))
	}
	return root, nil
}

func authorities(all []Authority) []*rootpb.CertificateAuthority {
	var entries []*rootpb.CertificateAuthority
	for _, a := range all {
		// No operator: it is younger than clients that parse strictly.
		entry := &rootpb.CertificateAuthority{Uri: a.URL, ValidFor: window(a.Start, a.End), CertChain: &commonpb.X509CertificateChain{}}
		issuing := a.Chain[0].Subject
		entry.Subject = &commonpb.DistinguishedName{CommonName: issuing.CommonName}
		if len(issuing.Organization) > 0 {
			entry.Subject.Organization = issuing.Organization[0]
		}
		for _, c := range a.Chain {
			entry.CertChain.Certificates = append(entry.CertChain.Certificates, &commonpb.X509Certificate{RawBytes: c.Raw})
		}
		entries = append(entries, entry)
	}
	return entries
}

func instance(l ctlog.Description, details commonpb.PublicKeyDetails) *rootpb.TransparencyLogInstance {
	return &rootpb.TransparencyLogInstance{
		BaseUrl:       l.URL,
		HashAlgorithm: commonpb.HashAlgorithm_SHA2_256,
		PublicKey:     &commonpb.PublicKey{RawBytes: l.SPKI, KeyDetails: details, ValidFor: window(l.Start, l.End)},
		// No checkpointKeyId: with one, sigstore-js refuses every SCT.
		// No operator either, as for authorities.
		LogId: &commonpb.LogId{KeyId: l.ID[:]},
	}
}

// RenderAgain writes a signing config of the services of one that was read.
func RenderAgain(s *rootpb.SigningConfig) ([]byte, error) {
	return line(signingConfig(s.GetCaUrls(), s.GetOidcUrls(), s.GetRekorTlogUrls(), s.GetTsaUrls()))
}

func signingConfig(ca, oidc, rekor, tsa []*rootpb.Service) *rootpb.SigningConfig {
	return &rootpb.SigningConfig{
		MediaType:       SigningConfigMediaType,
		CaUrls:          ca,
		OidcUrls:        oidc,
		RekorTlogUrls:   rekor,
		RekorTlogConfig: anyOf(rekor),
		TsaUrls:         tsa,
		TsaConfig:       anyOf(tsa),
	}
}

// anyOf says that one of the services is enough. Without any it says nothing: sigstore-js
// would look for one, and sign nothing.
func anyOf(list []*rootpb.Service) *rootpb.ServiceConfiguration {
	if len(list) == 0 {
		return nil
	}
	return &rootpb.ServiceConfiguration{Selector: rootpb.ServiceSelector_ANY}
}

func services(list []Service) []*rootpb.Service {
	var out []*rootpb.Service
	for _, s := range list {
		// A CA's version is 1 although its path says v2: clients know no other.
		out = append(out, &rootpb.Service{Url: s.URL, MajorApiVersion: max(s.APIVersion, 1), ValidFor: window(s.Start, s.End), Operator: s.Operator})
	}
	return out
}

// window is a time range; a zero end leaves it open.
func window(start, end time.Time) *commonpb.TimeRange {
	r := &commonpb.TimeRange{Start: timestamppb.New(start)}
	if !end.IsZero() {
		r.End = timestamppb.New(end)
	}
	return r
}

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
	seen := make(ids)
	for i, entry := range doc.GetCtlogs() {
		if entry.GetPublicKey().GetKeyDetails() != commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256 {
			continue
		}
		l, err := parseLog(entry)
		if err != nil {
			return nil, fmt.Errorf("trustroot: ctlogs[%d]: %w", i, err)
		}
		if err := seen.add("log", l, checkLog(l)); err != nil {
			return nil, err
		}
		h.CTLogs = append(h.CTLogs, l)
	}
	for i, entry := range doc.GetTlogs() {
		l, err := parseLog(entry)
		if err != nil {
			return nil, fmt.Errorf("trustroot: tlogs[%d]: %w", i, err)
		}
		h.TransparencyLogs = append(h.TransparencyLogs, TransparencyLog{Description: l})
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
