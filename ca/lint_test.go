package ca

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/extension"
)

// sampleLeaf is a leaf that the lint has nothing against, under sampleAuthority.
func sampleLeaf(t testing.TB) *leaf {
	t.Helper()
	key, _ := clientKey(t, kms.ECDSAP256)
	extensions, err := extension.Set{Issuer: "https://issuer.example", TokenSubject: "alice", GitHubRef: "main"}.Extensions()
	if err != nil {
		t.Fatal(err)
	}
	spki := mustSPKI(t, key.Public())
	id, err := cacert.KeyID(spki)
	if err != nil {
		t.Fatal(err)
	}
	begin := noon.Truncate(time.Second)
	return &leaf{
		serial: new(big.Int).SetBytes(bytes.Repeat([]byte{0x5a}, 20)), notBefore: begin, notAfter: begin.Add(DefaultLifetime - time.Second),
		spki: spki, keyID: id, san: identity.SAN{Kind: identity.Email, Value: "alice@example.com"}, extensions: extensions,
	}
}

// TestLint breaks each statement of the profile once, in the leaf before it is
// written or in the bytes after.
func TestLint(t *testing.T) {
	t.Parallel()
	a := testAuthority(t, kms.ECDSAP256)
	other := func(id ...int) pkix.Extension { return pkix.Extension{Id: id, Value: []byte{0x30, 0}} }
	replace := func(old, with string) func([]byte) []byte {
		return func(tbs []byte) []byte {
			if bytes.Count(tbs, []byte(old)) != 1 {
				t.Errorf("%x occurs %d times", old, bytes.Count(tbs, []byte(old)))
			}
			return bytes.Replace(tbs, []byte(old), []byte(with), 1)
		}
	}
	san := func(kind identity.SANKind, value string) func(*leaf) {
		return func(l *leaf) { l.san = identity.SAN{Kind: kind, Value: value} }
	}
	for _, tt := range []struct {
		name  string
		leaf  func(*leaf)
		bytes func([]byte) []byte
		want  string // a part of the broken statement; "" passes
	}{
		{name: "as it is"},
		{name: "URI", leaf: san(identity.URI, "https://example.com/x")},
		{name: "username", leaf: san(identity.Username, "alice!example.com")},
		{name: "version 2", bytes: replace("\xa0\x03\x02\x01\x02", "\xa0\x03\x02\x01\x01"), want: "version"},
		{name: "negative serial", leaf: func(l *leaf) { l.serial.Neg(l.serial) }, want: "serial"},
		{name: "21 octets", leaf: func(l *leaf) { l.serial.Lsh(l.serial, 8) }, want: "serial"},
		{name: "serial 1", leaf: func(l *leaf) { l.serial = big.NewInt(1) }, want: "serial"},
		{name: "another algorithm", bytes: replace("\x2a\x86\x48\xce\x3d\x04\x03\x02", "\x2a\x86\x48\xce\x3d\x04\x03\x03"), want: "algorithm"},
		{name: "another issuer", bytes: replace("Example intermediate", "Exbmple intermediate"), want: "issuer"},
		{name: "a minute more", leaf: func(l *leaf) { l.notAfter = l.notAfter.Add(time.Minute) }, want: "lifetime"},
		{name: "a second more", leaf: func(l *leaf) { l.notAfter = l.notAfter.Add(time.Second) }, want: "lifetime"},
		{name: "begins earlier, as long", bytes: func(tbs []byte) []byte {
			// a second earlier, both ends
			return bytes.Replace(bytes.Replace(tbs, []byte("260301120000Z"), []byte("260301115959Z"), 1), []byte("260301120959Z"), []byte("260301120958Z"), 1)
		}, want: "was to begin"},
		{name: "after the issuer", leaf: func(l *leaf) {
			l.notBefore, l.notAfter = l.notBefore.AddDate(9, 0, 0), l.notAfter.AddDate(9, 0, 0)
		}, want: "within that of every issuer"},
		{name: "another key", bytes: func(tbs []byte) []byte {
			at := bytes.Index(tbs, []byte{0x03, 0x42, 0x00, 0x04})
			tbs[at+10] ^= 1
			return tbs
		}, want: "public key"},
		{name: "an extension twice", leaf: func(l *leaf) { l.extensions = append(l.extensions, l.extensions[0]) }, want: "twice"},
		{name: "basicConstraints", leaf: func(l *leaf) { l.extensions = append(l.extensions, other(2, 5, 29, 19)) }, want: "belongs to the profile"},
		{name: "extension 25", leaf: func(l *leaf) { l.extensions = append(l.extensions, other(1, 3, 6, 1, 4, 1, 57264, 1, 25)) }, want: "belongs to the profile"},
		{name: "otherName type as an extension", leaf: func(l *leaf) { l.extensions = append(l.extensions, other(1, 3, 6, 1, 4, 1, 57264, 1, 7)) }, want: "belongs to the profile"},
		{name: "key usage", bytes: replace("\x04\x04\x03\x02\x07\x80", "\x04\x04\x03\x02\x06\xc0"), want: "digitalSignature"},
		{name: "extended key usage", bytes: replace("\x2b\x06\x01\x05\x05\x07\x03\x03", "\x2b\x06\x01\x05\x05\x07\x03\x01"), want: "codeSigning"},
		{name: "short key id", leaf: func(l *leaf) { l.keyID = l.keyID[:19] }, want: "subject key identifier"},
		{name: "another authority key id", bytes: func(tbs []byte) []byte {
			tbs[bytes.Index(tbs, a.Certificate.SubjectKeyId)] ^= 1
			return tbs
		}, want: "authority key identifier"},
		{name: "another name", bytes: replace("alice@example.com", "blice@example.com"), want: "subject alternative name"},
		{name: "the mailbox as a host", bytes: replace("\x81\x11alice", "\x82\x11alice"), want: "subject alternative name"},
		{name: "the mailbox as a URI", bytes: replace("\x81\x11alice", "\x86\x11alice"), want: "subject alternative name"},
		{name: "two mailboxes", leaf: san(identity.Email, "a@b@c"), want: "subject alternative name"},
		{name: "UTF-8 in an IA5String", leaf: san(identity.Email, "ä@b"), want: "subject alternative name"},
		{name: "a URI without a scheme", leaf: san(identity.URI, "example.com"), want: "subject alternative name"},
		{name: "a control character", leaf: san(identity.Username, "a\nb"), want: "subject alternative name"},
		{name: "SAN not critical", bytes: replace("\x55\x1d\x11\x01\x01\xff", "\x55\x1d\x11\x01\x01\x00"), want: "well-formed DER"},
		{name: "no issuer extension", leaf: func(l *leaf) { l.extensions = l.extensions[1:] }, want: "identity's extensions"},
		{name: "an empty extension", leaf: func(l *leaf) { l.extensions[0].Value = nil }, want: "identity's extensions"},
		{name: "raw where UTF8String is due", leaf: func(l *leaf) { l.extensions[2].Value = []byte("x") }, want: "identity's extensions"},
		{name: "poison not NULL", bytes: replace("\x04\x02\x05\x00", "\x04\x02\x06\x00"), want: "poison"},
		{name: "trailing bytes", bytes: func(tbs []byte) []byte { return append(tbs, 0) }, want: "well-formed DER"},
		{name: "cut off", bytes: func(tbs []byte) []byte { return tbs[:len(tbs)-1] }, want: "well-formed DER"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := sampleLeaf(t)
			if tt.leaf != nil {
				tt.leaf(l)
			}
			tbs, err := l.tbs(a, poisonDER)
			if err != nil {
				t.Fatal(err)
			}
			if tt.bytes != nil {
				tbs = tt.bytes(tbs)
			}
			err = lint(tbs, l, a, DefaultLifetime)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("lint: %v; want %q", err, tt.want)
			}
		})
	}
}

