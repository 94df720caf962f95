package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/internal/loopback"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

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
		scheme, host = "", address
	}
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		return nil, problem(Misused, "write --grpc host:port", "the gRPC address is not host:port")
	}
	if scheme == "" {
		scheme = "https"
		if loopback.Host(name) {
			scheme = "http"
		}
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
		after, passing := passes(err)
		if !passing || !c.retry.again(ctx, n, after, "the CA answered "+status.Code(err).String()) {
			return nil, grpcFault(ctx, err, id)
		}
	}
}

// passes reports whether the same call may succeed later (what HTTP tells as
// 5xx and 429), and the delay that the server asks for.
func passes(err error) (after time.Duration, passing bool) {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			after = info.GetRetryDelay().AsDuration()
		}
	}
	switch st.Code() {
	case codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.DataLoss, codes.DeadlineExceeded:
		return after, true
	default:
		return after, false
	}
}

func grpcFault(ctx context.Context, err error, id string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return unreachable(ctx, "the CA", context.DeadlineExceeded)
	}
	st := status.Convert(err)
	reason := ""
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			reason = d.GetReason()
		case *errdetails.RequestInfo:
			id = d.GetRequestId()
		}
	}
	_, passing := passes(err)
	return refusal("the CA", "gRPC "+st.Code().String(), st.Message(), reason, id, passing)
}
