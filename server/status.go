package server

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// domain is google.rpc.ErrorInfo.domain: whose list the reasons belong to.
const domain = "mayfly.dev"

// outcome is what a kind of failure looks like on both edges.
type outcome struct {
	code codes.Code
	http int
	// fixed, when not empty, replaces the failure's own text and metadata.
	fixed string
	// retry is the Retry-After of a failure that names none; zero sends none.
	retry time.Duration
}

// statusClientGone is what logs and metrics say of a request whose client went
// away; nobody reads it on the wire. The number is nginx's.
const statusClientGone = 499

// outcomes is the one table from kind to gRPC code and HTTP status.
var outcomes = map[fault.Kind]outcome{
	fault.Internal:         {code: codes.Internal, http: http.StatusInternalServerError, fixed: "internal error"},
	fault.Malformed:        {code: codes.InvalidArgument, http: http.StatusBadRequest},
	fault.TooLarge:         {code: codes.InvalidArgument, http: http.StatusRequestEntityTooLarge},
	fault.Unauthenticated:  {code: codes.Unauthenticated, http: http.StatusUnauthorized},
	fault.Denied:           {code: codes.PermissionDenied, http: http.StatusForbidden},
	fault.RateLimited:      {code: codes.ResourceExhausted, http: http.StatusTooManyRequests, retry: 5 * time.Second},
	fault.Unavailable:      {code: codes.Unavailable, http: http.StatusServiceUnavailable, retry: 5 * time.Second},
	fault.DeadlineExceeded: {code: codes.DeadlineExceeded, http: http.StatusGatewayTimeout, fixed: "the request's time ran out; try again"},
	fault.Canceled:         {code: codes.Canceled, http: statusClientGone, fixed: "the client went away"},
	fault.NotFound:         {code: codes.NotFound, http: http.StatusNotFound},
	fault.NotAllowed:       {code: codes.Unimplemented, http: http.StatusMethodNotAllowed},
}

// answer is a failure as the client reads it, on either edge.
type answer struct {
	outcome
	reason   fault.Reason
	message  string
	metadata map[string]string
	retry    time.Duration
	id       string
}

// answerTo says what the client with request id reads about f. What is ours
// has fixed text: nothing of the failure itself gets out.
func answerTo(f *fault.Error, id string) answer {
	o := outcomes[f.Kind()]
	a := answer{outcome: o, reason: f.Reason, message: strings.ToValidUTF8(f.Public, "\uFFFD"), metadata: f.Metadata, retry: o.retry, id: id}
	if f.Kind() == fault.Internal {
		a.reason = fault.ReasonInternal
	}
	if o.fixed != "" {
		a.message, a.metadata = o.fixed, nil
	}
	if o.retry > 0 && f.RetryAfter != 0 { // not sent where it is fault.NoRetry
		a.retry = f.RetryAfter
	}
	return a
}

// Answer is the HTTP status of a failure, and what the client reads of it.
func Answer(f *fault.Error) (code int, words string) {
	a := answerTo(f, "")
	return a.http, a.message
}

// status is the answer as a google.rpc.Status with its details.
func (a answer) status() *status.Status {
	s := status.New(a.code, a.message)
	details := []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Reason: string(a.reason), Domain: domain, Metadata: a.metadata},
		&errdetails.RequestInfo{RequestId: a.id},
	}
	if a.retry > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(a.retry)})
	}
	detailed, err := s.WithDetails(details...)
	if err != nil { // a metadata value that isn't UTF-8: the status alone must do
		return s
	}
	return detailed
}

// grpc is the answer as a gRPC status error.
func (a answer) grpc() error { return a.status().Err() }

// body is the answer as the JSON of a google.rpc.Status.
func (a answer) body() []byte {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(a.status().Proto())
	if err != nil { // can't be: its text is UTF-8
		return []byte(`{"code":13,"message":"internal error","details":[]}`)
	}
	return b
}

// write sends the answer over HTTP.
func (a answer) write(w http.ResponseWriter) {
	h := w.Header()
	h.Del("ETag")
	if a.code == codes.Unauthenticated { // RFC 9110 §11.6.1
		h.Set("WWW-Authenticate", `Bearer realm="mayfly"`)
	}
	a.send(w, "application/json", a.body())
}

// send sends a body with the answer's status, and when to try again: whole seconds,
// rounded up. It is never HTML, and nobody else reads it when the client has gone.
func (a answer) send(w http.ResponseWriter, media string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", media)
	h.Set("Cache-Control", "no-store")
	if a.retry > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((a.retry+time.Second-1)/time.Second), 10))
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(a.http)
	_, _ = w.Write(body) // #nosec G705 -- it is never HTML
}
