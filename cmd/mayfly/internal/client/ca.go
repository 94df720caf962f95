package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// Submission is what a client sends for one certificate: the token, and either
// the public key with its proof or a CSR.
type Submission = *fulciov2.CreateSigningCertificateRequest

// Submit makes the submission for a key and a token.
func Submit(token *Token, key *Key, csr bool) (Submission, error) {
	r := &fulciov2.CreateSigningCertificateRequest{
		Credentials: &fulciov2.Credentials{Credentials: &fulciov2.Credentials_OidcIdentityToken{OidcIdentityToken: token.raw}},
	}
	if csr {
		request, err := key.CSR()
		r.Key = &fulciov2.CreateSigningCertificateRequest_CertificateSigningRequest{CertificateSigningRequest: request}
		return r, err
	}
	spki, err := key.SPKI()
	if err != nil {
		return nil, err
	}
	proof, err := key.Prove(token.Challenge())
	r.Key = &fulciov2.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulciov2.PublicKeyRequest{
		PublicKey: &fulciov2.PublicKey{Algorithm: key.typ.api, Content: string(spki)}, ProofOfPossession: proof,
	}}
	return r, err
}

// CA is one way to ask a CA for a certificate.
type CA interface {
	// Certificate sends the submission and returns the chain as it came, leaf
	// first, parsed and otherwise unverified. A refusal is an *Error of kind
	// Refused, what may pass later is Unavailable, an answer that can't be
	// read is Failed. ctx must have a deadline.
	Certificate(ctx context.Context, s Submission) ([]*x509.Certificate, error)
}

// REST asks over POST /api/v2/signingCert.
type REST struct {
	URL   string // the base, checked by CheckURL
	HTTP  *http.Client
	Retry Retry
}

// Certificate implements CA.
func (c *REST) Certificate(ctx context.Context, s Submission) ([]*x509.Certificate, error) {
	payload, err := protojson.Marshal(s)
	if err != nil {
		return nil, problem(Failed, "", "encoding the request").because(err)
	}
	header := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}, "X-Request-Id": {requestid.New()}}
	body, err := ask(ctx, c.HTTP, c.Retry, message{what: "the CA", url: strings.TrimRight(c.URL, "/") + "/api/v2/signingCert", header: header, body: payload})
	if err != nil {
		return nil, err
	}
	return parseAnswer(body)
}

// parseAnswer reads the JSON of a certificate.
func parseAnswer(body []byte) ([]*x509.Certificate, error) {
	var got fulciov2.SigningCertificate
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &got); err != nil {
		return nil, unreadable("it is not JSON")
	}
	return answerChain(&got)
}

// answerChain is the chain of a certificate. A CA without a log answers in the detached
// form with an empty SCT.
func answerChain(answer *fulciov2.SigningCertificate) ([]*x509.Certificate, error) {
	switch cert := answer.GetCertificate().(type) {
	case *fulciov2.SigningCertificate_SignedCertificateEmbeddedSct:
		return parseChain(cert.SignedCertificateEmbeddedSct.GetChain().GetCertificates())
	case *fulciov2.SigningCertificate_SignedCertificateDetachedSct:
		return parseChain(cert.SignedCertificateDetachedSct.GetChain().GetCertificates())
	default:
		return nil, unreadable("it holds no certificate")
	}
}

func unreadable(why string) *Error {
	return problem(Failed, "check that the URL is that of a Fulcio-compatible CA", "the CA's answer can't be read: %s", why)
}

// maxChain bounds the work of parsing a hostile answer.
const maxChain = 16

// parseChain reads one certificate from each PEM, leaf first.
func parseChain(pems []string) ([]*x509.Certificate, error) {
	if len(pems) == 0 || len(pems) > maxChain {
		return nil, unreadable("its chain has an unfit number of certificates")
	}
	chain := make([]*x509.Certificate, 0, len(pems))
	for _, p := range pems {
		block, rest := pem.Decode([]byte(p))
		if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, unreadable("its chain holds something other than one PEM certificate an entry")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, unreadable("its chain holds a malformed certificate").because(err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// GRPC asks over dev.sigstore.fulcio.v2.CA/CreateSigningCertificate.
type GRPC struct {
	conn  *grpc.ClientConn
	retry Retry
}

// DialGRPC makes a client for host:port, or for a URL with the scheme http or
// https. Without a scheme a loopback address is spoken to in plaintext and any
// other with TLS. It doesn't connect yet. The caller closes it.
func DialGRPC(address string, plaintext bool, retry Retry) (*GRPC, error) {
	scheme, host, found := strings.Cut(address, "://")
	if !found {
		scheme, host = "https", address
	}
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		return nil, problem(Misused, "write --grpc host:port", "the gRPC address is not host:port")
	}
	if !found && loopback.Host(name) {
		scheme = "http"
	}
	if _, err := CheckURL("the CA", scheme+"://"+host, plaintext); err != nil {
		return nil, err
	}
	secure := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	if scheme == "http" {
		secure = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient("dns:///"+host,
		grpc.WithTransportCredentials(secure),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // ours says what it does and obeys RetryInfo
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, problem(Misused, "", "the gRPC address can't be used").because(err)
	}
	return &GRPC{conn: conn, retry: retry}, nil
}

// Close ends the connection.
func (c *GRPC) Close() error { return c.conn.Close() }

// passingCodes are those of calls that may succeed later: what HTTP tells as 5xx and 429.
var passingCodes = []codes.Code{codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.DataLoss, codes.DeadlineExceeded}

// Certificate implements CA.
func (c *GRPC) Certificate(ctx context.Context, s Submission) ([]*x509.Certificate, error) {
	id := requestid.New()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", id)
	ca := fulciov2.NewCAClient(c.conn)
	for n := 1; ; n++ {
		answer, err := ca.CreateSigningCertificate(ctx, s)
		if err == nil {
			return answerChain(answer)
		}
		st := status.Convert(err)
		var after time.Duration
		reason, passing := "", slices.Contains(passingCodes, st.Code())
		for _, d := range st.Details() {
			switch d := d.(type) {
			case *errdetails.RetryInfo:
				after = d.GetRetryDelay().AsDuration()
			case *errdetails.ErrorInfo:
				reason = d.GetReason()
			case *errdetails.RequestInfo:
				id = d.GetRequestId()
			}
		}
		switch {
		case passing && c.retry.again(ctx, n, after, "the CA answered "+st.Code().String()):
		case ctx.Err() != nil:
			return nil, unreachable(ctx, "the CA", ctx.Err())
		default:
			return nil, refusal("the CA", "gRPC "+st.Code().String(), st.Message(), reason, id, passing)
		}
	}
}