// TestConstants: what is written as bytes is what encoding/asn1 would write.
func TestConstants(t *testing.T) {
	t.Parallel()
	encode := func(v any) []byte {
		der, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for name, pair := range map[string][2][]byte{
		"keyUsage":    {keyUsageDER, encode(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: encode(asn1.BitString{Bytes: []byte{0x80}, BitLength: 1})})},
		"extKeyUsage": {extKeyUsageDER, encode(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: encode([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 3}})})},
		"poison":      {poisonDER, encode(pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}, Critical: true, Value: []byte{5, 0}})},
		"SCT list":    {oidSCTList, encode(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2})[2:]},
		"sigstore":    {sigstoreArc, encode(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1})[2:]},
		"SKID":        {oidSubjectKey, encode(asn1.ObjectIdentifier{2, 5, 29, 14})[2:]},
		"AKID":        {oidAuthority, encode(asn1.ObjectIdentifier{2, 5, 29, 35})[2:]},
		"SAN":         {oidSAN, encode(asn1.ObjectIdentifier{2, 5, 29, 17})[2:]},
	} {
		if !bytes.Equal(pair[0], pair[1]) {
			t.Errorf("%s: %x; encoding/asn1 writes %x", name, pair[0], pair[1])
		}
	}
}

// FuzzReplaceExtension: bytes of any kind end in an error or in bytes that differ
// in nothing but the extension.
func FuzzReplaceExtension(f *testing.F) {
	tbs, err := sampleLeaf(f).tbs(testAuthority(f, kms.ECDSAP256), poisonDER)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tbs)
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, tbs []byte) {
		without, err := replaceExtension(tbs, ctlog.OIDPoison, nil)
		if err != nil {
			return
		}
		if _, err := replaceExtension(without, ctlog.OIDPoison, nil); err == nil {
			t.Error("the extension is still there")
		}
		same, err := replaceExtension(tbs, ctlog.OIDPoison, poisonDER)
		if err != nil {
			t.Fatal(err)
		}
		if len(without) > len(same) {
			t.Errorf("taking out %d bytes made %d of %d", len(poisonDER), len(without), len(same))
		}
	})
}

