package service

import (
	"bytes"
	"crypto"
	"crypto/dsa" //nolint:staticcheck // a kind of key that has to be refused
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Keys and proofs that are refused.

// withProof is a good request but for the proof.
func (r *rig) withProof(t testing.TB, proof []byte) signingRequest {
	t.Helper()
	o := r.signingRequest(t, r.token(t, nil))
	o.proof = proof
	return o
}

// withKey is a good request but for the key, proven by the rig's own.
func (r *rig) withKey(t testing.TB, spki string) signingRequest {
	t.Helper()
	o := r.signingRequest(t, r.token(t, nil))
	o.spki = spki
	return o
}

func (r *rig) withCSR(t testing.TB, csr []byte) signingRequest {
	t.Helper()
	o := r.signingRequest(t, r.token(t, nil))
	o.csr = csr
	return o
}

func der(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBadProofsAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	good := prove(t, r.key, identitytest.Email)
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(good, &rs); err != nil {
		t.Fatal(err)
	}
	zero := new(big.Int)
	for name, c := range map[string]struct {
		proof []byte
		want  []fault.Reason
	}{
		"by another key":      {prove(t, newKey(t), identitytest.Email), []fault.Reason{fault.ProofInvalid}},
		"over another text":   {prove(t, r.key, "mallory@example.com"), []fault.Reason{fault.ProofInvalid}},
		"over the audience":   {prove(t, r.key, identitytest.Audience), []fault.Reason{fault.ProofInvalid}},
		"over nothing":        {prove(t, r.key, ""), []fault.Reason{fault.ProofInvalid}},
		"empty":               {[]byte{}, []fault.Reason{fault.ProofMissing}},
		"1 MiB":               {make([]byte, 1<<20), []fault.Reason{fault.BodyTooLarge, fault.ProofTooLarge}},
		"16 KiB":              {make([]byte, 16<<10), []fault.Reason{fault.ProofTooLarge}},
		"trailing DER bytes":  {append(bytes.Clone(good), 5, 0), []fault.Reason{fault.ProofInvalid}},
		"r = 0":               {der(t, struct{ R, S *big.Int }{zero, rs.S}), []fault.Reason{fault.ProofInvalid}},
		"s = 0":               {der(t, struct{ R, S *big.Int }{rs.R, zero}), []fault.Reason{fault.ProofInvalid}},
		"both 0":              {der(t, struct{ R, S *big.Int }{zero, zero}), []fault.Reason{fault.ProofInvalid}},
		"a PEM of it":         {[]byte(toPEM("SIGNATURE", good)), []fault.Reason{fault.ProofInvalid}},
		"one bit of it wrong": {append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1), []fault.Reason{fault.ProofInvalid}},
	} {
		o := r.withProof(t, c.proof)
		r.refuses(t, name, o, c.want...)
	}
}

// number is odd and has exactly so many bits.
func number(t testing.TB, bits int) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1)))
	if err != nil {
		t.Fatal(err)
	}
	return n.SetBit(n, bits-1, 1).SetBit(n, 0, 1)
}

// spkiWith writes a SubjectPublicKeyInfo that the standard library wouldn't.
func spkiWith(t testing.TB, algorithm pkix.AlgorithmIdentifier, key []byte) string {
	t.Helper()
	return toPEM("PUBLIC KEY", der(t, struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{algorithm, asn1.BitString{Bytes: key, BitLength: 8 * len(key)}}))
}

func rsaWith(t testing.TB, n, e *big.Int) string {
	t.Helper()
	algorithm := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue}
	return spkiWith(t, algorithm, der(t, struct{ N, E *big.Int }{n, e}))
}

func TestBadRSAKeysAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	e := big.NewInt(65537)
	good := startIssuer(t).Key().N
	prime, err := rand.Prime(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	next := new(big.Int).Add(prime, big.NewInt(2))
	for !next.ProbablyPrime(10) {
		next.Add(next, big.NewInt(2))
	}
	r.private = append(r.private, prime.String(), prime.Text(16)) // a factor is the private key
	for name, spki := range map[string]string{
		"1024 bits": rsaWith(t, number(t, 1024), e), "2047 bits": rsaWith(t, number(t, 2047), e), "2056 bits": rsaWith(t, number(t, 2056), e),
		"8192 bits": rsaWith(t, number(t, 8192), e), "16384 bits": rsaWith(t, number(t, 16384), e),
		"e = 1": rsaWith(t, good, big.NewInt(1)), "e = 3": rsaWith(t, good, big.NewInt(3)), "e even": rsaWith(t, good, big.NewInt(65536)), "e huge": rsaWith(t, good, number(t, 1000)),
		"even modulus": rsaWith(t, new(big.Int).SetBit(good, 0, 0), e), "close primes": rsaWith(t, new(big.Int).Mul(prime, next), e),
		"a square": rsaWith(t, new(big.Int).Mul(prime, prime), e), "a small factor": rsaWith(t, new(big.Int).Mul(number(t, 2040), big.NewInt(251)), e),
	} {
		r.refuses(t, name, r.withKey(t, spki), fault.KeyWeak, fault.KeyUnsupported, fault.KeyTooLarge)
	}
	for _, a := range r.answers {
		if a.reason == fault.KeyTooLarge {
			t.Errorf("%s: %s: a 16384-bit key is within the limit of bytes", a.edge, a.message)
		}
	}
}

func TestBadKeysOfOtherKindsAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := r.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	off := bytes.Clone(point)
	off[len(off)-1] ^= 1
	ec := func(parameters any, point []byte) string {
		return spkiWith(t, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, Parameters: asn1.RawValue{FullBytes: der(t, parameters)}}, point)
	}
	p256 := asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	explicit := struct { // SEC 1 §C.2, as far as a parser would look
		Version int
		Field   struct {
			ID asn1.ObjectIdentifier
			P  *big.Int
		}
	}{Version: 1}
	explicit.Field.ID, explicit.Field.P = asn1.ObjectIdentifier{1, 2, 840, 10045, 1, 1}, elliptic.P256().Params().P
	dsaKey := dsa.PublicKey{Parameters: dsa.Parameters{P: number(t, 1024), Q: number(t, 160), G: number(t, 1000)}, Y: number(t, 1000)}
	for name, spki := range map[string]string{
		"P-224":               toPEM("PUBLIC KEY", spkiOf(t, p224.Public())),
		"secp256k1":           ec(asn1.ObjectIdentifier{1, 3, 132, 0, 10}, point),
		"explicit parameters": ec(explicit, point),
		"point at infinity":   ec(p256, []byte{0}),
		"off the curve":       ec(p256, off),
		"DSA": spkiWith(t, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1},
			Parameters: asn1.RawValue{FullBytes: der(t, dsaKey.Parameters)}}, der(t, dsaKey.Y)),
		"X25519": toPEM("PUBLIC KEY", spkiOf(t, x25519.PublicKey())),
	} {
		r.refuses(t, name, r.withKey(t, spki), fault.KeyUnsupported, fault.KeyMalformed, fault.KeyWeak)
	}
}

func TestWhatIsNoKeyIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	public := toPEM("PUBLIC KEY", spkiOf(t, r.key.Public()))
	private, err := x509.MarshalPKCS8PrivateKey(r.key)
	if err != nil {
		t.Fatal(err)
	}
	secret := toPEM("PRIVATE KEY", private)
	lines := bytes.Split([]byte(secret), []byte("\n"))
	r.private = append(r.private, string(lines[1]), string(lines[2]))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, r.key.Public(), r.key)
	if err != nil {
		t.Fatal(err)
	}
	for name, spki := range map[string]string{
		"two blocks": public + public, "a private key": secret, "a private key behind the public one": public + secret,
		"a private key named a public one": toPEM("PUBLIC KEY", private), "a certificate": toPEM("CERTIFICATE", certificate), "a certificate named a key": toPEM("PUBLIC KEY", certificate),
		"text behind": public + "x", "text before": "x\n" + public, "trailing bytes": toPEM("PUBLIC KEY", append(spkiOf(t, r.key.Public()), 0)), "garbage": "garbage", "cut": public[:len(public)/2],
	} {
		r.refuses(t, name, r.withKey(t, spki), fault.KeyMalformed, fault.KeyUnsupported)
	}
	o := r.signingRequest(t, r.token(t, nil))
	o.spki = ""
	r.refuses(t, "nothing", o, fault.RequestMalformed)
}

func TestBadCertificateSigningRequestsAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	request := func(template *x509.CertificateRequest, key crypto.Signer) []byte {
		csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			t.Fatal(err)
		}
		return csr
	}
	const label = "CERTIFICATE REQUEST"
	good := request(&x509.CertificateRequest{Subject: pkix.Name{CommonName: "alice"}}, r.key)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	weak := startIssuer(t).Key()
	relabelled := func(oid asn1.ObjectIdentifier) []byte { // the signature algorithm is named another
		var csr struct {
			Info      asn1.RawValue
			Algorithm pkix.AlgorithmIdentifier
			Signature asn1.BitString
		}
		if _, err := asn1.Unmarshal(request(&x509.CertificateRequest{}, weak), &csr); err != nil {
			t.Fatal(err)
		}
		csr.Algorithm.Algorithm = oid
		return der(t, csr)
	}
	for name, csr := range map[string][]byte{
		"bit of the signature": flipped, "bit of the subject": bytes.Replace(good, []byte("alice"), []byte("alicf"), 1),
		"SHA-1": relabelled(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}), "MD5": relabelled(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 4}),
		"PSS": request(&x509.CertificateRequest{SignatureAlgorithm: x509.SHA256WithRSAPSS}, weak),
	} {
		r.refuses(t, name, r.withCSR(t, []byte(toPEM(label, csr))), fault.CSRInvalid)
	}
	for name, csr := range map[string]string{
		"DER": string(good), "two": toPEM(label, good) + toPEM(label, good), "garbage": "garbage", "a key": toPEM("PUBLIC KEY", spkiOf(t, r.key.Public())),
		"trailing bytes": toPEM(label, append(bytes.Clone(good), 0)),
	} {
		r.refuses(t, name, r.withCSR(t, []byte(csr)), fault.CSRMalformed)
	}
	r.extras(t, request)
}

// extras holds that nothing of what a request asks for beside its key is certified.
func (r *rig) extras(t *testing.T, request func(*x509.CertificateRequest, crypto.Signer) []byte) {
	t.Helper()
	extension := func(id int, value []byte) pkix.Extension {
		return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, id}, Critical: true, Value: value}
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"EC": r.key, "RSA": rsaKey} {
		csr := request(&x509.CertificateRequest{
			Subject:  pkix.Name{CommonName: "mallory", Organization: []string{"Evil"}},
			DNSNames: []string{"evil.example"}, EmailAddresses: []string{"mallory@example.com"}, IPAddresses: []net.IP{{127, 0, 0, 1}},
			ExtraExtensions: []pkix.Extension{extension(19, []byte{0x30, 3, 1, 1, 0xff}), extension(30, []byte{0x30, 0}), extension(15, []byte{3, 2, 1, 6})},
		}, key)
		for _, leaf := range r.issues(t, name, r.withCSR(t, []byte(toPEM("CERTIFICATE REQUEST", csr)))) {
			if leaf.IsCA || leaf.Subject.String() != "" || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.URIs) != 0 ||
				len(leaf.EmailAddresses) != 1 || leaf.EmailAddresses[0] != identitytest.Email || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
				t.Errorf("%s: certified %v %v %v", name, leaf.Subject, leaf.EmailAddresses, leaf.KeyUsage)
			}
			known := map[string]bool{"2.5.29.15": true, "2.5.29.37": true, "2.5.29.14": true, "2.5.29.35": true, "2.5.29.17": true,
				ctlog.OIDSCTList.String(): true, "1.3.6.1.4.1.57264.1.1": true, "1.3.6.1.4.1.57264.1.8": true, "1.3.6.1.4.1.57264.1.24": true}
			for _, x := range leaf.Extensions {
				if !known[x.Id.String()] {
					t.Errorf("%s: extension %v", name, x.Id)
				}
			}
		}
	}
}
