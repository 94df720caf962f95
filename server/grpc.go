package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
)

// rpcMethod is a method of the API, as gRPC's generated code has it.
type rpcMethod struct {
	*endpoint
	desc    grpc.MethodDesc
	service any
}

// methods tells the methods of the API, by service.
func (s *Server) methods(tell func(desc *grpc.ServiceDesc, methods []rpcMethod)) {
	add := func(desc *grpc.ServiceDesc, service any) {
		var all []rpcMethod
		for _, d := range desc.Methods {
			all = append(all, rpcMethod{methodAt("/" + desc.ServiceName + "/" + d.MethodName), d, service})
		}
		tell(desc, all)
	}
	add(&fulciov2.CA_ServiceDesc, fulcioV2{server: s})
	add(&fulciov1beta.CA_ServiceDesc, fulcioV1Beta{server: s})
	add(&mayflyv1.Index_ServiceDesc, &Searching{Index: s.with.Index, Now: s.with.Now, Most: s.config.Limits.BodyBytes}) // the memory law has that much for each
	if s.with.Revocation != nil {
		add(&mayflyv1.Revocation_ServiceDesc, revocation{server: s})
	}
}

// newGRPC makes the gRPC server with every service on it. It takes single requests:
// the connections of both ports are net/http's, with its limits.
func (s *Server) newGRPC() *grpc.Server {
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(s.config.Limits.BodyBytes),
		grpc.ForceServerCodecV2(encoding.GetCodecV2(protocodec.Name)), // whatever a client calls it
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	s.methods(func(desc *grpc.ServiceDesc, methods []rpcMethod) { s.register(g, desc, methods) })
	healthpb.RegisterHealthServer(g, s.ready.health)
	reflection.Register(g)
	return g
}

// register adds a service of the API. A method's request is decoded from what serveGRPC
// has read: what can't be decoded gRPC would answer for us, as an internal error.
func (s *Server) register(g *grpc.Server, desc *grpc.ServiceDesc, methods []rpcMethod) {
	own := *desc
	own.Methods = slices.Clone(desc.Methods)
	for i, m := range methods {
		// The interceptor isn't called: it is for the services that aren't the API's.
		own.Methods[i].Handler = func(_ any, ctx context.Context, _ func(any) error, _ grpc.UnaryServerInterceptor) (out any, err error) {
			err = s.guard(ctx, m.rpc, func() (err error) {
				out, err = s.serve(ctx, edgeGRPC, m, receivedBy(ctx).decode)
				return err
			})
			return out, translated(err, requestid.From(ctx))
		}
	}
	g.RegisterService(&own, methods[0].service)
}

// reflectionPrefix begins the methods of reflection, of which there are two versions.
const reflectionPrefix = "/grpc.reflection."

// streaming reports whether a method stays open: health watches and reflection.
func streaming(fullMethod string) bool {
	return fullMethod == healthpb.Health_Watch_FullMethodName || strings.HasPrefix(fullMethod, reflectionPrefix)
}

// notAPI is what a request to gRPC's own services, health and reflection, asks for.
var notAPI = &endpoint{name: "grpc"}

// unary serves gRPC's own unary methods.
func (s *Server) unary(ctx context.Context, in any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (out any, err error) {
	err = s.serveNotAPI(ctx, info.FullMethod, func() (err error) {
		out, err = handle(ctx, in)
		return err
	})
	return out, err
}

// stream serves gRPC's own streams.
func (s *Server) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return s.serveNotAPI(stream.Context(), info.FullMethod, func() error { return handle(service, stream) })
}

