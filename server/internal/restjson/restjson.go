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

	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

var (
	jsonIn  = protojson.UnmarshalOptions{DiscardUnknown: true}
	jsonOut = protojson.MarshalOptions{EmitUnpopulated: true}

	// position finds where protojson stumbled; the rest of its text quotes the
	// body, which holds a token.
	position = regexp.MustCompile(`\(line (\d+):(\d+)\)`)
)

// signingCertificate is the JSON of the one answer that is sent thousands of times a
// second. It is written for a fifth of the time that protojson takes.
type signingCertificate struct {
	Embedded struct {
		Chain struct {
			Certificates []string `json:"certificates"`
		} `json:"chain"`
	} `json:"signedCertificateEmbeddedSct"`
}

// Marshal writes m as JSON, or the bytes of an HttpBody as they are, and says which
// media type that is.
func Marshal(m proto.Message) (media string, data []byte, err error) {
	media = "application/json"
	switch m := m.(type) {
	case *httpbody.HttpBody:
		return m.GetContentType(), m.GetData(), nil
	case *fulciov2.SigningCertificate:
		var out signingCertificate
		if out.Embedded.Chain.Certificates = m.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates(); len(out.Embedded.Chain.Certificates) > 0 {
			data, err = json.Marshal(out)
			return media, data, err
		}
	}
	data, err = jsonOut.Marshal(m)
	return media, data, err
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
