// Package restjson is how REST reads and writes messages. It is lenient where
// clients differ and nothing is at stake (unknown fields, both spellings of a
// name, any `algorithm`), and writes unpopulated fields because some clients
// require them.
package restjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"

	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

var (
	jsonIn = protojson.UnmarshalOptions{DiscardUnknown: true}

	// position finds where protojson stumbled; the rest of its text quotes the
	// body, which holds a token.
	position = regexp.MustCompile(`\(line (\d+):(\d+)\)`)
)

// Codec is how the gateway reads and writes messages.
type Codec struct{ runtime.HTTPBodyMarshaler }

// New makes a Codec.
func New() *Codec {
	return &Codec{runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{MarshalOptions: protojson.MarshalOptions{EmitUnpopulated: true}}}}
}

// signingCertificate is the JSON of the one answer that is sent thousands of times a
// second. It is written for a fifth of the time that protojson takes.
type signingCertificate struct {
	Embedded struct {
		Chain struct {
			Certificates []string `json:"certificates"`
		} `json:"chain"`
	} `json:"signedCertificateEmbeddedSct"`
}

// Marshal writes v as JSON, or the bytes of an HttpBody as they are.
func (c *Codec) Marshal(v any) ([]byte, error) {
	if m, ok := v.(*fulciov2.SigningCertificate); ok {
		var out signingCertificate
		if out.Embedded.Chain.Certificates = m.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates(); len(out.Embedded.Chain.Certificates) > 0 {
			return json.Marshal(out)
		}
	}
	return c.HTTPBodyMarshaler.Marshal(v)
}

// body is a request's, read within its limit.
type body struct {
	*bytes.Reader
	data []byte
}

// Body is a request's body for NewDecoder.
func Body(data []byte) io.ReadCloser { return &body{bytes.NewReader(data), data} }

// Close is of io.ReadCloser.
func (*body) Close() error { return nil }

// NewDecoder reads one message, the whole of a Body.
func (*Codec) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		read, isBody := r.(*body)
		message, isMessage := v.(proto.Message)
		if !isBody || !isMessage {
			return errors.New("server: not a message in a body that was read")
		}
		return Unmarshal(read.data, message)
	})
}

// Unmarshal reads the JSON of a message; no text at all is that of an empty one. Its
// error says where the JSON is wrong and never quotes it.
func Unmarshal(data []byte, m proto.Message) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil
	}
	err := jsonIn.Unmarshal(data, m)
	if err == nil {
		return nil
	}
	// Clients fill one field with anything. It is blanked only when it may be to
	// blame, so that nobody else pays for it.
	if blanked, ok := blankAlgorithm(data); ok {
		proto.Reset(m)
		if err = jsonIn.Unmarshal(blanked, m); err == nil {
			return nil
		}
	}
	if at := position.FindStringSubmatch(err.Error()); at != nil {
		return fmt.Errorf("the body is not the JSON of this request: see line %s, column %s, and /openapi.json", at[1], at[2])
	}
	return errors.New("the body is not the JSON of this request: see /openapi.json")
}

// blankAlgorithm is data with the value of each member called "algorithm" made
// null, which protojson takes for any field. It is false when there is none, or
// data isn't JSON.
func blankAlgorithm(data []byte) ([]byte, bool) {
	if !bytes.Contains(data, []byte(`"algorithm"`)) {
		return nil, false
	}
	var out []byte
	var done int64 // how much of data is in out
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return append(out, data[done:]...), done > 0
		}
		if err != nil {
			return nil, false
		}
		// A colon makes it a member's name.
		if token != "algorithm" || !bytes.HasPrefix(bytes.TrimLeft(data[d.InputOffset():], " \t\r\n"), []byte(":")) {
			continue
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, false
		}
		end := d.InputOffset()
		out = append(append(out, data[done:end-int64(len(value))]...), "null"...)
		done = end
	}
}
