package trustroot

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
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

// Render writes the three documents. It refuses an input that some client
// couldn't use: no authority, a chain that doesn't end in a self-signed root,
// differing Organizations, a log listed twice or with an id that isn't its key's.
func Render(in Input) (Documents, error) {
	if err := in.check(); err != nil {
		return Documents{}, err
	}
	root, err := trustedRoot(in)
	if err != nil {
		return Documents{}, err
	}
	signing := signingConfig(in)
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
	}
	return d, nil
}

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

func trustedRoot(in Input) (*rootpb.TrustedRoot, error) {
	root := &rootpb.TrustedRoot{MediaType: TrustedRootMediaType}
	authorities := slices.Clone(in.Authorities)
	slices.SortStableFunc(authorities, func(a, b Authority) int { return a.Start.Compare(b.Start) })
	for _, a := range authorities {
		chain, err := a.parse(true)
		if err != nil {
			return nil, err
		}
		entry := &rootpb.CertificateAuthority{Uri: a.URL, ValidFor: window(a.Start, a.End), CertChain: &commonpb.X509CertificateChain{}}
		issuing := chain[0].Subject
		entry.Subject = &commonpb.DistinguishedName{CommonName: issuing.CommonName}
		if len(issuing.Organization) > 0 {
			entry.Subject.Organization = issuing.Organization[0]
		}
		for _, c := range chain {
			entry.CertChain.Certificates = append(entry.CertChain.Certificates, &commonpb.X509Certificate{RawBytes: c.Raw})
		}
		root.CertificateAuthorities = append(root.CertificateAuthorities, entry)
	}
	logs := slices.Clone(in.Logs)
	for i := range logs {
		if logs[i].Start.IsZero() { // clients want a start: nothing was logged before there was an authority
			logs[i].Start = authorities[0].Start
		}
	}
	slices.SortStableFunc(logs, func(a, b ctlog.Description) int { return a.Start.Compare(b.Start) })
	for _, l := range logs {
		root.Ctlogs = append(root.Ctlogs, &rootpb.TransparencyLogInstance{
			BaseUrl:       l.URL,
			HashAlgorithm: commonpb.HashAlgorithm_SHA2_256,
			PublicKey: &commonpb.PublicKey{
				RawBytes:   l.SPKI,
				KeyDetails: commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
				ValidFor:   window(l.Start, l.End),
			},
			// No checkpointKeyId: with one, sigstore-js refuses every SCT.
			// No operator either: it is younger than clients that parse strictly.
			LogId: &commonpb.LogId{KeyId: slices.Clone(l.ID[:])},
		})
	}
	return root, nil
}

// checkLog wants what clients identify a log by to fit its key.
func checkLog(l ctlog.Description) error {
	if _, err := ctlog.ParseKey(l.SPKI); err != nil {
		return fmt.Errorf("trustroot: log %s: %w", l.URL, err)
	}
	if l.ID != sha256.Sum256(l.SPKI) {
		return fmt.Errorf("trustroot: log %s: the id isn't the SHA-256 of its key", l.URL)
	}
	return nil
}

func signingConfig(in Input) *rootpb.SigningConfig {
	anyOne := &rootpb.ServiceConfiguration{Selector: rootpb.ServiceSelector_ANY}
	return &rootpb.SigningConfig{
		MediaType:       SigningConfigMediaType,
		CaUrls:          services(in.CA),
		OidcUrls:        services(in.OIDC),
		RekorTlogUrls:   services(in.Rekor),
		RekorTlogConfig: anyOne,
		TsaUrls:         services(in.TSA),
		TsaConfig:       anyOne,
	}
}

func services(list []Service) []*rootpb.Service {
	var out []*rootpb.Service
	for _, s := range list {
		// A CA's version is 1 although its path says v2: clients know no other.
		out = append(out, &rootpb.Service{Url: s.URL, MajorApiVersion: max(s.APIVersion, 1), ValidFor: window(s.Start, time.Time{}), Operator: s.Operator})
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
