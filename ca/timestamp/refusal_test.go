package timestamp

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// resp is a TimeStampResp as encoding/asn1 reads it: another reader than what made it.
type resp struct {
	Status struct {
		Status   int
		Text     []string       `asn1:"optional"`
		FailInfo asn1.BitString `asn1:"optional"`
	}
	Token asn1.RawValue `asn1:"optional"`
}

func parsed(t testing.TB, reply []byte) (r resp) {
	t.Helper()
	if rest, err := asn1.Unmarshal(reply, &r); err != nil || len(rest) > 0 {
		t.Fatalf("the reply isn't a TimeStampResp: %v, %d bytes follow", err, len(rest))
	}
	return r
}

func oid(der []byte) []byte {
	return element(cbasn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(der) })
}

func integer(n *big.Int) []byte {
	var b cryptobyte.Builder
	b.AddASN1BigInt(n)
	return b.BytesOrPanic()
}

var (
	dertrue = []byte{1, 1, 0xff}
	// extensions with one that isn't critical, and one that is.
	ignorable = []byte{0xa0, 0x09, 0x30, 0x07, 0x06, 0x03, 0x2a, 0x03, 0x04, 0x04, 0x00}
	critical  = []byte{0xa0, 0x0c, 0x30, 0x0a, 0x06, 0x03, 0x2a, 0x03, 0x04, 0x01, 0x01, 0xff, 0x04, 0x00}
)

// Every refusal is a reply of RFC 3161 with its failure's bit, costs no signature, and
// is counted under one of few names.
func TestRefusals(t *testing.T) {
	huge := bytes.Repeat([]byte{0x81}, 4000)
	for name, c := range map[string]struct {
		bend func(*ask)
		der  []byte
		want failure
	}{
		"nothing":                      {der: []byte{}, want: badDataFormat},
		"text":                         {der: []byte("GET / HTTP/1.1"), want: badDataFormat},
		"bytes after it":               {der: append(newAsk().der(), 0), want: badDataFormat},
		"its end is missing":           {der: newAsk().der()[:40], want: badDataFormat},
		"a length of 2^32":             {der: []byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 2, 1, 1}, want: badDataFormat},
		"BER of indefinite length":     {der: []byte{0x30, 0x80, 2, 1, 1, 0, 0}, want: badDataFormat},
		"a thousand sequences":         {der: bytes.Repeat([]byte{0x30, 0x80}, 1000), want: badDataFormat},
		"version 2":                    {bend: func(a *ask) { a.version = 2 }, want: badRequest},
		"SHA-1":                        {bend: func(a *ask) { a.hash, a.digest = []byte{0x2b, 0x0e, 0x03, 0x02, 0x1a}, a.digest[:20] }, want: badAlg},
		"MD5":                          {bend: func(a *ask) { a.hash = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05} }, want: badAlg},
		"SHA-224":                      {bend: func(a *ask) { a.hash, a.digest = append(slices.Clone(a.hash[:8]), 4), a.digest[:28] }, want: badAlg},
		"a huge hash function's id":    {bend: func(a *ask) { a.hash = huge }, want: badAlg},
		"an empty hash function's id":  {bend: func(a *ask) { a.hash = nil }, want: badAlg},
		"parameters of a hash":         {bend: func(a *ask) { a.parameters = []byte{4, 1, 0} }, want: badAlg},
		"a digest that is too short":   {bend: func(a *ask) { a.digest = a.digest[1:] }, want: badDataFormat},
		"a digest that is too long":    {bend: func(a *ask) { a.digest = append(a.digest, 0) }, want: badDataFormat},
		"a digest of another function": {bend: func(a *ask) { a.hash = digests[2].id }, want: badDataFormat},
		"no digest":                    {bend: func(a *ask) { a.digest = nil }, want: badDataFormat},
		"another policy":               {bend: func(a *ask) { a.rest = oid([]byte{0x2a, 3, 4}) }, want: unacceptedPolicy},
		"a huge policy":                {bend: func(a *ask) { a.rest = oid(huge) }, want: unacceptedPolicy},
		"an empty policy":              {bend: func(a *ask) { a.rest = oid(nil) }, want: unacceptedPolicy},
		"a nonce of 65 bytes":          {bend: func(a *ask) { a.rest = integer(new(big.Int).Lsh(big.NewInt(1), 8*64)) }, want: badDataFormat},
		"a huge nonce":                 {bend: func(a *ask) { a.rest = integer(new(big.Int).Lsh(big.NewInt(1), 30000)) }, want: badDataFormat},
		"a nonce with leading zeros":   {bend: func(a *ask) { a.rest = []byte{2, 2, 0, 1} }, want: badDataFormat},
		"an empty nonce":               {bend: func(a *ask) { a.rest = []byte{2, 0} }, want: badDataFormat},
		"a boolean that is 1":          {bend: func(a *ask) { a.rest = []byte{1, 1, 1} }, want: badDataFormat},
		"fields in another order":      {bend: func(a *ask) { a.rest = slices.Concat(dertrue, integer(big.NewInt(7))) }, want: badDataFormat},
		"a field that nobody knows":    {bend: func(a *ask) { a.rest = []byte{0xa1, 0} }, want: badDataFormat},
		"an extension":                 {bend: func(a *ask) { a.rest = ignorable }, want: unacceptedExtension},
		"a critical extension":         {bend: func(a *ask) { a.rest = slices.Concat(dertrue, critical) }, want: unacceptedExtension},
	} {
		t.Run(name, func(t *testing.T) {
			f, _, registry := force(t, stub(t))
			query := c.der
			if c.bend != nil {
				a := newAsk()
				c.bend(&a)
				query = a.der()
			}
			reply, refused := f.ReplyDER(t.Context(), query)
			if refused == nil || refused.Kind() != fault.Malformed || refused.Metadata["failure"] != failures[c.want] {
				t.Fatalf("refused as %v %v, want %s", refused, refused.Metadata, failures[c.want])
			}
			r := parsed(t, reply)
			if r.Status.Status != 2 || len(r.Token.FullBytes) > 0 || len(r.Status.Text) != 1 || r.Status.Text[0] != refused.Public {
				t.Errorf("the reply is %+v", r)
			}
			for bit := range 32 {
				if got := r.Status.FailInfo.At(bit); (got == 1) != (failure(bit) == c.want) {
					t.Errorf("bit %d of the failure is %d", bit, got)
				}
			}
			if n := f.current.Load().signer.(*stubSigner).signed.Load(); n != 0 {
				t.Errorf("%d signatures were made", n)
			}
			if n, err := testutil.GatherAndCount(registry, "mayfly_timestamps_total"); err != nil || n != len(failures)+1 {
				t.Errorf("%d series, want %d: %v", n, len(failures)+1, err)
			}
			if n := testutil.ToFloat64(f.replies.WithLabelValues(failures[c.want])); n != 1 {
				t.Errorf("it is counted %v times", n)
			}
			if len(refused.Public) > 200 || strings.ContainsAny(refused.Public, "\n\r\x00") {
				t.Errorf("the client reads %q", refused.Public)
			}
		})
	}
}

