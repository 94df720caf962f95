package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	encodingasn1 "encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

var (
	ecdsaSHA256, ecdsaSHA384, ecdsaSHA512 = requestAlgorithms[0].oid, requestAlgorithms[1].oid, requestAlgorithms[2].oid
	rsaSHA256                             = requestAlgorithms[3].oid
)

// makeCSR is a request by the standard library, in DER.
func makeCSR(t testing.TB, signer crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// selfSigned is a certificate, for the inputs that shouldn't be one.
func selfSigned(t testing.TB, signer crypto.Signer) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<31, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Every accepted kind of key and hash, under both labels.
func TestCSRAccepts(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	rsaAlgorithms := []x509.SignatureAlgorithm{x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA}
	for algorithm, signatures := range map[string][]x509.SignatureAlgorithm{
		"ECDSA-P256": {x509.ECDSAWithSHA256},
		"ECDSA-P384": {x509.ECDSAWithSHA384},
		"ECDSA-P521": {x509.ECDSAWithSHA512},
		"RSA-2048":   rsaAlgorithms,
		"RSA-3072":   rsaAlgorithms,
		"RSA-4096":   rsaAlgorithms,
		"Ed25519":    {x509.PureEd25519},
	} {
		signer := acceptedKey(t, algorithm)
		for _, s := range signatures {
			der := makeCSR(t, signer, &x509.CertificateRequest{SignatureAlgorithm: s})
			text := toPEM("CERTIFICATE REQUEST", der)
			for name, in := range map[string][]byte{
				"PEM":      text,
				"old PEM":  toPEM("NEW CERTIFICATE REQUEST", der),
				"CRLF":     bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")),
				"no end":   bytes.TrimRight(text, "\n"),
				"trailing": append(bytes.Clone(text), "\n \r\n"...),
			} {
				t.Run(algorithm+"/"+s.String()+"/"+name, func(t *testing.T) {
					key, err := policy.CSR(in)
					if err != nil {
						t.Fatal(err)
					}
					checkKey(t, key, testKey{algorithm, signer})
				})
			}
		}
	}
}

// What a request asks for beside its key changes nothing about the key.
func TestExtrasOfARequestAreIgnored(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	signer := acceptedKey(t, "ECDSA-P256")
	extension := func(oid encodingasn1.ObjectIdentifier, value []byte) x509.CertificateRequest {
		return x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: oid, Critical: true, Value: value}}}
	}
	uri, err := url.Parse("https://mallory.example/")
	if err != nil {
		t.Fatal(err)
	}
	for name, template := range map[string]x509.CertificateRequest{
		"subject":          {Subject: pkix.Name{CommonName: "mallory", Organization: []string{"Evil"}}},
		"names":            {DNSNames: []string{"evil.example"}, EmailAddresses: []string{"mallory@example.com"}, IPAddresses: []net.IP{{127, 0, 0, 1}}, URIs: []*url.URL{uri}},
		"CA:TRUE":          extension(encodingasn1.ObjectIdentifier{2, 5, 29, 19}, []byte{0x30, 3, 1, 1, 0xff}),
		"name constraints": extension(encodingasn1.ObjectIdentifier{2, 5, 29, 30}, []byte{0x30, 0}),
		"key usage":        extension(encodingasn1.ObjectIdentifier{2, 5, 29, 15}, []byte{3, 2, 1, 6}),
		"broken SAN":       extension(encodingasn1.ObjectIdentifier{2, 5, 29, 17}, []byte("not DER")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := policy.CSR(toPEM("CERTIFICATE REQUEST", makeCSR(t, signer, &template)))
			if err != nil {
				t.Fatal(err)
			}
			checkKey(t, key, testKey{"ECDSA-P256", signer})
		})
	}
	t.Run("challenge password", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		private := writePrivate(t, dir, signer)
		config := "[req]\nprompt=no\ndistinguished_name=dn\nattributes=at\n[dn]\nCN=mallory\n[at]\nchallengePassword=secret\n"
		writeFile(t, dir, "req.cnf", config)
		csr := openssl(t, dir, "req", "-new", "-key", private, "-config", "req.cnf", "-sha256")
		key, err := policy.CSR(csr)
		if err != nil {
			t.Fatal(err)
		}
		checkKey(t, key, testKey{"ECDSA-P256", signer})
	})
}

