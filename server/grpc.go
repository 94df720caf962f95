package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// metadataRequestID names a request, in both directions.
const metadataRequestID = "x-request-id"

const (
	// keepaliveLeast is how far apart a client's pings must be.
	keepaliveLeast = 10 * time.Second
	// keepaliveTime is when a silent client is pinged, keepaliveWait how long its answer may take.
	keepaliveTime, keepaliveWait = 2 * time.Minute, 20 * time.Second
)

// newGRPC makes a gRPC server with every service on it. There are two: the one
// that listens, and the one behind the REST port, whose connections net/http owns.
func (s *Server) newGRPC(extra ...grpc.ServerOption) *grpc.Server {
	l := s.config.Limits
	g := grpc.NewServer(append([]grpc.ServerOption{
		// Between the limit and twice the limit a request is refused in our own
		// words (checkSize); beyond, unread, in gRPC's.
		grpc.MaxRecvMsgSize(2 * l.BodyBytes),
		grpc.MaxHeaderListSize(uint32(l.HeaderBytes)),
		grpc.MaxConcurrentStreams(uint32(l.Streams)),
		grpc.ConnectionTimeout(l.HeaderTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveLeast, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: l.IdleTimeout, Time: keepaliveTime, Timeout: keepaliveWait}),
		grpc.ForceServerCodecV2(arrivals{encoding.GetCodecV2(protocodec.Name)}),
		grpc.InTapHandle(s.limitArrival),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	}, extra...)...)
	register(g, &fulciov2.CA_ServiceDesc, fulcioV2{server: s, edge: edgeGRPC}, s.readable(createV2, trustBundle, configuration))
	register(g, &fulciov1beta.CA_ServiceDesc, fulcioV1Beta{server: s, edge: edgeGRPC}, s.readable(createV1, rootCertificate))
	healthpb.RegisterHealthServer(g, s.ready.health)
	reflection.Register(g)
	return g
}

// register adds a service, each of its methods wrapped.
func register(g *grpc.Server, desc *grpc.ServiceDesc, service any, wrap func(int, grpc.MethodDesc) grpc.MethodDesc) {
	own := *desc
	own.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		own.Methods[i] = wrap(i, m)
	}
	g.RegisterService(&own, service)
}

// readable accounts for requests that can't be read, which gRPC would answer
// for us: as an internal error, when they aren't the message that they should
// be. methods are in the order of the service.
func (s *Server) readable(methods ...method) func(int, grpc.MethodDesc) grpc.MethodDesc {
	return func(i int, desc grpc.MethodDesc) grpc.MethodDesc {
		handle := desc.Handler
		desc.Handler = func(service any, ctx context.Context, decode func(any) error, icept grpc.UnaryServerInterceptor) (any, error) {
			ctx, client := s.locatedGRPC(ctx)
			if f := s.admit(methods[i], client); f != nil {
				return nil, s.refuseGRPC(ctx, methods[i], f)
			}
			var f *fault.Error
			out, err := handle(service, ctx, func(v any) error {
				in := arrival{message: v}
				if err := decode(&in); err != nil {
					f = s.unread(err)
					return err
				}
				if in.err != nil { // its text could quote the request
					f = fault.New(fault.RequestMalformed, "the request is not a protobuf message of this method")
				}
				return in.err
			}, icept)
			if f == nil {
				return out, err
			}
			return nil, s.refuseGRPC(ctx, methods[i], f)
		}
		return desc
	}
}

// refuseGRPC accounts for a request that never reached its handler, and is the
// answer to it.
func (s *Server) refuseGRPC(ctx context.Context, m method, f *fault.Error) error {
	ctx = identify(ctx)
	s.refuse(ctx, m, edgeGRPC, f)
	return answerTo(f, requestid.From(ctx)).grpc()
}