// FuzzCertificate: what the profile and the lint let by, crypto/x509 takes and reads
// alike, so that the check after the signature needn't ask it.
func FuzzCertificate(f *testing.F) {
	a, template := testAuthority(f, kms.ECDSAP256), sampleLeaf(f)
	for kind, name := range map[identity.SANKind]string{
		identity.Email: "a@b.example", identity.URI: "https://example.com/%41?q#f", identity.Username: "alice!example.com",
	} {
		f.Add(uint8(kind), name, "refs/heads/main")
		f.Add(uint8(kind), "spiffe://a..b", "\u00e4\x00")
		f.Add(uint8(kind), "urn:x", strings.Repeat("v", 300))
		f.Add(uint8(kind), "x://[::1]:99999/", "")
	}
	f.Fuzz(func(t *testing.T, kind uint8, name, value string) {
		l := *template
		l.san = identity.SAN{Kind: identity.SANKind(kind), Value: name}
		var err error
		if l.extensions, err = (extension.Set{Issuer: "https://issuer.example", TokenSubject: name, GitHubRef: value}).Extensions(); err != nil || checkSAN(l.san) != nil {
			return
		}
		poisoned, err := l.tbs(a, poisonDER)
		if err != nil || lint(poisoned, &l, a, DefaultLifetime) != nil {
			return
		}
		plain, err := replaceExtension(poisoned, ctlog.OIDPoison, nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(assemble(plain, a.SignatureAlgorithm, []byte("signature")))
		if err != nil {
			t.Fatalf("%v %q, %q: %v", l.san.Kind, name, value, err)
		}
		back, err := extension.Parse(c.Extensions)
		if err != nil || back.TokenSubject != name || back.GitHubRef != value || c.SerialNumber.Cmp(l.serial) != 0 || !c.NotAfter.Equal(l.notAfter) {
			t.Errorf("read back as %+v, %v, with the serial number %v until %v", back, err, c.SerialNumber, c.NotAfter)
		}
		switch l.san.Kind {
		case identity.Email:
			if len(c.EmailAddresses) != 1 || c.EmailAddresses[0] != name {
				t.Errorf("%q is read back as %q", name, c.EmailAddresses)
			}
		case identity.URI:
			if want, err := url.Parse(name); err != nil || len(c.URIs) != 1 || c.URIs[0].String() != want.String() {
				t.Errorf("%q is read back as %q", name, c.URIs)
			}
		}
	})
}

// TestObjectIdentifiers: their contents are what encoding/asn1 writes.
func TestObjectIdentifiers(t *testing.T) {
	t.Parallel()
	for _, id := range []asn1.ObjectIdentifier{{0, 0}, {1, 3, 6}, {2, 5, 29, 127}, {2, 999, 128, 16383, 16384, 1<<31 - 1, 0}, {1, 3, 6, 1, 4, 1, 57264, 1, 24}} {
		want, err := asn1.Marshal(id)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendOID(nil, id); !bytes.Equal(got, want[2:]) {
			t.Errorf("%v is written as %x, want %x", id, got, want[2:])
		}
	}
}
