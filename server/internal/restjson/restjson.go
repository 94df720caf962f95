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

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// Codec is the gateway's own, which writes an HttpBody as the bytes that it holds
// and all else as JSON, but for what is said at its methods.
type Codec struct{ runtime.HTTPBodyMarshaler }

// New makes a Codec.
func New() *Codec {
	return &Codec{runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{MarshalOptions: protojson.MarshalOptions{EmitUnpopulated: true}}}}
}

var (
	jsonIn = protojson.UnmarshalOptions{DiscardUnknown: true}

	// position finds where protojson stumbled; the rest of its text quotes the
	// body, which holds a token.
	position = regexp.MustCompile(`\(line (\d+):(\d+)\)`)

	errNotMessage = errors.New("server: not a protobuf message")
	errNotRead    = errors.New("server: a body that was not read within its limit")
)

// Marshal writes v as JSON, or the bytes of an HttpBody as they are.
func (c *Codec) Marshal(v any) ([]byte, error) {
	if m, ok := v.(*fulciov2.SigningCertificate); ok {
		if b, ok := appendChain(m.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates()); ok {
			return b, nil
		}
	}
	return c.HTTPBodyMarshaler.Marshal(v)
}

// appendChain writes the one answer that is sent thousands of times a second as
// protojson would, for a fifth of its time: a certificate's chain is text that
// needs no escape but for new lines. It is false for any other text, or none.
func appendChain(certificates []string) ([]byte, bool) {
	size := 64
	for _, c := range certificates {
		size += len(c) + len(c)/32
	}
	b := append(make([]byte, 0, size), `{"signedCertificateEmbeddedSct":{"chain":{"certificates":[`...)
	for i, c := range certificates {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		done := 0 // how much of c is in b
		for at := range len(c) {
			switch ch := c[at]; {
			case ch == '\n':
				b = append(append(b, c[done:at]...), `\n`...)
				done = at + 1
			case ch < ' ' || ch >= 0x7f || ch == '"' || ch == '\\':
				return nil, false
			}
		}
		b = append(append(b, c[done:]...), '"')
	}
	return append(b, "]}}}"...), len(certificates) > 0
}

// Unmarshal reads the JSON of a message. Its error says where the JSON is wrong
// and never quotes it.
func (*Codec) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return errNotMessage
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
	var (
		out   []byte
		done  int64 // how much of data is in out
		keys  []bool
		isKey bool // whether the next token is a member's name
	)
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
		switch t := token.(type) {
		case json.Delim:
			if t == '{' || t == '[' {
				keys = append(keys, t == '{')
			} else {
				keys = keys[:len(keys)-1]
			}
		case string:
			if isKey && t == "algorithm" {
				var value json.RawMessage
				if err := d.Decode(&value); err != nil {
					return nil, false
				}
				end := d.InputOffset()
				out = append(append(out, data[done:end-int64(len(value))]...), "null"...)
				done = end
				break // the next token is again a name, or the end
			}
			if isKey {
				isKey = false
				continue
			}
		}
		isKey = len(keys) > 0 && keys[len(keys)-1]
	}
}

// NewDecoder reads one message, the whole of r; its error is io.EOF where r is
// empty, which the gateway takes for an empty message.
func (c *Codec) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		b, ok := r.(*body) // read already, within its limit
		if !ok {
			return errNotRead
		}
		if len(bytes.TrimSpace(b.data)) == 0 {
			return io.EOF
		}
		return c.Unmarshal(b.data, v)
	})
}

// body is a request body that was read whole, within its limit.
type body struct {
	*bytes.Reader
	data []byte
}

// Body makes the body of a request that NewDecoder reads. data is all of it, read
// within the limit on bodies: no other is decoded.
func Body(data []byte) io.ReadCloser { return &body{bytes.NewReader(data), data} }

// Close is of io.ReadCloser.
func (*body) Close() error { return nil }
