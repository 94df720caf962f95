package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/identity"
	proofs "github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/fault"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// signingRequest is what a client asks for, as either version of the API has it: a
// token, and a key with a proof or a CSR.
type signingRequest struct {
	size        int // of the whole message, in bytes
	token       string
	spki, proof []byte
	csr         []byte
	keyFields   string // the names of the ways to give a key
}

// issue is one issuance from top to bottom: within the limits on sizes, who asks,
// within the limits on rates, with which key, and the certificate. c learns what
// the log line and the audit record say.
func (s *Server) issue(ctx context.Context, c *call, q signingRequest) (*ca.Certificate, error) {
	if f := s.checkSizes(q); f != nil {
		return nil, f
	}

	step, stop := s.metrics.stage(ctx, stageAuthenticate)
	who, err := s.with.Identity.Authenticate(identity.WithClient(step, network(ClientAddress(ctx))), q.token)
	stop(err)
	if err != nil {
		errors.As(err, &c.refused)
		return nil, err
	}
	c.who = who
	if f := s.metrics.limited(s.live.Load().limiters.issuance(who, s.with.Now())); f != nil {
		return nil, f
	}

	_, stop = s.metrics.stage(ctx, stageProve)
	var key proofs.Key
	if len(q.csr) > 0 {
		key, err = s.with.Keys.CSR(q.csr)
	} else {
		key, err = s.with.Keys.Signature(q.spki, q.proof, who)
	}
	stop(err)
	if err != nil {
		return nil, err
	}
	c.key = key

	step, stop = s.metrics.stage(ctx, stageIssue)
	cert, err := s.with.CA.Issue(step, who, key)
	stop(err)
	return cert, err
}

// Metadata keys that may hold a token, besides the request itself.
const (
	metadataAuthorization = "authorization"     // RFC 6750 §2.1; also the REST header
	metadataToken         = "oidcidentitytoken" // of older gRPC clients, who send the bare token
)

// fromV2 reads a v2 request: its token, else one in the metadata, and one key.
func fromV2(ctx context.Context, r *fulciov2.CreateSigningCertificateRequest) signingRequest {
	q := signingRequest{
		// White space around it is what `$(cat FILE)` and text editors leave.
		size: proto.Size(r), token: strings.TrimSpace(r.GetCredentials().GetOidcIdentityToken()), keyFields: "publicKeyRequest or certificateSigningRequest",
	}
	if q.token == "" {
		q.token = bearer(ctx)
	}
	switch key := r.GetKey().(type) {
	case *fulciov2.CreateSigningCertificateRequest_PublicKeyRequest:
		q.spki = spki(key.PublicKeyRequest.GetPublicKey().GetContent())
		q.proof = key.PublicKeyRequest.GetProofOfPossession()
	case *fulciov2.CreateSigningCertificateRequest_CertificateSigningRequest:
		q.csr = key.CertificateSigningRequest
	}
	return q
}

// fromV1 reads a v1beta request. A CSR stands in for key and proof.
func fromV1(ctx context.Context, r *fulciov1beta.CreateSigningCertificateRequest) signingRequest {
	q := signingRequest{size: proto.Size(r), token: bearer(ctx), keyFields: "publicKey or certificateSigningRequest"}
	if q.csr = r.GetCertificateSigningRequest(); len(q.csr) == 0 {
		q.spki, q.proof = r.GetPublicKey().GetContent(), r.GetSignedEmailAddress()
	}
	return q
}

// checkSizes refuses what is missing or too large before anything of q is parsed.
// The size of the whole holds gRPC to the limit that REST bodies have.
func (s *Server) checkSizes(q signingRequest) *fault.Error {
	if mostBody := s.config.Limits.BodyBytes; q.size > mostBody {
		return tooLarge(fault.BodyTooLarge, "the request", mostBody)
	}
	if f := s.checkToken(q.token); f != nil {
		return f
	}
	switch {
	case len(q.csr) > proofs.MaxCSRBytes:
		return tooLarge(fault.KeyTooLarge, "the certificate signing request", proofs.MaxCSRBytes)
	case len(q.spki) > proofs.MaxKeyBytes:
		return tooLarge(fault.KeyTooLarge, "the public key", proofs.MaxKeyBytes)
	case len(q.proof) > proofs.MaxProofBytes:
		return tooLarge(fault.ProofTooLarge, "the proof of possession", proofs.MaxProofBytes)
	case len(q.csr) == 0 && len(q.spki) == 0:
		return fault.New(fault.RequestMalformed, "no key: send %s", q.keyFields)
	}
	return nil
}

// checkToken refuses a token that is missing or too large to be parsed.
func (s *Server) checkToken(token string) *fault.Error {
	most := s.live.Load().tokenBytes
	switch {
	case token == "":
		return fault.New(fault.TokenMissing,
			"no identity token: send one in credentials.oidcIdentityToken or in the header `Authorization: Bearer`")
	case len(token) > most:
		return tooLarge(fault.TokenTooLarge, "the identity token", most)
	}
	return nil
}

