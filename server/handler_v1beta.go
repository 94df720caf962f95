package server

import (
	"context"
	"encoding/pem"
	"strings"

	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/types/known/emptypb"

	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
)

// pemChain is the media type of the v1 API's answers (RFC 8555 §9.1).
const pemChain = "application/pem-certificate-chain"

// fulcioV1Beta is the service dev.sigstore.fulcio.v1beta.CA on one edge. It
// issues by the same path as v2; only decoding and encoding are its own.
type fulcioV1Beta struct {
	fulciov1beta.UnimplementedCAServer
	server *Server
	edge   edge
}

// CreateSigningCertificate answers with a PEM chain, the certificate first.
func (v fulcioV1Beta) CreateSigningCertificate(ctx context.Context, r *fulciov1beta.CreateSigningCertificateRequest) (*httpbody.HttpBody, error) {
	return serve(ctx, v.server, v.edge, createV1, func(ctx context.Context, c *call) (*httpbody.HttpBody, error) {
		o, err := v.server.orderV1(ctx, r)
		if err != nil {
			return nil, err
		}
		cert, err := v.server.issue(ctx, c, o)
		if err != nil {
			return nil, err
		}
		return pemBody(cert.PEM()), nil
	})
}

// GetRootCertificate answers with the active chain, from the issuing certificate to the root.
func (v fulcioV1Beta) GetRootCertificate(ctx context.Context, _ *emptypb.Empty) (*httpbody.HttpBody, error) {
	return serve(ctx, v.server, v.edge, rootCertificate, func(context.Context, *call) (*httpbody.HttpBody, error) {
		chains := v.server.ca.Chains()
		if len(chains) == 0 {
			return pemBody(nil), nil
		}
		return pemBody(chainPEM(chains[0])), nil
	})
}

func pemBody(certificates []string) *httpbody.HttpBody {
	return &httpbody.HttpBody{ContentType: pemChain, Data: []byte(strings.Join(certificates, ""))}
}

func chainPEM(chain [][]byte) []string {
	all := make([]string, 0, len(chain))
	for _, der := range chain {
		all = append(all, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	return all
}
