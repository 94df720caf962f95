package server

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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
		// words (checkSizes); beyond, unread, in gRPC's.
		grpc.MaxRecvMsgSize(2 * l.BodyBytes),
		grpc.MaxHeaderListSize(uint32(l.HeaderBytes)),
		grpc.MaxConcurrentStreams(uint32(l.Streams)),
		grpc.ConnectionTimeout(l.HeaderTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveLeast, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: l.IdleTimeout, Time: keepaliveTime, Timeout: keepaliveWait}),
		grpc.ForceServerCodecV2(lenientCodec{encoding.GetCodecV2(protocodec.Name)}),
		grpc.InTapHandle(s.limitTime),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	}, extra...)...)
	s.register(g, &fulciov2.CA_ServiceDesc, fulcioV2{server: s, edge: edgeGRPC})
	s.register(g, &fulciov1beta.CA_ServiceDesc, fulcioV1Beta{server: s, edge: edgeGRPC})
	healthpb.RegisterHealthServer(g, s.ready.health)
	reflection.Register(g)
	return g
}

// register adds a service of the API. A method's request begins here, is decoded,
// and goes to the service, whose method ends in finish. What can't be decoded gRPC
// would answer for us, as an internal error; it is finished here.
func (s *Server) register(g *grpc.Server, desc *grpc.ServiceDesc, service any) {
	own := *desc
	own.Methods = slices.Clone(desc.Methods)
	for i, d := range own.Methods {
		m := methodAt("/" + desc.ServiceName + "/" + d.MethodName)
		// The interceptor isn't called: it is for the services that aren't the API's.
		own.Methods[i].Handler = func(service any, ctx context.Context, receive func(any) error, _ grpc.UnaryServerInterceptor) (out any, err error) {
			ctx, f := s.beginGRPC(ctx, m)
			decode := func(message any) error {
				if f = s.decode(receive, message); f != nil {
					return f
				}
				sendID(ctx)
				return nil
			}
			if f == nil {
				err = s.guard(ctx, m.rpc, func() (err error) {
					out, err = d.Handler(service, ctx, decode, nil)
					return err
				})
			}
			if f != nil {
				sendID(ctx)
				err = s.finish(ctx, &call{endpoint: m, edge: edgeGRPC, start: s.now()}, f)
			}
			return out, translated(err, requestid.From(ctx))
		}
	}
	g.RegisterService(&own, service)
}

// beginGRPC begins a gRPC request.
func (s *Server) beginGRPC(ctx context.Context, e *endpoint) (context.Context, *fault.Error) {
	id := ""
	if sent := metadata.ValueFromIncomingContext(ctx, metadataRequestID); len(sent) > 0 {
		id = sent[0]
	}
	return s.begin(ctx, e, id, metadata.ValueFromIncomingContext(ctx, headerForwarded))
}

// sendID tells the client its request's id, with the head of the answer. It fails
// only once that has been sent, as gRPC does for a message that doesn't arrive.
func sendID(ctx context.Context) {
	_ = grpc.SetHeader(ctx, metadata.Pairs(metadataRequestID, requestid.From(ctx)))
}

// decode receives a message, or says why it can't be.
func (s *Server) decode(receive func(any) error, message any) *fault.Error {
	in := decodeResult{message: message}
	if err := receive(&in); err != nil {
		return s.unread(err)
	}
	if in.err != nil { // its text could quote the request
		return fault.New(fault.RequestMalformed, "the request is not a protobuf message of this method")
	}
	return nil
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

// decodeResult receives a message together with what was wrong with it, so that
// the answer to that is ours to give.
type decodeResult struct {
	message any
	err     error
}

// lenientCodec is gRPC's protobuf codec, but for a decodeResult.
type lenientCodec struct{ encoding.CodecV2 }

// Unmarshal keeps the error of a decodeResult in it.
func (c lenientCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if in, ok := v.(*decodeResult); ok {
		in.err = c.CodecV2.Unmarshal(data, in.message)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// limitTime bounds how long a request may take to arrive and be answered, for
// every method but the streams: a client that opens one and sends nothing ends here.
func (s *Server) limitTime(ctx context.Context, info *tap.Info) (context.Context, error) {
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

// notAPI is what a request to gRPC's own services, health and reflection, asks for.
var notAPI = &endpoint{name: "grpc"}

// unary serves gRPC's own unary methods.
func (s *Server) unary(ctx context.Context, in any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (out any, err error) {
	err = s.serveNotAPI(ctx, info.FullMethod, func(ctx context.Context) (err error) {
		out, err = handle(ctx, in)
		return err
	})
	return out, err
}

// stream serves gRPC's own streams. A bound on streams as a class belongs here.
func (s *Server) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return s.serveNotAPI(stream.Context(), info.FullMethod, func(context.Context) error { return handle(service, stream) })
}

// serveNotAPI begins a request to one of gRPC's own services, and gives its failure
// the status of the one table. It isn't accounted for.
func (s *Server) serveNotAPI(ctx context.Context, method string, handle func(context.Context) error) error {
	ctx, f := s.beginGRPC(ctx, notAPI)
	sendID(ctx)
	if f != nil {
		return translated(f, requestid.From(ctx))
	}
	return translated(s.guard(ctx, method, func() error { return handle(ctx) }), requestid.From(ctx))
}

// translated is err with the status of the one table. An err that is a status
// comes from gRPC's own services, and stays. A status within an error of ours is
// what a KMS or a log answered us, and the client doesn't see it.
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