// Requests whose signature doesn't hold, or is made in a refused way.
func TestRequestsWithABadSignatureAreRefused(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	for _, k := range acceptedKeys() {
		der := makeCSR(t, k.signer, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "alice"}})
		flipped := bytes.Clone(der)
		flipped[len(flipped)-1] ^= 1
		for name, in := range map[string][]byte{
			"bit of the signature": flipped,
			"bit of the subject":   bytes.Replace(der, []byte("alice"), []byte("alicf"), 1),
		} {
			_, err := policy.CSR(toPEM("CERTIFICATE REQUEST", in))
			t.Run(k.algorithm+"/"+name, func(t *testing.T) { wantFault(t, err, fault.CSRInvalid) })
		}
	}
	t.Run("signed by another key", func(t *testing.T) {
		t.Parallel()
		mine, theirs := acceptedKey(t, "ECDSA-P256"), freshP256(t)
		_, err := policy.CSR(toPEM("CERTIFICATE REQUEST", forgeCSR(t, spkiOf(t, mine.Public()), ecdsaSHA256, encodingasn1.RawValue{}, theirs, crypto.SHA256)))
		wantFault(t, err, fault.CSRInvalid)
	})
}

// freshP256 is a key that nothing else uses.
func freshP256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// forgeCSR writes a request with any key, algorithm and parameters, and signs
// it with the hash given, whatever the algorithm says.
func forgeCSR(t testing.TB, spki []byte, oid encodingasn1.ObjectIdentifier, parameters encodingasn1.RawValue, signer crypto.Signer, hash crypto.Hash) []byte {
	t.Helper()
	info := sequence(t, integer([]byte{0}), encodingasn1.RawValue{FullBytes: []byte{0x30, 0}},
		encodingasn1.RawValue{FullBytes: spki}, encodingasn1.RawValue{FullBytes: []byte{0xa0, 0}})
	sig := sign(t, signer, string(info), hash)
	der, err := encodingasn1.Marshal(struct {
		Info      encodingasn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature encodingasn1.BitString
	}{encodingasn1.RawValue{FullBytes: info}, pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: parameters},
		encodingasn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// SHA-1, MD5, PSS and the hash of another curve, all genuine signatures.
func TestRefusedAlgorithmsOfRequests(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	oid := func(arcs ...int) encodingasn1.ObjectIdentifier { return arcs }
	null, none := encodingasn1.NullRawValue, encodingasn1.RawValue{}
	for name, c := range map[string]struct {
		key        string
		oid        encodingasn1.ObjectIdentifier
		parameters encodingasn1.RawValue
		hash       crypto.Hash
	}{
		"ECDSA SHA-1":               {"ECDSA-P256", oid(1, 2, 840, 10045, 4, 1), none, crypto.SHA1},
		"ECDSA SHA-224":             {"ECDSA-P256", oid(1, 2, 840, 10045, 4, 3, 1), none, crypto.SHA224},
		"P-256 with SHA-384":        {"ECDSA-P256", ecdsaSHA384, none, crypto.SHA384},
		"P-256 with SHA-512":        {"ECDSA-P256", ecdsaSHA512, none, crypto.SHA512},
		"P-384 with SHA-256":        {"ECDSA-P384", ecdsaSHA256, none, crypto.SHA256},
		"P-521 with SHA-256":        {"ECDSA-P521", ecdsaSHA256, none, crypto.SHA256},
		"ECDSA with NULL":           {"ECDSA-P256", ecdsaSHA256, null, crypto.SHA256},
		"RSA MD5":                   {"RSA-2048", oid(1, 2, 840, 113549, 1, 1, 4), null, crypto.MD5},
		"RSA SHA-1":                 {"RSA-2048", oid(1, 2, 840, 113549, 1, 1, 5), null, crypto.SHA1},
		"RSA SHA-224":               {"RSA-2048", oid(1, 2, 840, 113549, 1, 1, 14), null, crypto.SHA224},
		"RSA with other parameters": {"RSA-2048", rsaSHA256, encodingasn1.RawValue{FullBytes: []byte{0x30, 0}}, crypto.SHA256},
		"RSA key, ECDSA named":      {"RSA-2048", ecdsaSHA256, none, crypto.SHA256},
		"ECDSA key, RSA named":      {"ECDSA-P256", rsaSHA256, null, crypto.SHA256},
		"Ed25519 key, ECDSA named":  {"Ed25519", ecdsaSHA256, none, 0},
		"Ed25519 with NULL":         {"Ed25519", oidEd25519, null, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signer := acceptedKey(t, c.key)
			_, err := policy.CSR(toPEM("CERTIFICATE REQUEST", forgeCSR(t, spkiOf(t, signer.Public()), c.oid, c.parameters, signer, c.hash)))
			wantFault(t, err, fault.CSRInvalid)
			if !strings.Contains(err.Error(), "signature algorithm is not accepted") {
				t.Errorf("refused for another reason: %v", err)
			}
		})
	}
	for name, s := range map[string]x509.SignatureAlgorithm{
		"PSS SHA-256": x509.SHA256WithRSAPSS, "PSS SHA-384": x509.SHA384WithRSAPSS, "PSS SHA-512": x509.SHA512WithRSAPSS,
	} {
		_, err := policy.CSR(toPEM("CERTIFICATE REQUEST", makeCSR(t, acceptedKey(t, "RSA-2048"), &x509.CertificateRequest{SignatureAlgorithm: s})))
		t.Run(name, func(t *testing.T) { wantFault(t, err, fault.CSRInvalid) })
	}
	t.Run("RSA without parameters is read", func(t *testing.T) {
		t.Parallel()
		signer := acceptedKey(t, "RSA-2048")
		if _, err := policy.CSR(toPEM("CERTIFICATE REQUEST", forgeCSR(t, spkiOf(t, signer.Public()), rsaSHA256, none, signer, crypto.SHA256))); err != nil {
			t.Error(err)
		}
	})
}

// What isn't a request.
func TestMalformedRequestsAreRefused(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	signer := acceptedKey(t, "ECDSA-P256")
	der := makeCSR(t, signer, &x509.CertificateRequest{})
	text := toPEM("CERTIFICATE REQUEST", der)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct {
		in   []byte
		want fault.Reason
	}{
		"nothing":          {nil, fault.CSRMalformed},
		"DER":              {der, fault.CSRMalformed},
		"two blocks":       {join(text, text), fault.CSRMalformed},
		"text before":      {join([]byte("x\n"), text), fault.CSRMalformed},
		"text after":       {join(text, []byte("x")), fault.CSRMalformed},
		"public key":       {toPEM("PUBLIC KEY", spkiOf(t, signer.Public())), fault.CSRMalformed},
		"certificate":      {toPEM("CERTIFICATE", selfSigned(t, signer)), fault.CSRMalformed},
		"labelled request": {toPEM("CERTIFICATE REQUEST", selfSigned(t, signer)), fault.CSRMalformed},
		"trailing DER":     {toPEM("CERTIFICATE REQUEST", join(der, []byte{0})), fault.CSRMalformed},
		"truncated":        {toPEM("CERTIFICATE REQUEST", der[:len(der)-1]), fault.CSRMalformed},
		"empty":            {toPEM("CERTIFICATE REQUEST", nil), fault.CSRMalformed},
		"headers":          {[]byte(strings.Replace(string(text), "QUEST-----\n", "QUEST-----\nA: b\n\n", 1)), fault.CSRMalformed},
		"over the limit":   {make([]byte, MaxCSRBytes+1), fault.KeyTooLarge},
	} {
		_, err := policy.CSR(c.in)
		t.Run(name, func(t *testing.T) { wantFault(t, err, c.want) })
	}
}

// One verdict: whatever the key, both ways say the same of it.
func TestSignatureAndCSRAgreeOnKeys(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	signer := freshP256(t)
	e := big.NewInt(65537)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	unfit := map[string][]byte{
		"RSA 1024":   rsaSPKI(t, bits(t, 1024), e),
		"RSA 8192":   rsaSPKI(t, bits(t, 8192), e),
		"RSA e = 3":  rsaSPKI(t, acceptedKey(t, "RSA-2048").Public().(*rsa.PublicKey).N, big.NewInt(3)),
		"ROCA":       rsaSPKI(t, rocaModulus(t), e),
		"P-224":      spkiOf(t, p224.Public()),
		"secp256k1":  opensslKey(t, "EC", "ec_paramgen_curve:secp256k1"),
		"infinity":   ecSPKI(t, pubkey.Curves[0].OID, []byte{0}),
		"X25519":     opensslKey(t, "X25519"),
		"Ed25519 0":  writeSPKI(t, oidEd25519, encodingasn1.RawValue{}, make([]byte, 32)),
		"no key":     {0x30, 0},
		"with bytes": sequence(t, encodingasn1.RawValue{FullBytes: spkiOf(t, signer.Public())}),
	}
	for name, spki := range unfit {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, bySignature := policy.signature(spki, []byte{1}, challenges)
			_, byCSR := policy.CSR(toPEM("CERTIFICATE REQUEST", forgeCSR(t, spki, ecdsaSHA256, encodingasn1.RawValue{}, signer, crypto.SHA256)))
			wantFault(t, bySignature, fault.From(byCSR).Reason)
			if fault.From(bySignature).Public != fault.From(byCSR).Public {
				t.Errorf("%v, but by CSR %v", bySignature, byCSR)
			}
		})
	}
	for _, k := range acceptedKeys() {
		one, err1 := policy.signature(spkiOf(t, k.signer.Public()), prove(t, k.signer, email), challenges)
		two, err2 := policy.CSR(toPEM("CERTIFICATE REQUEST", makeCSR(t, k.signer, &x509.CertificateRequest{})))
		if err1 != nil || err2 != nil || !bytes.Equal(one.SPKI(), two.SPKI()) || one.Algorithm() != two.Algorithm() {
			t.Errorf("%s: %v and %v", k.algorithm, err1, err2)
		}
	}
}

// OpenSSL makes the request.
func TestRequestsMadeByOpenSSL(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	digests := map[string]string{"ECDSA-P384": "-sha384", "ECDSA-P521": "-sha512"}
	for _, k := range acceptedKeys() {
		t.Run(k.algorithm, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			args := []string{"req", "-new", "-key", writePrivate(t, dir, k.signer), "-subj", "/CN=mallory",
				"-addext", "basicConstraints=critical,CA:TRUE", "-addext", "subjectAltName=email:mallory@example.com"}
			digest, ok := digests[k.algorithm]
			if !ok {
				digest = "-sha256"
			}
			for _, more := range [][]string{{digest}, {digest, "-newhdr"}} {
				key, err := policy.CSR(openssl(t, dir, append(args, more...)...))
				if err != nil {
					t.Fatalf("%v: %v", more, err)
				}
				checkKey(t, key, k)
			}
			if strings.HasPrefix(k.algorithm, "Ed") {
				return
			}
			_, err := policy.CSR(openssl(t, dir, append(args, "-sha1")...))
			wantFault(t, err, fault.CSRInvalid)
		})
	}
}
