package extension

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// OID is the extension's identifier for one of the numbers 1 to 6 and 8 to 24.
// It is a copy, and nil for a number outside the table.
func OID(number int) asn1.ObjectIdentifier {
	if r := rowFor(under(number)); r != nil {
		return slices.Clone(r.oid)
	}
	return nil
}

// full has a value of its own in every field.
func full() Set {
	var s Set
	v := reflect.ValueOf(&s).Elem()
	for i := range v.NumField() {
		v.Field(i).SetString("value of " + v.Type().Field(i).Name)
	}
	return s
}

func TestEveryFieldHasItsPlaceInTheTable(t *testing.T) {
	t.Parallel()
	s := full()
	exts, err := s.Extensions()
	if err != nil {
		t.Fatal(err)
	}
	if len(exts) != 23 {
		t.Fatalf("%d extensions, want 23: 1 to 6 and 8 to 24", len(exts))
	}
	want := 1
	for _, e := range exts {
		if want == 7 {
			want++
		}
		if e.Critical || !e.Id.Equal(OID(want)) {
			t.Errorf("extension %v critical %v, want %v in its place and not critical", e.Id, e.Critical, OID(want))
		}
		want++
	}
	back, err := Parse(exts)
	if err != nil || back != s {
		t.Errorf("Parse gives %+v, %v; want %+v", back, err, s)
	}
	if got := len(Fields()); got != 20 {
		t.Errorf("%d fields for rules, want all but the issuer twice and the subject", got)
	}
	for _, name := range Fields() {
		if Place(name) == nil {
			t.Errorf("no place for %s", name)
		}
	}
	for _, name := range []string{"", "issuer", "token_subject"} {
		if Place(name) != nil {
			t.Errorf("a rule may set %q", name)
		}
	}
}

func TestExtensionsGolden(t *testing.T) {
	t.Parallel()
	s := Set{Issuer: "https://i", GitHubSHA: "abc", BuildTrigger: strings.Repeat("x", 128), TokenSubject: "sub"}
	exts, err := s.Extensions()
	if err != nil {
		t.Fatal(err)
	}
	want := []struct{ oid, value string }{
		{"1.3.6.1.4.1.57264.1.1", hex.EncodeToString([]byte("https://i"))},
		{"1.3.6.1.4.1.57264.1.3", hex.EncodeToString([]byte("abc"))},
		{"1.3.6.1.4.1.57264.1.8", "0c09" + hex.EncodeToString([]byte("https://i"))},
		{"1.3.6.1.4.1.57264.1.20", "0c8180" + strings.Repeat("78", 128)},
		{"1.3.6.1.4.1.57264.1.24", "0c03" + hex.EncodeToString([]byte("sub"))},
	}
	if len(exts) != len(want) {
		t.Fatalf("%d extensions, want %d: empty values are left out", len(exts), len(want))
	}
	for i, w := range want {
		if exts[i].Id.String() != w.oid || hex.EncodeToString(exts[i].Value) != w.value {
			t.Errorf("extension %d is %s %x, want %s %s", i, exts[i].Id, exts[i].Value, w.oid, w.value)
		}
	}
}

func TestDERAgreesWithTheStandardLibraryAndOpenSSL(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 127, 128, 255, 256, 2048, 65535} {
		text := strings.Repeat("é", n/2) + strings.Repeat("a", n%2)
		s := Set{Issuer: "i", TokenSubject: text}
		exts, err := s.Extensions()
		if err != nil {
			t.Fatal(err)
		}
		want, err := asn1.MarshalWithParams(text, "utf8")
		if err != nil {
			t.Fatal(err)
		}
		got := exts[len(exts)-1].Value
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes: DER differs from encoding/asn1's", n)
		}
		cmd := exec.Command("openssl", "asn1parse", "-inform", "DER")
		cmd.Stdin = bytes.NewReader(got)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "UTF8STRING") {
			t.Errorf("%d bytes: openssl asn1parse: %v %s", n, err, out)
		}
	}
}

func TestExtensionsRefuses(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]Set{
		"no issuer":      {TokenSubject: "s"},
		"no subject":     {Issuer: "i"},
		"not UTF-8":      {Issuer: "i", TokenSubject: "s", BuildTrigger: "\xff"},
		"raw, not UTF-8": {Issuer: "i", TokenSubject: "s", GitHubRef: "\xc3"},
		"too long":       {Issuer: "i", TokenSubject: strings.Repeat("s", maxValue+1)},
	} {
		if exts, err := s.Extensions(); err == nil {
			t.Errorf("%s: encoded as %v", name, exts)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	utf8 := func(s string) []byte { return append([]byte{0x0c, byte(len(s))}, s...) }
	ext := func(n int, v []byte) pkix.Extension { return pkix.Extension{Id: OID(n), Value: v} }
	for name, exts := range map[string][]pkix.Extension{
		"twice":              {ext(9, utf8("a")), ext(9, utf8("a"))},
		"critical":           {{Id: OID(9), Critical: true, Value: utf8("a")}},
		"raw for UTF8String": {ext(9, []byte("abc"))},
		"PrintableString":    {ext(9, []byte{0x13, 1, 'a'})},
		"trailing bytes":     {ext(9, append(utf8("a"), 0))},
		"empty":              {ext(9, []byte{0x0c, 0})},
		"empty raw":          {ext(2, nil)},
		"not UTF-8":          {ext(9, []byte{0x0c, 1, 0xff})},
		"two issuers":        {ext(1, []byte("a")), ext(8, utf8("b"))},
	} {
		if s, err := Parse(exts); err == nil {
			t.Errorf("%s: read as %+v", name, s)
		}
	}
}

func TestParsePassesOverOthers(t *testing.T) {
	t.Parallel()
	s := Set{Issuer: "i", TokenSubject: "s"}
	exts, err := s.Extensions()
	if err != nil {
		t.Fatal(err)
	}
	exts = append(exts,
		pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true},
		pkix.Extension{Id: under(7), Value: []byte("x")}, pkix.Extension{Id: under(99), Value: []byte("x")},
		pkix.Extension{Id: append(under(9), 1), Value: []byte("x")})
	s, err = Parse(exts)
	if err != nil {
		t.Fatal(err)
	}
	named := s.Named()
	want := []Named{{1, "Issuer", "i"}, {8, "Issuer (v2)", "i"}, {24, "Token Subject", "s"}}
	if !reflect.DeepEqual(named, want) {
		t.Errorf("named %v, want %v", named, want)
	}
	for _, n := range []int{-1, 0, 7, 25} {
		if OID(n) != nil {
			t.Errorf("number %d has an OID", n)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(9, false, []byte{0x0c, 1, 'a'})
	f.Add(1, false, []byte("https://issuer"))
	f.Add(24, true, []byte{0x0c, 0x81, 1, 'a'})
	f.Fuzz(func(t *testing.T, number int, critical bool, value []byte) {
		s, err := Parse([]pkix.Extension{{Id: append(OID(1)[:8:8], number), Critical: critical, Value: value}})
		if err != nil {
			return
		}
		s.Issuer, s.TokenSubject = "i", "s" // the two that must be there
		exts, err := s.Extensions()
		if err != nil && len(value) <= maxValue {
			t.Fatalf("what was read can't be written: %v", err)
		}
		if back, err2 := Parse(exts); err == nil && (err2 != nil || back != s) {
			t.Fatalf("%+v is read back as %+v, %v", s, back, err2)
		}
	})
}

func BenchmarkExtensions(b *testing.B) {
	s := full()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Extensions(); err != nil {
			b.Fatal(err)
		}
	}
}