// What a query may have: each passes, and the reply says the same.
func TestGrants(t *testing.T) {
	f, _, _ := force(t, stub(t))
	own := f.current.Load().template.policy
	for name, rest := range map[string][]byte{
		"nothing more":        nil,
		"our policy":          oid(own),
		"a nonce":             integer(big.NewInt(1 << 62)),
		"a nonce below zero":  integer(big.NewInt(-5)),
		"a nonce of 63 bytes": integer(new(big.Int).Lsh(big.NewInt(1), 8*63-2)),
		"false, written out":  {1, 1, 0},
		"policy, nonce, true": slices.Concat(oid(own), integer(big.NewInt(7)), dertrue),
		"true":                dertrue,
	} {
		for _, parameters := range [][]byte{nil, {5, 0}} {
			t.Run(fmt.Sprintf("%s, %d bytes of parameters", name, len(parameters)), func(t *testing.T) {
				a := newAsk()
				a.rest, a.parameters = rest, parameters
				reply, refused := f.ReplyDER(t.Context(), a.der())
				if refused != nil {
					t.Fatal(refused)
				}
				info := infoOf(t, reply)
				if !bytes.Contains(a.der(), info.Imprint.FullBytes) {
					t.Errorf("the imprint isn't the query's: %x", info.Imprint.FullBytes)
				}
				if info.Nonce != nil && !bytes.Contains(rest, integer(info.Nonce)) || info.Nonce == nil && bytes.Contains(rest, []byte{2, 8}) {
					t.Errorf("the nonce is %v", info.Nonce)
				}
				if info.Ordering || info.Accuracy.Seconds != 2 || info.Serial.Sign() <= 0 || info.Serial.BitLen() > 159 {
					t.Errorf("%+v", info)
				}
			})
		}
	}
}

// info is a TSTInfo.
type info struct {
	Version  int
	Policy   asn1.ObjectIdentifier
	Imprint  asn1.RawValue
	Serial   *big.Int
	Time     asn1.RawValue
	Accuracy struct{ Seconds int }
	Ordering bool          `asn1:"optional"`
	Nonce    *big.Int      `asn1:"optional"`
	TSA      asn1.RawValue `asn1:"tag:0,optional"`
}

