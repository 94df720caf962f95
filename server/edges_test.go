package server

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcgzip "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-ca/mayfly/internal/fault"
	fulciov1beta "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v1beta"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

func TestWhiteSpaceRoundATokenIsNotOfIt(t *testing.T) {
	t.Parallel()
	r := run(t)
	token := r.issuer.Token(t, nil)
	for _, spaced := range []string{token + "\n", " " + token, "\r\n\t" + token + " \r\n"} {
		chainOf(t, r.postV2(t, setToken(r.bodyV2(t), spaced)))
		if _, err := fulciov2.NewCAClient(dial(t, r.server.Addresses().GRPC, nil)).CreateSigningCertificate(t.Context(), r.requestV2(t, spaced)); err != nil {
			t.Errorf("%q: %v", spaced[len(spaced)-3:], err)
		}
	}
	inside := token[:40] + " " + token[40:]
	readRefusal(t, r.postV2(t, setToken(r.bodyV2(t), inside)), 401, fault.TokenMalformed)
	response := r.send(t, http.MethodPost, v1Path, r.bodyV1(t), "Authorization", "Bearer  "+token+" ")
	if response.StatusCode != http.StatusCreated {
		t.Errorf("v1: %d %s", response.StatusCode, text(t, response))
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), metadataToken, " "+token+" ")
	old := fulciov1beta.NewCAClient(dial(t, r.server.Addresses().GRPC, nil))
	if _, err := old.CreateSigningCertificate(ctx, &fulciov1beta.CreateSigningCertificateRequest{
		PublicKey: &fulciov1beta.PublicKey{Content: []byte(r.spki)}, SignedEmailAddress: r.prove(t, "alice@example.com"),
	}); err != nil {
		t.Errorf("v1 over gRPC: %v", err)
	}
}

func TestCompressedMessages(t *testing.T) {
	t.Parallel()
	r := run(t)
	for _, address := range []net.Addr{r.server.Addresses().HTTP, r.server.Addresses().GRPC} {
		conn := dial(t, address, nil)
		client := fulciov2.NewCAClient(conn)
		if _, err := client.CreateSigningCertificate(t.Context(), r.requestV2(t, r.issuer.Token(t, nil)), grpc.UseCompressor(grpcgzip.Name)); err != nil {
			t.Errorf("gzip: %v", err)
		}
		bomb := r.requestV2(t, "")
		bomb.GetPublicKeyRequest().GetPublicKey().Content = strings.Repeat("A", 1<<20)
		_, err := client.CreateSigningCertificate(t.Context(), bomb, grpc.UseCompressor(grpcgzip.Name))
		if status.Code(err) != codes.InvalidArgument || reasonIn(err) != string(fault.BodyTooLarge) {
			t.Errorf("a bomb: %v", err)
		}
	}
	for name, tt := range map[string]struct {
		flag     byte
		encoding string
		message  []byte
		want     string
	}{
		"no gzip":       {1, "gzip", []byte("plain"), string(fault.RequestMalformed)},
		"another":       {1, "zstd", []byte("plain"), string(fault.RequestMalformed)},
		"none is named": {1, "", []byte("plain"), string(fault.RequestMalformed)},
		"another flag":  {7, "gzip", []byte("plain"), string(fault.RequestMalformed)},
		"cut off":       {1, "gzip", packed(t, strings.Repeat("x", 5000))[:30], string(fault.RequestMalformed)},
	} {
		frame := append([]byte{tt.flag, 0, 0, 0, 0}, tt.message...)
		binary.BigEndian.PutUint32(frame[1:], uint32(len(tt.message))) // #nosec G115 -- short
		err := r.rawCall(t, frame, tt.encoding)
		if status.Code(err) != codes.InvalidArgument || reasonIn(err) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.discreet(t, "plain\"")
}

func packed(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := io.WriteString(z, text)
	if err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// rawCall sends the bytes of a body to a method, and gives the status.
func (r *running) rawCall(t *testing.T, body []byte, encoding string) error {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.server.Addresses().GRPC.String()+fulciov2.CA_CreateSigningCertificate_FullMethodName, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("Te", "trailers")
	if encoding != "" {
		request.Header.Set("Grpc-Encoding", encoding)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	text(t, response)
	return statusOf(t, response)
}

func TestEncodedBodiesAreRefusedByName(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	body := asJSON(t, r.bodyV2(t))
	for _, how := range []string{"gzip", "br", "deflate, gzip"} {
		f := readRefusal(t, r.postV2(t, body, "Content-Encoding", how), 400, fault.RequestMalformed)
		if !strings.Contains(f.Message, "Content-Encoding") {
			t.Errorf("%s: %s", how, f.Message)
		}
	}
	r.untouched(t)
	chainOf(t, r.postV2(t, body, "Content-Encoding", "identity"))
}

func TestPagesMayTrace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	response := r.send(t, http.MethodOptions, v2Path, nil, "Origin", "https://app.example.com", "Access-Control-Request-Method", "POST",
		"Access-Control-Request-Headers", "authorization,baggage,content-type,traceparent,tracestate")
	allowed := strings.ToLower(response.Header.Get("Access-Control-Allow-Headers"))
	for _, want := range []string{"authorization", "content-type", "traceparent", "tracestate", "baggage"} {
		if !strings.Contains(allowed, want) {
			t.Errorf("%s isn't allowed: %s", want, allowed)
		}
	}
}

func TestSlashesThatMeanNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *Config, o *Options) {
		o.Mounts = map[string]http.Handler{"/ctlog/": http.NotFoundHandler()}
	})
	for _, path := range []string{"//api/v2/signingCert", "/api/v2/signingCert/", "/api//v2///signingCert//"} {
		chainOf(t, r.send(t, http.MethodPost, path, r.bodyV2(t)))
	}
	for _, path := range []string{"//api/v2/trustBundle", "/trusted_root.json/", "//healthz/", "//"} {
		if response := r.send(t, http.MethodGet, path, nil); response.StatusCode != 200 {
			t.Errorf("%s: %d", path, response.StatusCode)
		}
	}
	for _, path := range []string{"/ctlog", "//ctlog/tile", "/x/../api/v2/trustBundle", "/./api/v2/trustBundle", "/api/v2/trustbundle/", "/api/v2"} {
		if response := r.send(t, http.MethodGet, path, nil); response.StatusCode != 404 {
			t.Errorf("%s: %d", path, response.StatusCode)
		}
	}
}

// reasonIn is the reason in a status of ours.
func reasonIn(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// statusOf is the status in the trailer of an answer.
func statusOf(t *testing.T, response *http.Response) error {
	t.Helper()
	data, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(response.Trailer.Get("Grpc-Status-Details-Bin"), "="))
	if err != nil {
		t.Fatal(err)
	}
	var s statuspb.Status
	if err := proto.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return status.ErrorProto(&s)
}

func FuzzUnpack(f *testing.F) {
	const limit = 1 << 10
	for _, text := range []string{"", "message", strings.Repeat("x", limit), strings.Repeat("x", limit+1)} {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := io.WriteString(z, text); err != nil || z.Close() != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		frame, refused := unpack(packed, limit)
		if refused != nil {
			return
		}
		if n := len(frame) - frameHead; n > limit || frame[0] != 0 || int(binary.BigEndian.Uint32(frame[1:])) != n {
			t.Errorf("%x: a frame of %d bytes with the head %x", packed, len(frame), frame[:frameHead])
		}
	})
}
