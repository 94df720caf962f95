package server

import (
	"bytes"
	"context"
	"errors"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/requestid"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
	mayflyv1 "github.com/mayfly-ca/mayfly/proto/mayfly/v1"
	"github.com/mayfly-ca/mayfly/server/internal/restjson"
)

// newGateway is what translates REST into calls of the API's methods, which are in this process.
func (s *Server) newGateway() (*runtime.ServeMux, error) {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, restjson.New()),
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }), // Authorization comes through regardless
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithForwardResponseOption(created),
		runtime.WithErrorHandler(s.gatewayError),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithWriteContentLength(),
	)
	to := inProcess{s, map[string]rpcMethod{}}
	s.methods(func(_ *grpc.ServiceDesc, methods []rpcMethod) {
		for _, m := range methods {
			to.methods[m.rpc] = m
		}
	})
	unused := context.TODO() //nolint:forbidigo // the registrations ask for a context and make no use of it
	return mux, errors.Join(
		fulciov2.RegisterCAHandlerClient(unused, mux, fulciov2.NewCAClient(to)),
		fulciov1beta.RegisterCAHandlerClient(unused, mux, fulciov1beta.NewCAClient(to)),
		mayflyv1.RegisterIndexHandlerClient(unused, mux, mayflyv1.NewIndexClient(to)),
		mayflyv1.RegisterRevocationHandlerClient(unused, mux, mayflyv1.NewRevocationClient(to)),
	)
}

// inProcess is the gateway's connection to the API.
type inProcess struct {
	server  *Server
	methods map[string]rpcMethod // by full name
}

// Invoke calls a method by the one chain that all calls go through.
func (c inProcess) Invoke(ctx context.Context, method string, in, out any, _ ...grpc.CallOption) error {
	sent, _ := metadata.FromOutgoingContext(ctx)
	answer, err := c.server.serve(metadata.NewIncomingContext(ctx, sent), edgeREST, c.methods[method], func(message proto.Message) *fault.Error {
		proto.Merge(message, in.(proto.Message)) //nolint:forcetypeassert // generated code gives no other
		return nil
	})
	if err == nil {
		proto.Merge(out.(proto.Message), answer.(proto.Message)) //nolint:forcetypeassert // the same
	}
	return err
}

// NewStream is of grpc.ClientConnInterface. The API has no streams.
func (inProcess) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "the API has no streams")
}

// created makes the v1 answer 201: cosign v2 accepts nothing else.
func created(ctx context.Context, w http.ResponseWriter, _ proto.Message) error {
	if name, ok := runtime.RPCMethod(ctx); ok && name == createV1.rpc {
		w.WriteHeader(http.StatusCreated)
	}
	return nil
}

// gatewayError answers a failed call. What isn't a *fault.Error never reached the API: the
// gateway couldn't read it. It is refused here, in words that quote nothing of it.
func (s *Server) gatewayError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	var f *fault.Error
	switch st, ok := status.FromError(err); {
	case errors.As(err, &f):
		answerTo(f, requestid.From(ctx)).write(w)
	case ok && st.Code() == codes.InvalidArgument:
		s.refuse(w, r, methodAt(r.URL.Path), fault.New(fault.RequestMalformed, "%s", st.Message()))
	default:
		s.refuse(w, r, methodAt(r.URL.Path), fault.From(err))
	}
}

// held is an answer that is tagged before it leaves.
type held struct {
	http.ResponseWriter
	code int
	body bytes.Buffer
}

// WriteHeader keeps the status.
func (h *held) WriteHeader(code int) { h.code = code }

// Write keeps the body.
func (h *held) Write(b []byte) (int, error) { return h.body.Write(b) }
