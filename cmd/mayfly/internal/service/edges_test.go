package service

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/internal/fault"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
	"github.com/mayfly-ca/mayfly/server"
)

// signingRequest is what a client asks with.
type signingRequest struct {
	token string
	spki  string // PEM, as v2 sends it
	proof []byte
	csr   []byte
}

// answer is what a client got, on whichever edge.
type answer struct {
	edge    string
	status  int        // REST; 0 on gRPC
	code    codes.Code // gRPC
	reason  fault.Reason
	message string
	id      string // of the request, as the header or the trailer says
	bodyID  string // as the details say
	retry   time.Duration
	chain   []*x509.Certificate
	raw     string // everything that was answered
	took    time.Duration
	failed  error // no answer at all
}

// edge is one way to ask for a certificate.
type edge struct {
	name, id string
	header   bool // the token travels in a header
	ask      func(ctx context.Context, r *rig, o signingRequest, id string) answer
}

var edges = []edge{
	{"REST v2", "rest-v2", false, askRESTv2},
	{"gRPC v2", "grpc-v2", false, askGRPCv2},
	{"REST v1", "rest-v1", true, askRESTv1},
	{"gRPC v1", "grpc-v1", true, askGRPCv1},
}

// carries reports whether the edge can carry the request as it is to the service:
// a header can't have control characters or spaces at its ends, nor be of any
// size; a protobuf string is UTF-8; and gRPC itself refuses, unread, a message
// that is larger than twice a body.
func (e edge) carries(o signingRequest, l server.Limits) bool {
	if e.header && (len(o.token) >= l.HeaderBytes || strings.IndexFunc(o.token, func(c rune) bool { return c <= ' ' || c > '~' }) >= 0) {
		return false
	}
	if !strings.HasPrefix(e.id, "grpc") {
		return true
	}
	return len(o.token)+len(o.spki)+len(o.proof)+len(o.csr) < 2*l.BodyBytes-1024 && utf8.ValidString(o.token) && utf8.ValidString(o.spki)
}

