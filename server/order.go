package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"strings"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	proofs "github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// Metadata keys that may hold a token, besides the request itself.
const (
	metadataAuthorization = "authorization"     // RFC 6750 §2.1; also the REST header
	metadataToken         = "oidcidentitytoken" // of older gRPC clients, who send the bare token
)

// orderV2 reads a v2 request: its token, else one in the metadata, and one key.
func (s *Server) orderV2(ctx context.Context, r *fulciov2.CreateSigningCertificateRequest) (order, error) {
	if err := s.checkSize(r); err != nil {
		return order{}, err
	}
	token := r.GetCredentials().GetOidcIdentityToken()
	if token == "" {
		token = bearer(ctx)
	}
	o := order{token: token}
	switch key := r.GetKey().(type) {
	case *fulciov2.CreateSigningCertificateRequest_PublicKeyRequest:
		o.spki = spki(key.PublicKeyRequest.GetPublicKey().GetContent())
		o.proof = key.PublicKeyRequest.GetProofOfPossession()
	case *fulciov2.CreateSigningCertificateRequest_CertificateSigningRequest:
		o.csr = key.CertificateSigningRequest
	}
	return o, s.checkOrder(o, "publicKeyRequest or certificateSigningRequest")
}

// orderV1 reads a v1beta request. A CSR stands in for key and proof.
func (s *Server) orderV1(ctx context.Context, r *fulciov1beta.CreateSigningCertificateRequest) (order, error) {
	if err := s.checkSize(r); err != nil {
		return order{}, err
	}
	o := order{token: bearer(ctx)}
	if csr := r.GetCertificateSigningRequest(); len(csr) > 0 {
		o.csr = csr
	} else {
		o.spki, o.proof = r.GetPublicKey().GetContent(), r.GetSignedEmailAddress()
	}
	return o, s.checkOrder(o, "publicKey or certificateSigningRequest")
}

// checkSize holds gRPC to the limit that REST bodies have.
func (s *Server) checkSize(r proto.Message) error {
	if proto.Size(r) > s.config.Limits.BodyBytes {
		return tooLarge(fault.BodyTooLarge, "the request", s.config.Limits.BodyBytes)
	}
	return nil
}

// checkOrder refuses what is missing or too large before anything is parsed.
// fields names the ways to give a key.
func (s *Server) checkOrder(o order, fields string) error {
	most := s.terms.Load().tokenBytes
	switch {
	case o.token == "":
		return fault.New(fault.TokenMissing,
			"no identity token: send one in credentials.oidcIdentityToken or in the header `Authorization: Bearer`")
	case len(o.token) > most:
		return tooLarge(fault.TokenTooLarge, "the identity token", most)
	case len(o.csr) > proofs.MaxCSRBytes:
		return tooLarge(fault.KeyTooLarge, "the certificate signing request", proofs.MaxCSRBytes)
	case len(o.spki) > proofs.MaxKeyBytes:
		return tooLarge(fault.KeyTooLarge, "the public key", proofs.MaxKeyBytes)
	case len(o.proof) > proofs.MaxProofBytes:
		return tooLarge(fault.ProofTooLarge, "the proof of possession", proofs.MaxProofBytes)
	case len(o.csr) == 0 && len(o.spki) == 0:
		return fault.New(fault.RequestMalformed, "no key: send %s", fields)
	}
	return nil
}

func tooLarge(reason fault.Reason, what string, limit int) *fault.Error {
	return fault.New(reason, "%s is too large: at most %d bytes are accepted", what, limit).With("limit", itoa(limit))
}

// bearer is the token in the request's metadata, or "". A value of another
// scheme than Bearer is not one. The scheme's case doesn't matter (RFC 9110 §11.1).
func bearer(ctx context.Context) string {
	for _, v := range metadata.ValueFromIncomingContext(ctx, metadataAuthorization) {
		scheme, token, ok := strings.Cut(strings.TrimSpace(v), " ")
		if ok && strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(token)
		}
	}
	for _, v := range metadata.ValueFromIncomingContext(ctx, metadataToken) {
		if v != "" {
			return v
		}
	}
	return ""
}

// spki is the bytes of a v2 key. The field is a text, so that a key in DER can
// only come as base64 of it; anything else is left as it is for the parser to judge.
func spki(content string) []byte {
	raw := []byte(content)
	if bytes.Contains(raw, []byte("-----BEGIN")) || len(raw) > proofs.MaxKeyBytes {
		return raw
	}
	const sequence = 0x30 // a SubjectPublicKeyInfo is a SEQUENCE (RFC 5280 §4.1)
	if der, err := base64.StdEncoding.DecodeString(strings.TrimSpace(content)); err == nil && len(der) > 0 && der[0] == sequence {
		return der
	}
	return raw
}