// unread classifies a message that did not arrive. The client has gRPC's own
// status for it already.
func (s *Server) unread(err error) *fault.Error {
	switch status.Code(err) {
	case codes.ResourceExhausted:
		return tooLarge(fault.BodyTooLarge, "the request", s.config.Limits.BodyBytes)
	case codes.DeadlineExceeded:
		return fault.From(context.DeadlineExceeded)
	case codes.Canceled:
		return fault.From(context.Canceled)
	default:
		return fault.New(fault.RequestMalformed, "the request ended early")
	}
}

// arrival receives a message together with what was wrong with it, so that the
// answer to that is ours to give.
type arrival struct {
	message any
	err     error
}

// arrivals is gRPC's protobuf codec, but for arrival.
type arrivals struct{ encoding.CodecV2 }

// Unmarshal keeps the error of an arrival in it.
func (c arrivals) Unmarshal(data mem.BufferSlice, v any) error {
	if in, ok := v.(*arrival); ok {
		in.err = c.CodecV2.Unmarshal(data, in.message)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// limitArrival bounds how long a message may take to arrive and be answered, for
// every method but the streams: a client that opens one and sends nothing ends here.
func (s *Server) limitArrival(ctx context.Context, info *tap.Info) (context.Context, error) {
	if streaming(info.FullMethodName) {
		return ctx, nil
	}
	limited, cancel := context.WithTimeout(ctx, s.config.Limits.ReadTimeout+s.config.RequestTimeout)
	context.AfterFunc(ctx, cancel) // gRPC ends ctx with the request
	return limited, nil
}

// streaming reports whether a method stays open: health watches and reflection.
func streaming(fullMethod string) bool {
	return fullMethod == healthpb.Health_Watch_FullMethodName || strings.HasPrefix(fullMethod, "/grpc.reflection.")
}

// identify gives a gRPC request its id, and tells the client.
func identify(ctx context.Context) context.Context {
	id := ""
	if sent := metadata.ValueFromIncomingContext(ctx, metadataRequestID); len(sent) > 0 {
		id = sent[0]
	}
	if !requestid.Harmless(id) {
		id = requestid.New()
	}
	// It fails only when the header has been sent, which has not been begun yet.
	_ = grpc.SetHeader(ctx, metadata.Pairs(metadataRequestID, id))
	return requestid.With(ctx, id)
}

// unary gives every unary request its id, and its failure the status of the one table.
func (s *Server) unary(ctx context.Context, in any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (out any, err error) {
	ctx = identify(ctx)
	defer func() {
		if p := recover(); p != nil {
			s.panicked(ctx, info.FullMethod, p)
			out, err = nil, answerTo(fault.From(errPanic), requestid.From(ctx)).grpc()
		}
	}()
	out, err = handle(ctx, in)
	return out, translated(err, requestid.From(ctx))
}

// stream does the same for streams.
func (s *Server) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	ctx := identify(stream.Context())
	defer func() {
		if p := recover(); p != nil {
			s.panicked(ctx, info.FullMethod, p)
			err = answerTo(fault.From(errPanic), requestid.From(ctx)).grpc()
		}
	}()
	return translated(handle(service, stream), requestid.From(ctx))
}

// translated is err with the status of the one table. What is a status itself
// comes from gRPC's own services, and stays; one that is wrapped in an error of
// ours is what a KMS or a log answered us, and none of the client's business.
func translated(err error, id string) error {
	if err == nil {
		return nil
	}
	own, ok := err.(interface{ GRPCStatus() *status.Status }) // not what it wraps
	if ok && own.GRPCStatus().Code() != codes.Unknown {
		return err
	}
	return answerTo(fault.From(err), id).grpc()
}

// serveGRPC hands a request on the REST port to the gRPC server behind it.
func (s *Server) serveGRPC(w http.ResponseWriter, r *http.Request) {
	if streaming(r.URL.Path) {
		// These stay open; the port's deadlines are for single requests. A writer
		// without deadlines has none to lift.
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Time{})
		_ = control.SetWriteDeadline(time.Time{})
	}
	s.grpcShared.ServeHTTP(w, r)
}

// transport makes the listening gRPC server speak TLS when c isn't nil.
func transport(c *certificates) []grpc.ServerOption {
	if c == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(c.tlsConfig()))}
}