// ask asks once and remembers the answer for the verdict.
func (r *rig) ask(t testing.TB, e edge, o signingRequest) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	id := r.nextID(e)
	began := time.Now()
	a := e.ask(ctx, r, o, id)
	a.edge, a.took = e.name, time.Since(began)
	if a.failed != nil {
		t.Errorf("%s: no answer: %v", e.name, a.failed)
		return a
	}
	if a.id != id || a.reason != "" && a.bodyID != id {
		t.Errorf("%s: request id %q in the header, %q in the details; %q was sent", e.name, a.id, a.bodyID, id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = append(r.answers, a)
	r.tokens = append(r.tokens, o.token)
	if a.reason == "" {
		r.issued.Add(1)
	}
	return a
}

func askRESTv2(ctx context.Context, r *rig, o signingRequest, id string) answer {
	body := map[string]any{"credentials": map[string]any{"oidcIdentityToken": o.token}}
	if o.csr != nil {
		body["certificateSigningRequest"] = o.csr
	} else {
		body["publicKeyRequest"] = map[string]any{"publicKey": map[string]any{"content": o.spki}, "proofOfPossession": o.proof}
	}
	a, text := r.post(ctx, "/api/v2/signingCert", body, id, "")
	if a.reason != "" || a.failed != nil {
		return a
	}
	var v struct {
		SignedCertificateEmbeddedSct struct {
			Chain struct{ Certificates []string }
		}
	}
	if a.failed = json.Unmarshal(text, &v); a.failed == nil {
		a.chain, a.failed = parseChain([]byte(strings.Join(v.SignedCertificateEmbeddedSct.Chain.Certificates, "")))
	}
	return a
}

func askRESTv1(ctx context.Context, r *rig, o signingRequest, id string) answer {
	body := map[string]any{}
	if o.csr != nil {
		body["certificateSigningRequest"] = o.csr
	} else {
		body["publicKey"] = map[string]any{"content": []byte(o.spki)}
		body["signedEmailAddress"] = o.proof
	}
	a, text := r.post(ctx, "/api/v1/signingCert", body, id, o.token)
	if a.reason == "" && a.failed == nil {
		a.chain, a.failed = parseChain(text)
	}
	return a
}

// post sends JSON and reads the answer, or the refusal in it.
func (r *rig) post(ctx context.Context, path string, body any, id, bearer string) (a answer, text []byte) {
	data, err := json.Marshal(body)
	if err != nil {
		return answer{failed: err}, nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+path, bytes.NewReader(data))
	if err != nil {
		return answer{failed: err}, nil
	}
	request.Header.Set("X-Request-Id", id)
	if bearer != "" {
		request.Header.Set("Authorization", "Bearer "+bearer)
	}
	response, err := r.http.Do(request)
	if err != nil {
		return answer{failed: err}, nil
	}
	defer response.Body.Close()
	if text, err = io.ReadAll(response.Body); err != nil {
		return answer{failed: err}, nil
	}
	a = answer{status: response.StatusCode, id: response.Header.Get("X-Request-Id"), raw: string(text)}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil {
		a.retry = time.Duration(seconds) * time.Second
	}
	if a.status < 300 {
		return a, text
	}
	var v struct {
		Message string
		Details []struct {
			Reason    fault.Reason
			RequestID string `json:"requestId"`
		}
	}
	a.failed = json.Unmarshal(text, &v)
	a.message = v.Message
	for _, d := range v.Details {
		a.reason += d.Reason
		a.bodyID += d.RequestID
	}
	return a, nil
}

func askGRPCv2(ctx context.Context, r *rig, o signingRequest, id string) answer {
	in := &fulciov2.CreateSigningCertificateRequest{Credentials: &fulciov2.Credentials{
		Credentials: &fulciov2.Credentials_OidcIdentityToken{OidcIdentityToken: o.token}}}
	if o.csr != nil {
		in.Key = &fulciov2.CreateSigningCertificateRequest_CertificateSigningRequest{CertificateSigningRequest: o.csr}
	} else {
		in.Key = &fulciov2.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulciov2.PublicKeyRequest{
			PublicKey: &fulciov2.PublicKey{Content: o.spki}, ProofOfPossession: o.proof}}
	}
	var header metadata.MD
	out, err := fulciov2.NewCAClient(r.grpc).CreateSigningCertificate(metadata.AppendToOutgoingContext(ctx, "x-request-id", id), in, grpc.Header(&header))
	a := grpcAnswer(header, err)
	if err == nil {
		a.chain, a.failed = parseChain([]byte(strings.Join(out.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates(), "")))
	}
	return a
}

func askGRPCv1(ctx context.Context, r *rig, o signingRequest, id string) answer {
	in := &fulciov1beta.CreateSigningCertificateRequest{CertificateSigningRequest: o.csr}
	if o.csr == nil {
		in.PublicKey, in.SignedEmailAddress = &fulciov1beta.PublicKey{Content: []byte(o.spki)}, o.proof
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", id, "authorization", "Bearer "+o.token)
	var header metadata.MD
	out, err := fulciov1beta.NewCAClient(r.grpc).CreateSigningCertificate(ctx, in, grpc.Header(&header))
	a := grpcAnswer(header, err)
	if err == nil {
		a.chain, a.failed = parseChain(out.GetData())
	}
	return a
}

func grpcAnswer(header metadata.MD, err error) answer {
	s := status.Convert(err)
	a := answer{code: s.Code(), message: s.Message(), raw: s.Proto().String(), id: strings.Join(header.Get("x-request-id"), ",")}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			a.reason = fault.Reason(d.GetReason())
		case *errdetails.RequestInfo:
			a.bodyID = d.GetRequestId()
		case *errdetails.RetryInfo:
			a.retry = d.GetRetryDelay().AsDuration()
		}
	}
	if err != nil && a.reason == "" {
		a.failed = err
	}
	return a
}

func parseChain(text []byte) (chain []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return chain, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
}