// serveNotAPI serves a request to one of gRPC's own services, and gives its failure
// the status of the one table. It isn't accounted for.
func (s *Server) serveNotAPI(ctx context.Context, method string, handle func() error) error {
	if f := receivedBy(ctx).refused; f != nil {
		return translated(f, requestid.From(ctx))
	}
	return translated(s.guard(ctx, method, handle), requestid.From(ctx))
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

// isGRPC reports whether r is a call of gRPC (its protocol over HTTP/2, Requests).
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// serveGRPCPort is the port of gRPC alone.
func (s *Server) serveGRPCPort(w http.ResponseWriter, r *http.Request) {
	if !isGRPC(r) {
		http.Error(w, "gRPC alone is served here; REST has a port of its own", http.StatusUnsupportedMediaType)
		return
	}
	s.serveGRPC(w, r)
}

// received is what serveGRPC hands to the method of a call.
type received struct {
	message []byte       // of a single call, with its frame
	refused *fault.Error // in the place of the message
}

type receivedKey struct{}

// receivedBy is what was received for the call of ctx.
func receivedBy(ctx context.Context) *received {
	if in, ok := ctx.Value(receivedKey{}).(*received); ok {
		return in
	}
	return &received{message: make([]byte, frameHead)}
}

// decode decodes the message, or says why it can't be.
func (in *received) decode(message proto.Message) *fault.Error {
	if in.refused != nil {
		return in.refused
	}
	if err := proto.Unmarshal(in.message[frameHead:], message); err != nil { // its text could quote the request
		return fault.New(fault.RequestMalformed, "the request is not a protobuf message of this method").Because(err)
	}
	return nil
}

// serveGRPC is a call of gRPC, on either port: within the limits, and with its
// message read, it goes to the gRPC server. What is refused goes there too, and is
// answered in gRPC's form.
func (s *Server) serveGRPC(w http.ResponseWriter, r *http.Request) {
	e := methodAt(r.URL.Path)
	if e == nil {
		e = notAPI
	}
	out, r, f := s.admit(w, r, e)
	defer out.leave(r)
	if streaming(r.URL.Path) && f == nil {
		if f = s.serveStream(out, r); f == nil {
			return
		}
	}
	in := &received{refused: f}
	if f == nil {
		in.message, in.refused = s.readMessage(out, r)
	}
	if in.refused != nil {
		in.message = make([]byte, frameHead) // an empty one
	}
	r = r.WithContext(context.WithValue(r.Context(), receivedKey{}, in))
	s.handGRPC(out, r, io.NopCloser(bytes.NewReader(in.message)))
}

// handGRPC hands a call to the gRPC server, with another body.
func (s *Server) handGRPC(w http.ResponseWriter, r *http.Request, body io.ReadCloser) {
	inner := r.WithContext(r.Context())
	inner.Body = body
	inner.Header = r.Header.Clone()
	if !streaming(r.URL.Path) {
		inner.Header.Del(headerCompression) // the message isn't any more
	}
	inner.RemoteAddr = remote(r.Context()) // whom a proxy speaks for
	s.grpc.ServeHTTP(w, inner)
}

// frameHead is the length of what stands before a message: whether it is
// compressed, and its length (gRPC over HTTP/2, Length-Prefixed-Message).
const frameHead = 5

// readMessage reads the one message of a unary call, with its frame, within the
// limit that REST bodies have.
func (s *Server) readMessage(w *timedReply, r *http.Request) ([]byte, *fault.Error) {
	limit := s.config.Limits.BodyBytes
	data, f := s.readBody(w, r, limit+frameHead)
	switch {
	case f != nil && f.Reason == fault.BodyTooLarge:
		return nil, tooLarge(fault.BodyTooLarge, "the request", limit)
	case f != nil:
		return nil, f
	case len(data) < frameHead || uint64(binary.BigEndian.Uint32(data[1:])) != uint64(len(data)-frameHead):
		return nil, fault.New(fault.RequestMalformed, "the request is not one message of gRPC: it ended early, or went on after it")
	case data[0] == 0:
		return data, nil
	case data[0] != 1 || r.Header.Get(headerCompression) != "gzip":
		w.Header().Set("Grpc-Accept-Encoding", "gzip")
		return nil, fault.New(fault.RequestMalformed, "the request is compressed in a way that isn't known here; send it with gzip, or as it is")
	}
	return unpack(data[frameHead:], limit)
}

// headerCompression says how messages are compressed that say that they are.
const headerCompression = "Grpc-Encoding"

// unpack decompresses a message, within the limit, and puts it into a frame.
func unpack(packed []byte, limit int) ([]byte, *fault.Error) {
	malformed := fault.New(fault.RequestMalformed, "the request says that it is compressed with gzip, and isn't")
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, malformed.Because(err)
	}
	out := bytes.NewBuffer(make([]byte, frameHead, frameHead+firstRoom))
	n, err := io.Copy(out, io.LimitReader(z, int64(limit)+1))
	switch {
	case err != nil:
		return nil, malformed.Because(err)
	case n > int64(limit):
		return nil, tooLarge(fault.BodyTooLarge, "the request, once decompressed,", limit)
	}
	data := out.Bytes()
	binary.BigEndian.PutUint32(data[1:], uint32(n)) // #nosec G115 -- within the limit
	return data, nil
}

// serveStream is a call that stays open: a health watch, or reflection. They are
// bounded as a class, for each connection, and in time.
func (s *Server) serveStream(out *timedReply, r *http.Request) *fault.Error {
	l, conn := s.config.Limits, connectionOf(r.Context())
	if strings.HasPrefix(r.URL.Path, reflectionPrefix) && !conn.reflects {
		return fault.New(fault.MethodNotAllowed, "reflection isn't served on this port; the operator can turn it on with server.reflection")
	}
	if n := conn.streams.Add(1); n > streamsAConnection {
		conn.streams.Add(-1)
		return fault.New(fault.Overloaded, "this connection has %d streaming calls already, which is the limit", streamsAConnection).After(retrySoon)
	}
	defer conn.streams.Add(-1)
	ctx, cancel := context.WithTimeout(r.Context(), l.StreamTime)
	defer cancel()
	out.place.unlessEvicted(func() { out.stream = cancel })
	held, f := s.streams.enter(ClientAddress(ctx), out.place.evict)
	if held != nil {
		defer held.leave()
	}
	if f != nil {
		return f
	}
	// The port's deadlines are for single requests.
	out.place.unlessEvicted(func() {
		_, _ = out.control.SetReadDeadline(time.Time{}), out.control.SetWriteDeadline(time.Time{})
	})
	s.handGRPC(out, r.WithContext(ctx), http.MaxBytesReader(out, r.Body, int64(l.BodyBytes)))
	if ctx.Err() != nil { // in the place of what gRPC made of that
		h := out.Header()
		h.Set("Content-Type", "application/grpc")
		h.Set("Grpc-Status", strconv.Itoa(int(codes.Unavailable)))
		h.Set("Grpc-Message", "the time of this stream is over; open it again")
	}
	return nil
}