func tooLarge(reason fault.Reason, what string, limit int) *fault.Error {
	return fault.New(reason, "%s is too large: at most %d bytes are accepted", what, limit).With("limit", strconv.Itoa(limit))
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
		if v = strings.TrimSpace(v); v != "" {
			return v
		}
	}
	return ""
}

// spki is the bytes of a v2 key. The field is a text, so that a key in DER can
// only come as base64 of it; anything else is left as it is for the parser.
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

// fulcioV2 is the service dev.sigstore.fulcio.v2.CA.
type fulcioV2 struct {
	fulciov2.UnimplementedCAServer
	server *Server
}

// CreateSigningCertificate answers with a certificate whose SCT is embedded.
func (v fulcioV2) CreateSigningCertificate(ctx context.Context, r *fulciov2.CreateSigningCertificateRequest) (*fulciov2.SigningCertificate, error) {
	cert, err := v.server.issue(ctx, callOf(ctx), fromV2(ctx, r))
	if err != nil {
		return nil, err
	}
	return &fulciov2.SigningCertificate{Certificate: &fulciov2.SigningCertificate_SignedCertificateEmbeddedSct{
		SignedCertificateEmbeddedSct: &fulciov2.SigningCertificateEmbeddedSCT{
			Chain: &fulciov2.CertificateChain{Certificates: cert.PEM()},
		},
	}}, nil
}

// GetTrustBundle answers with every chain, each from the issuing certificate to the root.
func (v fulcioV2) GetTrustBundle(context.Context, *fulciov2.GetTrustBundleRequest) (*fulciov2.TrustBundle, error) {
	var bundle fulciov2.TrustBundle
	for _, chain := range v.server.with.CA.Chains() {
		bundle.Chains = append(bundle.Chains, &fulciov2.CertificateChain{Certificates: chainPEM(chain)})
	}
	return &bundle, nil
}

// GetConfiguration answers with the accepted issuers, in their stable order.
func (v fulcioV2) GetConfiguration(context.Context, *fulciov2.GetConfigurationRequest) (*fulciov2.Configuration, error) {
	var all fulciov2.Configuration
	for _, d := range v.server.with.Identity.Issuers() {
		all.Issuers = append(all.Issuers, describe(d))
	}
	return &all, nil
}

func describe(d identity.IssuerConfig) *fulciov2.OIDCIssuer {
	i := &fulciov2.OIDCIssuer{
		Audience: d.Audiences[0], ChallengeClaim: d.ChallengeClaim, IssuerType: string(d.Type),
		SpiffeTrustDomain: d.SPIFFETrustDomain, SubjectDomain: d.SubjectDomain,
		SkipEmailVerification: d.SkipEmailVerification,
	}
	if d.Pattern != "" {
		i.Issuer = &fulciov2.OIDCIssuer_WildcardIssuerUrl{WildcardIssuerUrl: d.Pattern}
	} else {
		i.Issuer = &fulciov2.OIDCIssuer_IssuerUrl{IssuerUrl: d.URL}
	}
	return i
}

// pemChain is the media type of the v1 API's answers (RFC 8555 §9.1).
const pemChain = "application/pem-certificate-chain"

// fulcioV1Beta is the service dev.sigstore.fulcio.v1beta.CA. It issues by the same path
// as v2; only reading and writing are its own.
type fulcioV1Beta struct {
	fulciov1beta.UnimplementedCAServer
	server *Server
}

// CreateSigningCertificate answers with a PEM chain, the certificate first.
func (v fulcioV1Beta) CreateSigningCertificate(ctx context.Context, r *fulciov1beta.CreateSigningCertificateRequest) (*httpbody.HttpBody, error) {
	cert, err := v.server.issue(ctx, callOf(ctx), fromV1(ctx, r))
	if err != nil {
		return nil, err
	}
	return pemBody(cert.PEM()), nil
}

// GetRootCertificate answers with the active chain, from the issuing certificate to the root.
func (v fulcioV1Beta) GetRootCertificate(context.Context, *emptypb.Empty) (*httpbody.HttpBody, error) {
	var active [][]byte
	if chains := v.server.with.CA.Chains(); len(chains) > 0 {
		active = chains[0]
	}
	return pemBody(chainPEM(active)), nil
}

func pemBody(certificates []string) *httpbody.HttpBody {
	return &httpbody.HttpBody{ContentType: pemChain, Data: []byte(strings.Join(certificates, ""))}
}

func chainPEM(ders [][]byte) (all []string) {
	for _, der := range ders {
		all = append(all, chain.Encode(der))
	}
	return all
}
