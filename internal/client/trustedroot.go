package client

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	trustrootpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// ParseTrust reads a trusted_root.json (media type
// application/vnd.dev.sigstore.trustedroot+json, version 0.1 or 0.2) strictly.
// Logs whose key isn't ECDSA P-256 are passed over: their SCTs count as unknown.
func ParseTrust(document []byte) (*Trust, error) {
	trust, err := parseTrust(document)
	if err != nil {
		return nil, problem(Failed, "give the trusted_root.json of the CA", "the trusted root can't be used").because(err)
	}
	return trust, nil
}

func parseTrust(document []byte) (*Trust, error) {
	var root trustrootpb.TrustedRoot
	if err := protojson.Unmarshal(document, &root); err != nil {
		return nil, fmt.Errorf("it is not a trusted root document: %w", err)
	}
	trust := &Trust{}
	for i, a := range root.GetCertificateAuthorities() {
		authority := TrustedAuthority{Window: window(a.GetValidFor())}
		for _, c := range a.GetCertChain().GetCertificates() {
			cert, err := x509.ParseCertificate(c.GetRawBytes())
			if err != nil {
				return nil, fmt.Errorf("certificateAuthorities[%d]: %w", i, err)
			}
			authority.Chain = append(authority.Chain, cert)
		}
		if len(authority.Chain) == 0 {
			return nil, fmt.Errorf("certificateAuthorities[%d] has no certificate", i)
		}
		trust.Authorities = append(trust.Authorities, authority)
	}
	if len(trust.Authorities) == 0 {
		return nil, errors.New("it lists no certificate authority")
	}
	for i, l := range root.GetCtlogs() {
		spki := l.GetPublicKey().GetRawBytes()
		key, err := x509.ParsePKIXPublicKey(spki)
		if err != nil {
			return nil, fmt.Errorf("ctlogs[%d]: %w", i, err)
		}
		pub, err := checkLogKey(key)
		if err != nil {
			continue
		}
		trust.Logs = append(trust.Logs, TrustedLog{
			ID: sha256.Sum256(spki), Key: pub, URL: l.GetBaseUrl(), Window: window(l.GetPublicKey().GetValidFor()),
		})
	}
	return trust, nil
}

func window(r *commonpb.TimeRange) Window {
	w := Window{Start: time.Time{}}
	if r.GetStart().IsValid() {
		w.Start = r.GetStart().AsTime()
	}
	if r.GetEnd().IsValid() {
		w.End = r.GetEnd().AsTime()
	}
	return w
}
