package server

import (
	"context"

	"github.com/mayfly-ca/mayfly/ca"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/proof"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// order is what a client asks for, decoded from either version of the API and
// within its limits: a token, and a key with a proof or a CSR.
type order struct {
	token       string
	spki, proof []byte
	csr         []byte
}

// issue is one issuance from top to bottom: who asks, with which key, and the
// certificate. c learns what the log line and the audit record say.
func (s *Server) issue(ctx context.Context, c *call, o order) (*ca.Certificate, error) {
	stop := s.metrics.stage(stageAuthenticate)
	who, err := s.identity.Authenticate(ctx, o.token)
	stop()
	if err != nil {
		return nil, err
	}
	c.who = who
	if f := s.metrics.limited(s.terms.Load().limiters.allow(who, s.now())); f != nil {
		return nil, f
	}

	stop = s.metrics.stage(stageProve)
	key, err := s.proven(o, who)
	stop()
	if err != nil {
		return nil, err
	}
	c.key = key

	stop = s.metrics.stage(stageIssue)
	cert, err := s.ca.Issue(ctx, who, key)
	stop()
	return cert, err
}

// proven is the key of o, if who holds it.
func (s *Server) proven(o order, who identity.Principal) (proof.Key, error) {
	if len(o.csr) > 0 {
		return s.keys.CSR(o.csr)
	}
	return s.keys.Signature(o.spki, o.proof, who)
}

// fulcioV2 is the service dev.sigstore.fulcio.v2.CA on one edge.
type fulcioV2 struct {
	fulciov2.UnimplementedCAServer
	server *Server
	edge   edge
}

// CreateSigningCertificate answers with a certificate whose SCT is embedded.
func (v fulcioV2) CreateSigningCertificate(ctx context.Context, r *fulciov2.CreateSigningCertificateRequest) (*fulciov2.SigningCertificate, error) {
	return serve(ctx, v.server, v.edge, createV2, func(ctx context.Context, c *call) (*fulciov2.SigningCertificate, error) {
		o, err := v.server.orderV2(ctx, r)
		if err != nil {
			return nil, err
		}
		cert, err := v.server.issue(ctx, c, o)
		if err != nil {
			return nil, err
		}
		return &fulciov2.SigningCertificate{Certificate: &fulciov2.SigningCertificate_SignedCertificateEmbeddedSct{
			SignedCertificateEmbeddedSct: &fulciov2.SigningCertificateEmbeddedSCT{
				Chain: &fulciov2.CertificateChain{Certificates: cert.PEM()},
			},
		}}, nil
	})
}

// GetTrustBundle answers with every chain, each from the issuing certificate to the root.
func (v fulcioV2) GetTrustBundle(ctx context.Context, _ *fulciov2.GetTrustBundleRequest) (*fulciov2.TrustBundle, error) {
	return serve(ctx, v.server, v.edge, trustBundle, func(context.Context, *call) (*fulciov2.TrustBundle, error) {
		var bundle fulciov2.TrustBundle
		for _, chain := range v.server.ca.Chains() {
			bundle.Chains = append(bundle.Chains, &fulciov2.CertificateChain{Certificates: chainPEM(chain)})
		}
		return &bundle, nil
	})
}

// GetConfiguration answers with the accepted issuers, in their stable order.
func (v fulcioV2) GetConfiguration(ctx context.Context, _ *fulciov2.GetConfigurationRequest) (*fulciov2.Configuration, error) {
	return serve(ctx, v.server, v.edge, configuration, func(context.Context, *call) (*fulciov2.Configuration, error) {
		var all fulciov2.Configuration
		for _, d := range v.server.identity.Issuers() {
			all.Issuers = append(all.Issuers, describe(d))
		}
		return &all, nil
	})
}

func describe(d identity.Description) *fulciov2.OIDCIssuer {
	i := &fulciov2.OIDCIssuer{
		Audience: d.Audience, ChallengeClaim: d.ChallengeClaim, IssuerType: d.Type,
		SpiffeTrustDomain: d.SPIFFETrustDomain, SubjectDomain: d.SubjectDomain,
		SkipEmailVerification: d.SkipEmailVerification,
	}
	if d.WildcardURL != "" {
		i.Issuer = &fulciov2.OIDCIssuer_WildcardIssuerUrl{WildcardIssuerUrl: d.WildcardURL}
	} else {
		i.Issuer = &fulciov2.OIDCIssuer_IssuerUrl{IssuerUrl: d.URL}
	}
	return i
}
