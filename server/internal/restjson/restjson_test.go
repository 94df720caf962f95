package restjson

import (
	"encoding/json"
	"strings"
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
		b, err := New().Marshal(m)
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
	if b, err := New().Marshal(&fulciov2.SigningCertificate{}); err != nil || string(b) != "{}" {
		t.Errorf("an empty answer: %s, %v", b, err)
	}
}

// FuzzDecode holds the REST decoder to: no panic, no quoting of the body, and
// the lenient second reading changes nothing but `algorithm`.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{}`, ``, `null`, `{"credentials":{"oidcIdentityToken":"t"},"publicKeyRequest":{"publicKey":{"algorithm":5.5,"content":"c"},"proofOfPossession":"QQ=="}}`,
		`{"public_key_request":{"public_key":{"algorithm":{"algorithm":1}}}}`, `{"algorithm":[{"algorithm":"algorithm"}],"x":1}`, `["algorithm"]`, `{"a":"algorithm"}`,
		`{"algorithm":1,"algorithm":2}`, `{"publicKeyRequest":{"publicKey":{"algorithm":` + strings.Repeat("[", 99) + `}}}`, "\xff{\"algorithm\":1}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m fulciov2.CreateSigningCertificateRequest
		err := Unmarshal(data, &m)
		if err != nil && len(err.Error()) > 120 {
			t.Errorf("a long error may quote the body: %v", err)
		}
		blanked, ok := blankAlgorithm(data)
		if !ok {
			return
		}
		if json.Valid(data) != json.Valid(blanked) {
			t.Errorf("%q became %q", data, blanked)
		}
		// Where the first reading succeeds, blanking takes away the algorithm and nothing else.
		var first, second fulciov2.CreateSigningCertificateRequest
		if jsonIn.Unmarshal(data, &first) != nil {
			return
		}
		if err := jsonIn.Unmarshal(blanked, &second); err != nil {
			t.Fatalf("%q reads, %q doesn't: %v", data, blanked, err)
		}
		if key := first.GetPublicKeyRequest().GetPublicKey(); key != nil {
			key.Algorithm = 0
		}
		if !proto.Equal(&first, &second) {
			t.Errorf("%q and %q differ by more than the algorithm", data, blanked)
		}
	})
}
