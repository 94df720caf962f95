package server

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// TestMarshalCertificate holds the short way of writing an answer against
// protojson's, also for text that a certificate never is.
func TestMarshalCertificate(t *testing.T) {
	t.Parallel()
	const pem = "-----BEGIN CERTIFICATE-----\nMIIB+/==\n-----END CERTIFICATE-----\n"
	for name, certificates := range map[string][]string{
		"none": nil, "one": {pem}, "three": {pem, pem, pem}, "empty": {""}, "no final new line": {"abc\ndef"},
		"quote": {`a"b`}, "backslash": {`a\b`}, "control": {"a\x00b\tc\r\n"}, "beyond ASCII": {"é\u2028"}, "blank lines": {"\n\n"},
	} {
		m := &fulciov2.SigningCertificate{Certificate: &fulciov2.SigningCertificate_SignedCertificateEmbeddedSct{
			SignedCertificateEmbeddedSct: &fulciov2.SigningCertificateEmbeddedSCT{Chain: &fulciov2.CertificateChain{Certificates: certificates}},
		}}
		b, err := codec{}.Marshal(m)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !json.Valid(b) {
			t.Errorf("%s: %s isn't JSON", name, b)
		}
		back := new(fulciov2.SigningCertificate)
		if err := protojson.Unmarshal(b, back); err != nil || !proto.Equal(m, back) {
			t.Errorf("%s: reads back as %v, %v; want %v", name, back, err, m)
		}
	}
	if b, err := (codec{}).Marshal(&fulciov2.SigningCertificate{}); err != nil || string(b) != "{}" {
		t.Errorf("an empty answer: %s, %v", b, err)
	}
}
