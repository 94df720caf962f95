package ceremony

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// TestRequest: the key of every kind goes over in a request, and nothing else.
func TestRequest(t *testing.T) {
	t.Parallel()
	r, rootKey := root(t, cacert.Profile{PathLength: cacert.Unlimited})
	for _, a := range kms.Algorithms() {
		key := keyOf(t, a, 1)
		text, err := NewRequest(key, "Mallory, Inc.", "Mallory", nil)
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		request, err := ParseRequest(text)
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		c, err := New(r.Chain, cacert.Profile{CommonName: "Issuing"}, here)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ForRequest(request); err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		m, err := c.Sign(rootKey)
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		if !pubkey.Equal(m.Chain[0].PublicKey, key.Public()) || m.Chain[0].Subject.String() != "CN=Issuing,O=Example" {
			t.Errorf("%s: %v", a, m.Chain[0].Subject)
		}
		if record := string(m.Record("chain.pem")); !strings.Contains(record, `subject CN=Mallory,O=Mallory\, Inc.`) || !strings.Contains(record, "of the certificate request") {
			t.Errorf("%s: the record says nothing of the request:\n%s", a, record)
		}
		opensslAgrees(t, m.Chain)
	}
	if _, err := NewRequest(keyOf(t, kms.ECDSAP256, 0), "", "a\x1bb", nil); err == nil {
		t.Error("a request with an escape in its name")
	}
	failing := cacert.Key{Signer: badSigner{rootKey, func([]byte, crypto.SignerOpts) ([]byte, error) { return []byte{1}, nil }}, Ref: "kms"}
	if _, err := NewRequest(failing, "", "name", nil); err == nil {
		t.Error("a request with a wrong signature")
	}
}

// TestRequestAsks: a request that asks for the world gets a key certified, and
// what it asked for is told, free of what could steer a terminal.
func TestRequestAsks(t *testing.T) {
	t.Parallel()
	key := keyOf(t, kms.ECDSAP256, 0)
	template := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "\x1b[2Jroot\u202e", Organization: []string{"Evil"}}, DNSNames: []string{"evil.example"}, IPAddresses: []net.IP{{127, 0, 0, 1}},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}},
			{Id: []int{1, 2, 3, 4}, Value: []byte{5, 0}},
		},
	}
	r, err := ParseRequest(newCSR(t, template, key))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	r.Print(&b)
	for _, want := range []string{"extension basic constraints", "extension 1.2.3.4", "extension subject alternative name", `\x1b[2Jroot\u202e`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("lacks %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), oidExtensionRequest.String()) {
		t.Errorf("the attribute that holds the extensions is listed beside them:\n%s", b.String())
	}
	attribute := opensslCSR(t, key, "-sha256", "-config", writeTemporary(t, "[req]\nprompt=no\ndistinguished_name=dn\nattributes=at\n[dn]\nCN=name\n[at]\nchallengePassword=secret\n"))
	if r, err = ParseRequest(attribute); err != nil || len(r.Asks) != 1 || r.Asks[0] != "attribute challenge password" {
		t.Errorf("a request with a challenge password: %q, %v", r.Asks, err)
	}
	const unread = "\x30\x1d\x02\x01\x00\x30\x00\x30\x00\xa0\x14\x30\x03\x02\x01\x01\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x07\x31\x00"
	if all := attributes([]byte(unread)); len(all) != 1 || named(all[0].ID) != "challenge password" {
		t.Errorf("beside an attribute that can't be read: %v", all)
	}
	for i := range 100 {
		template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 5, i}, Value: []byte{5, 0}})
	}
	if r, err = ParseRequest(newCSR(t, template, key)); err != nil || len(r.Asks) != maxAsks+1 || r.Asks[maxAsks] != "and more" {
		t.Errorf("%d asks, %v", len(r.Asks), err)
	}
}

func newCSR(t testing.TB, template *x509.CertificateRequest, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return csrPEM(der)
}

func csrPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// TestHostileRequests: what is refused, and in which words.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	key := keyOf(t, kms.ECDSAP256, 0)
	good := newCSR(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "good"}}, key)
	block, _ := pem.Decode(good)
	changed := func(from, to string) []byte { return csrPEM(bytes.Replace(block.Bytes, []byte(from), []byte(to), 1)) }
	flipped := bytes.Clone(block.Bytes)
	flipped[len(flipped)-1] ^= 1
	rsaKey, weak := keyOf(t, kms.RSA2048, 0), must(rsa.GenerateKey(rand.Reader, 1024))(t)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signedBy := func(a x509.SignatureAlgorithm, k crypto.Signer) []byte {
		return newCSR(t, &x509.CertificateRequest{SignatureAlgorithm: a}, k)
	}
	other := keyOf(t, kms.ECDSAP256, 1)
	stolen := bytes.Replace(block.Bytes, spkiOf(t, key.Public()), spkiOf(t, other.Public()), 1) // somebody else's key, our signature
	for name, tt := range map[string]struct {
		text []byte
		want string
	}{
		"nothing":                 {nil, "is empty: a certificate request is expected"},
		"text":                    {[]byte("hello"), "holds no PEM block"},
		"two":                     {append(bytes.Clone(good), newCSR(t, &x509.CertificateRequest{}, other)...), "more than one PEM block"},
		"cut off":                 {good[:len(good)-30], "isn't whole PEM at block 1"},
		"a certificate":           {bytes.ReplaceAll(good, []byte("CERTIFICATE REQUEST"), []byte("CERTIFICATE")), `holds a "CERTIFICATE"`},
		"a private key":           {bytes.ReplaceAll(good, []byte("CERTIFICATE REQUEST"), []byte("PRIVATE KEY")), "holds a private key"},
		"a megabyte":              {bytes.Repeat([]byte("A"), 1<<20), "larger than 65536 bytes"},
		"another signature":       {csrPEM(flipped), "signature does not verify"},
		"another name":            {changed("good", "evil"), "signature does not verify"},
		"somebody else's key":     {csrPEM(stolen), "signature does not verify"},
		"bytes after":             {csrPEM(append(bytes.Clone(block.Bytes), 0)), "bytes follow"},
		"SHA-512 with P-256":      {signedBy(x509.ECDSAWithSHA512, key), "signature algorithm is not accepted: expected ECDSA with SHA-256"},
		"RSA-PSS":                 {signedBy(x509.SHA256WithRSAPSS, rsaKey), "expected RSA PKCS#1 v1.5"},
		"SHA-1":                   {opensslCSR(t, rsaKey, "-sha1"), "expected RSA PKCS#1 v1.5"},
		"MD5":                     {opensslCSR(t, rsaKey, "-md5"), "expected RSA PKCS#1 v1.5"},
		"RSA 1024":                {opensslCSR(t, weak, "-sha256"), "RSA key of 1024 bits is too short"},
		"P-224":                   {opensslCSR(t, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t), "-sha256"), "the curve P-224 is not accepted"},
		"Ed25519":                 {signedBy(x509.PureEd25519, edKey), "isn't supported"},
		"an unreadable extension": {newCSR(t, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 17}, Value: []byte("not DER")}}}, key), "can't be read whole"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := ParseRequest(tt.text)
			if r != nil {
				t.Error("accepted")
			}
			wants(t, err, tt.want)
		})
	}
}

func must[K any](key K, err error) func(testing.TB) K {
	return func(t testing.TB) K {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
}

func spkiOf(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	return must(x509.MarshalPKIXPublicKey(public))(t)
}

// opensslCSR has OpenSSL make a request that Go wouldn't.
func opensslCSR(t testing.TB, key any, digest string, more ...string) []byte {
	t.Helper()
	if more = append([]string{digest}, more...); len(more) == 1 { // a configuration brings its own subject
		more = append(more, "-subj", "/CN=old")
	}
	if k, ok := key.(cacert.Key); ok {
		key = k.Signer
	}
	der := must(x509.MarshalPKCS8PrivateKey(key))(t)
	file := writeTemporary(t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	out, err := exec.Command("openssl", append([]string{"req", "-new", "-key", file}, more...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func writeTemporary(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// FuzzRequest: no request panics, and none is accepted whose signature the
// standard library refuses, or prints what could steer a terminal.
func FuzzRequest(f *testing.F) {
	for _, a := range []kms.Algorithm{kms.ECDSAP256, kms.RSA2048} {
		f.Add(must(NewRequest(keyOf(f, a, 0), "Example", "name", nil))(f))
	}
	f.Add(newCSR(f, &x509.CertificateRequest{DNSNames: []string{"a.example"}}, keyOf(f, kms.ECDSAP256, 0)))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseRequest(text)
		if err != nil {
			return
		}
		block, _ := pem.Decode(text)
		theirs, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil || theirs.CheckSignature() != nil || !bytes.Equal(theirs.RawSubjectPublicKeyInfo, r.key.SPKI()) {
			t.Errorf("accepted what the standard library refuses: %v", err)
		}
		var b strings.Builder
		r.Print(&b)
		if strings.ContainsFunc(b.String(), func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }) {
			t.Errorf("a control character is printed: %q", b.String())
		}
	})
}

// TestOpenSSLSignsByItsMatchPolicy: the request has the issuer's own strings, of
// whatever kind, so that `openssl ca` finds them the same.
func TestOpenSSLSignsByItsMatchPolicy(t *testing.T) {
	t.Parallel()
	for _, mask := range []string{"utf8only", "default"} { // the second writes PrintableString
		dir := t.TempDir()
		config := "[req]\nstring_mask=" + mask + "\ndistinguished_name=n\n[n]\n[ca]\ndefault_ca=c\n[c]\ndatabase=index.txt\nserial=serial\n" +
			"new_certs_dir=.\ndefault_md=sha256\npolicy=p\ndefault_days=1\n" +
			"[p]\ncountryName=match\nstateOrProvinceName=match\norganizationName=match\ncommonName=supplied\n"
		if err := os.WriteFile(filepath.Join(dir, "ca.cnf"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		sh := func(script string) {
			t.Helper()
			cmd := exec.Command("sh", "-ec", script) // #nosec G204 -- a test's own script
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %s: %v\n%s", mask, script, err, out)
			}
		}
		sh("openssl req -x509 -newkey rsa:2048 -noenc -keyout root.key -out root.pem -days 2 -subj '/C=DE/ST=Bayern/O=Example Inc/CN=root' -config ca.cnf; touch index.txt; echo 01 > serial")
		text, err := os.ReadFile(filepath.Join(dir, "root.pem"))
		if err != nil {
			t.Fatal(err)
		}
		root, err := pemfile.Certificates(text)
		if err != nil {
			t.Fatal(err)
		}
		request, err := NewRequest(keyOf(t, kms.ECDSAP256, 0), "", "issuing", root[0])
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "csr.pem"), request, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		sh("openssl ca -batch -config ca.cnf -cert root.pem -keyfile root.key -in csr.pem -out issued.pem -notext")
	}
}