func infoOf(t testing.TB, reply []byte) (out info) {
	t.Helper()
	var content struct {
		Type asn1.ObjectIdentifier
		Data struct {
			Version int
			Digests asn1.RawValue
			Content struct {
				Type asn1.ObjectIdentifier
				Info []byte `asn1:"explicit,tag:0"`
			}
			Certificates asn1.RawValue `asn1:"optional,tag:0"`
			Signers      asn1.RawValue `asn1:"set"`
		} `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(parsed(t, reply).Token.FullBytes, &content); err != nil {
		t.Fatal(err)
	}
	if rest, err := asn1.Unmarshal(content.Data.Content.Info, &out); err != nil || len(rest) > 0 {
		t.Fatalf("the TSTInfo can't be read: %v", err)
	}
	return out
}

// The form that sigstore-js sends gives the same as DER, and refuses the same.
func TestJSON(t *testing.T) {
	f, _, _ := force(t, stub(t))
	digest := base64.StdEncoding.EncodeToString(newAsk().digest)
	for body, want := range map[string]string{
		`{"artifactHash":"` + digest + `","hashAlgorithm":"sha256"}`:                                                  "",
		`{"artifactHash":"` + digest + `","hashAlgorithm":"SHA256","nonce":12345678901234567890,"certificates":true}`: "",
		`{"artifactHash":"` + digest + `","hashAlgorithm":"sha256","tsaPolicyOID":"1.3.6.1.4.1.57264.2"}`:             "",
		`{"artifactHash":"` + digest + `","hashAlgorithm":"sha256","tsaPolicyOID":"1.2.3"}`:                           "unacceptedPolicy",
		`{"artifactHash":"` + digest + `","hashAlgorithm":"sha1"}`:                                                    "badAlg",
		`{"artifactHash":"` + digest + `"}`:                                                                           "badAlg",
		`{"artifactHash":"` + digest + `","hashAlgorithm":"ſha256"}`:                                                  "badAlg",
		`{"artifactHash":"` + digest + `","hashAlgorithm":"sha512"}`:                                                  "badDataFormat",
		`{"artifactHash":"%","hashAlgorithm":"sha256"}`:                                                               "badDataFormat",
		`{"artifactHash":"` + digest + `","hashAlgorithm":"sha256","nonce":"7"}`:                                      "badDataFormat",
		`{"artifactHash":"` + digest + `","hashAlgorithm":"sha256","nonce":1.5}`:                                      "badDataFormat",
		`{"artifactHash":"` + digest + `","hashAlgorithm":"sha256","nonce":` + strings.Repeat("9", 3000) + `}`:        "badDataFormat",
		`[]`:                      "badDataFormat",
		``:                        "badDataFormat",
		strings.Repeat("[", 4000): "badDataFormat",
	} {
		reply, refused := f.ReplyJSON(t.Context(), []byte(body))
		if refused != nil {
			if got := refused.Metadata["failure"]; got != want {
				t.Errorf("%.80s: refused as %s, want %q", body, got, want)
			}
			continue
		}
		if want != "" {
			t.Errorf("%.80s: granted, want %s", body, want)
			continue
		}
		var in struct{ Nonce *big.Int }
		if err := json.Unmarshal([]byte(body), &in); err != nil {
			t.Fatal(err)
		}
		if got := infoOf(t, reply); (got.Nonce == nil) != (in.Nonce == nil) || in.Nonce != nil && got.Nonce.Cmp(in.Nonce) != 0 {
			t.Errorf("%.80s: the nonce is %v", body, got.Nonce)
		}
	}
}

// Refusing takes no more memory than a query has.
func TestHostileQueriesAllocateLittle(t *testing.T) {
	f, _, _ := force(t, stub(t))
	a := newAsk()
	a.rest = oid(bytes.Repeat([]byte{0xff}, 3900))
	query := a.der()
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = f.ReplyDER(t.Context(), query)
		}
	})
	if n := result.AllocedBytesPerOp(); n > 8<<10 {
		t.Errorf("a query of %d bytes that is refused allocates %d", len(query), n)
	}
}

// Whatever comes, there is a reply that can be read, and nothing panics.
func FuzzReply(f *testing.F) {
	a := newAsk()
	f.Add(a.der(), false)
	a.rest, a.parameters = slices.Concat(oid([]byte{0x2b, 6, 1, 4, 1, 0x83, 0xbf, 0x30, 2}), integer(big.NewInt(99)), dertrue, critical), []byte{5, 0}
	f.Add(a.der(), false)
	f.Add([]byte(`{"artifactHash":"`+base64.StdEncoding.EncodeToString(a.digest)+`","hashAlgorithm":"sha256","nonce":5}`), true)
	force, _, _ := force(f, stub(f))
	f.Fuzz(func(t *testing.T, query []byte, asJSON bool) {
		answer := force.ReplyDER
		if asJSON {
			answer = force.ReplyJSON
		}
		reply, refused := answer(t.Context(), query)
		if r := parsed(t, reply); (r.Status.Status == 0) != (refused == nil) {
			t.Fatalf("refused is %v, and the status %d", refused, r.Status.Status)
		}
		if refused == nil {
			infoOf(t, reply)
		}
	})
}
