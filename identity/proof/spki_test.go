package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	encodingasn1 "encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// bits is an odd number of exactly so many bits.
func bits(t testing.TB, n int) *big.Int {
	t.Helper()
	v, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(n-1)))
	if err != nil {
		t.Fatal(err)
	}
	return v.SetBit(v, n-1, 1).SetBit(v, 0, 1)
}

// prime is a random prime with the two highest bits set, so that the product of
// two has twice its bits.
func prime(t testing.TB, n int) *big.Int {
	t.Helper()
	p, err := rand.Prime(rand.Reader, n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// smallPrimes is the product of the primes up to most.
func smallPrimes(most int64) *big.Int {
	product := big.NewInt(1)
	for p := int64(2); p <= most; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			product.Mul(product, big.NewInt(p))
		}
	}
	return product
}

// rocaModulus makes a 2048-bit number with the fingerprint of the ROCA keys
// (Nemec et al., CCS 2017, §3.1): a power of 65537 modulo every small prime. It
// has no small factor, so that no other check refuses it.
func rocaModulus(t testing.TB) *big.Int {
	t.Helper()
	m := smallPrimes(167)
	power := new(big.Int).Exp(big.NewInt(65537), bits(t, 200), m)
	all := smallPrimes(751)
	for {
		n := bits(t, 2048)
		n.Sub(n, new(big.Int).Mod(n, m)).Add(n, power)
		if n.BitLen() == 2048 && new(big.Int).GCD(nil, nil, n, all).Cmp(big.NewInt(1)) == 0 {
			return n
		}
	}
}

// RSA keys that are too short, too long, odd in their exponent, or weak.
func TestUnfitRSAKeysAreRefused(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	e := big.NewInt(65537)
	good := acceptedKey(t, "RSA-2048").Public().(*rsa.PublicKey).N
	p := prime(t, 1024)
	close1 := new(big.Int).Add(p, big.NewInt(2))
	for !close1.ProbablyPrime(20) {
		close1.Add(close1, big.NewInt(2))
	}
	withFactor := func(factor int64) *big.Int {
		n := bits(t, 2048)
		n.Sub(n, new(big.Int).Mod(n, big.NewInt(2*factor))).Add(n, big.NewInt(factor))
		return n.SetBit(n, 2047, 1)
	}
	for name, c := range map[string]struct {
		n, e *big.Int
		want fault.Reason
	}{
		"512 bits":            {bits(t, 512), e, fault.KeyWeak},
		"1024 bits":           {bits(t, 1024), e, fault.KeyWeak},
		"2047 bits":           {bits(t, 2047), e, fault.KeyWeak},
		"2049 bits":           {bits(t, 2049), e, fault.KeyUnsupported},
		"2056 bits":           {bits(t, 2056), e, fault.KeyUnsupported},
		"8192 bits":           {bits(t, 8192), e, fault.KeyUnsupported},
		"16384 bits":          {bits(t, 16384), e, fault.KeyUnsupported},
		"e = 1":               {good, big.NewInt(1), fault.KeyWeak},
		"e = 3":               {good, big.NewInt(3), fault.KeyWeak},
		"e = 65536":           {good, big.NewInt(65536), fault.KeyWeak},
		"e = 65539":           {good, big.NewInt(65539), fault.KeyWeak},
		"e = 2³² + 65537":     {good, big.NewInt(1<<32 + 65537), fault.KeyWeak},
		"e = 2⁶⁴ + 65537":     {good, new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 64), e), fault.KeyWeak},
		"e huge":              {good, bits(t, 2000), fault.KeyWeak},
		"e = 0":               {good, new(big.Int), fault.KeyMalformed},
		"e negative":          {good, big.NewInt(-65537), fault.KeyMalformed},
		"n = 0":               {new(big.Int), e, fault.KeyMalformed},
		"n negative":          {new(big.Int).Neg(good), e, fault.KeyMalformed},
		"n even":              {new(big.Int).SetBit(good, 0, 0), e, fault.KeyWeak},
		"n a multiple of 3":   {withFactor(3), e, fault.KeyWeak},
		"n a multiple of 751": {withFactor(751), e, fault.KeyWeak},
		"ROCA":                {rocaModulus(t), e, fault.KeyWeak},
		"close primes":        {new(big.Int).Mul(p, close1), e, fault.KeyWeak},
		"a square":            {new(big.Int).Mul(p, p), e, fault.KeyWeak},
	} {
		_, err := policy.signature(rsaSPKI(t, c.n, c.e), []byte{1}, challenges)
		t.Run(name, func(t *testing.T) {
			// The factors are the private key: they must reach no log.
			wantFault(t, err, c.want, p.String(), close1.String(), p.Text(16))
		})
	}
}

// A key of a refused size costs next to nothing, for the checks that
// compute with it are never asked.
//
//nolint:paralleltest // it counts allocations
func TestHugeKeyIsCheapToRefuse(t *testing.T) {
	asked := 0
	policy := &Policy{factored: func(*rsa.PublicKey) error { asked++; return nil }}
	e := big.NewInt(65537)
	sig := make([]byte, MaxProofBytes)
	spki := rsaSPKI(t, bits(t, 16384), e)
	for _, der := range [][]byte{spki, rsaSPKI(t, bits(t, 2056), e), rsaSPKI(t, bits(t, 2048), big.NewInt(3))} {
		if _, err := policy.signature(der, sig, challenges); err == nil {
			t.Error("accepted")
		}
	}
	if asked != 0 {
		t.Errorf("the costly checks were asked %d times", asked)
	}
	// What is left is parsing: a handful of allocations, none larger than the input.
	if n := testing.AllocsPerRun(10, func() { _, _ = policy.signature(spki, sig, challenges) }); n > 32 {
		t.Errorf("a 16384-bit key costs %g allocations", n)
	}
	if _, err := policy.signature(make([]byte, MaxKeyBytes+1), sig, challenges); err == nil {
		t.Error("a key over the limit was accepted")
	} else {
		wantFault(t, err, fault.KeyTooLarge)
	}
}

// Other curves, other points, other algorithms.
func TestOtherCurvesAndAlgorithmsAreRefused(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	p256 := acceptedKey(t, "ECDSA-P256").Public().(*ecdsa.PublicKey)
	point, err := p256.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	off := bytes.Clone(point)
	off[len(off)-1] ^= 1
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	name := pubkey.Curves[0].OID
	allOnes := append([]byte{4}, bytes.Repeat([]byte{0xff}, 64)...)
	ed := acceptedKey(t, "Ed25519").Public().(ed25519.PublicKey)
	none := encodingasn1.RawValue{}
	for label, c := range map[string]struct {
		spki []byte
		want fault.Reason
		says string
	}{
		"P-224":                {spkiOf(t, p224.Public()), fault.KeyUnsupported, "P-224"},
		"secp256k1":            {opensslKey(t, "EC", "ec_paramgen_curve:secp256k1"), fault.KeyUnsupported, "secp256k1"},
		"brainpool":            {opensslKey(t, "EC", "ec_paramgen_curve:brainpoolP256r1"), fault.KeyUnsupported, "brainpoolP256r1"},
		"an unknown curve":     {opensslKey(t, "EC", "ec_paramgen_curve:sect283k1"), fault.KeyUnsupported, "accepted are"},
		"explicit parameters":  {opensslKey(t, "EC", "ec_paramgen_curve:P-256", "ec_param_enc:explicit"), fault.KeyUnsupported, "explicit"},
		"no curve":             {writeSPKI(t, oidEC, none, point), fault.KeyMalformed, "names no curve"},
		"implicit curve":       {writeSPKI(t, oidEC, encodingasn1.NullRawValue, point), fault.KeyMalformed, "names no curve"},
		"point at infinity":    {ecSPKI(t, name, []byte{0}), fault.KeyMalformed, "infinity"},
		"(0, 0)":               {ecSPKI(t, name, append([]byte{4}, make([]byte, 64)...)), fault.KeyMalformed, "not a point"},
		"off the curve":        {ecSPKI(t, name, off), fault.KeyMalformed, "not a point"},
		"coordinates over p":   {ecSPKI(t, name, allOnes), fault.KeyMalformed, "not a point"},
		"of the wrong curve":   {ecSPKI(t, pubkey.Curves[1].OID, point), fault.KeyMalformed, "not a point"},
		"compressed":           {ecSPKI(t, name, elliptic.MarshalCompressed(p256.Curve, p256.X, p256.Y)), fault.KeyUnsupported, "compressed"}, //nolint:staticcheck // SA1019: nothing else writes a compressed point
		"hybrid":               {ecSPKI(t, name, append([]byte{6}, point[1:]...)), fault.KeyMalformed, "not a point"},
		"no point":             {ecSPKI(t, name, nil), fault.KeyMalformed, "not a point"},
		"DSA":                  {writeSPKI(t, encodingasn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1}, none, []byte{2, 1, 5}), fault.KeyUnsupported, "DSA"},
		"X25519":               {spkiOf(t, x25519.Public()), fault.KeyUnsupported, "X25519"},
		"Ed448":                {opensslKey(t, "ED448"), fault.KeyUnsupported, "Ed448"},
		"RSASSA-PSS":           {opensslKey(t, "RSA-PSS", "rsa_keygen_bits:2048"), fault.KeyUnsupported, "RSASSA-PSS"},
		"an unknown algorithm": {writeSPKI(t, encodingasn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, none, point), fault.KeyUnsupported, "accepted are"},
		"Ed25519 of 31 bytes":  {writeSPKI(t, oidEd25519, none, ed[:31]), fault.KeyMalformed, "32 bytes"},
		"Ed25519 with NULL":    {writeSPKI(t, oidEd25519, encodingasn1.NullRawValue, ed), fault.KeyMalformed, "no parameters"},
		"RSA without NULL":     {writeSPKI(t, oidRSA, none, []byte{0x30, 0}), fault.KeyMalformed, "modulus"},
	} {
		_, err := policy.signature(c.spki, []byte{1}, challenges)
		t.Run(label, func(t *testing.T) {
			wantFault(t, err, c.want)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q doesn't say %q", err, c.says)
			}
		})
	}
}

// opensslKey is the DER public half of a new key of openssl's.
func opensslKey(t testing.TB, algorithm string, options ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	args := []string{"genpkey", "-algorithm", algorithm, "-out", "key.pem"}
	for _, o := range options {
		args = append(args, "-pkeyopt", o)
	}
	openssl(t, dir, args...)
	return openssl(t, dir, "pkey", "-in", "key.pem", "-pubout", "-outform", "DER")
}

// Ed25519 points for which anybody can sign, and those that libraries
// read differently.
func TestWeakEd25519PointsAreRefused(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	prime := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	encode := func(y *big.Int, sign byte) []byte {
		key := y.FillBytes(make([]byte, 32))
		for i := range 16 {
			key[i], key[31-i] = key[31-i], key[i]
		}
		key[31] |= sign << 7
		return key
	}
	for _, sign := range []byte{0, 1} {
		for _, point := range smallOrder {
			key := unhex(t, point)
			key[31] |= sign << 7
			_, err := policy.signature(writeSPKI(t, oidEd25519, encodingasn1.RawValue{}, key), make([]byte, 64), challenges)
			wantFault(t, err, fault.KeyWeak)
		}
		for add := range int64(19) {
			y := new(big.Int).Add(prime, big.NewInt(add))
			_, err := policy.signature(writeSPKI(t, oidEd25519, encodingasn1.RawValue{}, encode(y, sign)), make([]byte, 64), challenges)
			wantFault(t, err, fault.KeyMalformed)
		}
		if err := strongEd25519(encode(new(big.Int).Sub(prime, big.NewInt(2)), sign)); err != nil {
			t.Errorf("p − 2 is reduced and not of small order: %v", err)
		}
	}
	for _, point := range smallOrder {
		if !orderDivides8(t, prime, unhex(t, point)) {
			t.Errorf("%s isn't of small order", point)
		}
	}
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// orderDivides8 doubles the point three times on −x² + y² = 1 + dx²y² (RFC 8032
// §5.1) and reports whether that gives the identity (0, 1).
func orderDivides8(t *testing.T, p *big.Int, encoded []byte) bool {
	t.Helper()
	mod := func(v *big.Int) *big.Int { return v.Mod(v, p) }
	mul := func(a, b *big.Int) *big.Int { return mod(new(big.Int).Mul(a, b)) }
	one := big.NewInt(1)
	d := mul(big.NewInt(-121665), new(big.Int).ModInverse(big.NewInt(121666), p))
	reversed := bytes.Clone(encoded)
	for i := range 16 {
		reversed[i], reversed[31-i] = reversed[31-i], reversed[i]
	}
	y := new(big.Int).SetBytes(reversed)
	y2 := mul(y, y)
	u, v := mod(new(big.Int).Sub(y2, one)), mod(new(big.Int).Add(mul(d, y2), one))
	x := new(big.Int).ModSqrt(mul(u, new(big.Int).ModInverse(v, p)), p)
	if x == nil {
		t.Errorf("%x is not on the curve", encoded)
		return false
	}
	for range 3 {
		k := mul(d, mul(mul(x, x), mul(y, y)))
		x3 := mul(mul(big.NewInt(2), mul(x, y)), new(big.Int).ModInverse(mod(new(big.Int).Add(one, k)), p))
		y3 := mul(mod(new(big.Int).Add(mul(y, y), mul(x, x))), new(big.Int).ModInverse(mod(new(big.Int).Sub(one, k)), p))
		x, y = x3, y3
	}
	return x.Sign() == 0 && y.Cmp(one) == 0
}

// What people send in the public key's place.
func TestWhatIsSentInAKeysPlaceIsNamed(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	signer := acceptedKey(t, "ECDSA-P256").(*ecdsa.PrivateKey)
	der := spkiOf(t, signer.Public())
	text := toPEM("PUBLIC KEY", der)
	cert := selfSigned(t, signer)
	csr := makeCSR(t, signer, &x509.CertificateRequest{})
	rsaKey := acceptedKey(t, "RSA-2048").(*rsa.PrivateKey)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct {
		in   []byte
		says string
	}{
		"nothing":               {nil, "missing"},
		"blanks":                {[]byte(" \r\n"), "can't be read"},
		"two PEM blocks":        {join(text, text), "more than one"},
		"a broken block first":  {join([]byte("-----BEGIN PUBLIC KEY-----\nA\n-----END PUBLIC KEY-----\n"), text), "more than one"},
		"certificate PEM":       {toPEM("CERTIFICATE", cert), "certificate"},
		"certificate DER":       {cert, "certificate"},
		"labelled public":       {toPEM("PUBLIC KEY", cert), "certificate"},
		"CSR PEM":               {toPEM("CERTIFICATE REQUEST", csr), "certificateSigningRequest"},
		"CSR DER":               {csr, "can't be read"},
		"PKCS#1 public key":     {toPEM("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)), "SubjectPublicKeyInfo"},
		"PKCS#1 public DER":     {x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey), "can't be read"},
		"another label":         {toPEM("PARAMETERS", der), "expected PUBLIC KEY"},
		"trailing DER bytes":    {join(der, []byte{0}), "bytes follow"},
		"trailing in PEM":       {toPEM("PUBLIC KEY", join(der, []byte{5, 0})), "bytes follow"},
		"two keys in DER":       {join(der, der), "bytes follow"},
		"text after PEM":        {join(text, []byte("x")), "follows"},
		"text before PEM":       {join([]byte("x\n"), text), "before"},
		"BOM before PEM":        {join([]byte("\xef\xbb\xbf"), text), "before"},
		"NUL after PEM":         {join(text, []byte{0}), "follows"},
		"PEM headers":           {[]byte(strings.Replace(string(text), "KEY-----\n", "KEY-----\nA: b\n\n", 1)), "headers"},
		"PEM without end":       {text[:len(text)/2], "can't be decoded"},
		"PEM in base64":         {[]byte(base64.StdEncoding.EncodeToString(text)), "can't be read"},
		"DER in base64":         {[]byte(base64.StdEncoding.EncodeToString(der)), "can't be read"},
		"JWK":                   {[]byte(`{"kty":"EC","crv":"P-256"}`), "can't be read"},
		"OpenSSH":               {[]byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA alice"), "can't be read"},
		"truncated DER":         {der[:len(der)-1], "can't be read"},
		"length not minimal":    {join([]byte{0x30, 0x81, der[1]}, der[2:]), "can't be read"},
		"indefinite length":     {join([]byte{0x30, 0x80}, der[2:], []byte{0, 0}), "can't be read"},
		"unused bits":           {unusedBits(der), "can't be read"},
		"an empty sequence":     {[]byte{0x30, 0}, "can't be read"},
		"an element after bits": {sequence(t, encodingasn1.RawValue{FullBytes: der[2:]}, encodingasn1.NullRawValue), "can't be read"},
	} {
		_, err := policy.signature(c.in, []byte{1}, challenges)
		t.Run(name, func(t *testing.T) {
			wantFault(t, err, fault.KeyMalformed)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q doesn't say %q", err, c.says)
			}
		})
	}
}

// unusedBits claims that the key's last bit string has an unused bit.
func unusedBits(der []byte) []byte {
	out := bytes.Clone(der)
	out[len(out)-66] = 1 // 04 ‖ x ‖ y is 65 bytes, and the count stands before
	out[len(out)-1] &^= 1
	return out
}

// A private key of any format is recognised, refused, and appears in no
// error, whichever way it was sent.
func TestPrivateKeyIsRefusedAndNeverRepeated(t *testing.T) {
	t.Parallel()
	policy := newPolicy(t)
	pkcs8 := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ec := acceptedKey(t, "ECDSA-P256").(*ecdsa.PrivateKey)
	rs := acceptedKey(t, "RSA-2048").(*rsa.PrivateKey)
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	private := writePrivate(t, dir, ec)
	encrypted := openssl(t, dir, "pkcs8", "-topk8", "-in", private, "-passout", "pass:x", "-v2", "aes-256-cbc")
	encryptedDER := openssl(t, dir, "pkcs8", "-topk8", "-in", private, "-passout", "pass:x", "-v2", "aes-256-cbc", "-outform", "DER")
	public := toPEM("PUBLIC KEY", spkiOf(t, ec.Public()))
	for name, in := range map[string][]byte{
		"PKCS#8 EC":            toPEM("PRIVATE KEY", pkcs8(ec)),
		"PKCS#8 Ed25519":       toPEM("PRIVATE KEY", pkcs8(acceptedKey(t, "Ed25519"))),
		"PKCS#8 DER":           pkcs8(rs),
		"PKCS#1":               toPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs)),
		"PKCS#1 DER":           x509.MarshalPKCS1PrivateKey(rs),
		"SEC 1":                toPEM("EC PRIVATE KEY", sec1),
		"SEC 1 DER":            sec1,
		"SEC 1 and parameters": append(toPEM("EC PARAMETERS", []byte{6, 1, 1}), toPEM("EC PRIVATE KEY", sec1)...),
		"labelled public":      toPEM("PUBLIC KEY", pkcs8(ec)),
		"encrypted":            encrypted,
		"encrypted DER":        encryptedDER,
		"OpenSSH":              []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n"),
		"after the public key": append(bytes.Clone(public), toPEM("PRIVATE KEY", pkcs8(ec))...),
		"after some text":      append([]byte("my key:\n"), toPEM("PRIVATE KEY", pkcs8(ec))...),
	} {
		_, err := policy.signature(in, []byte{1}, challenges)
		t.Run(name, func(t *testing.T) {
			wantFault(t, err, fault.KeyMalformed, secretsIn(in)...)
			if !strings.Contains(err.Error(), "this is a private key; send only the public key") {
				t.Errorf("%q doesn't warn", err)
			}
		})
	}
	_, err = policy.CSR(toPEM("PRIVATE KEY", pkcs8(ec)))
	wantFault(t, err, fault.CSRMalformed, secretsIn(pkcs8(ec))...)
}

// secretsIn are pieces of the input that an error must not hold.
func secretsIn(in []byte) []string {
	var pieces []string
	for line := range strings.Lines(string(in)) {
		if line = strings.TrimSpace(line); len(line) > 8 && !strings.HasPrefix(line, "-----") {
			pieces = append(pieces, line)
		}
	}
	return pieces
}

// What the parser accepts, the standard library accepts and reads alike: the
// canonical encoding is the input.
func TestParserAgreesWithStandardLibrary(t *testing.T) {
	t.Parallel()
	policy := &Policy{factored: func(*rsa.PublicKey) error { return nil }} // the parser alone
	for _, k := range acceptedKeys() {
		der := spkiOf(t, k.signer.Public())
		for i := range der {
			for _, flip := range []byte{0x01, 0x80} {
				changed := bytes.Clone(der)
				changed[i] ^= flip
				agree(t, policy, changed)
			}
		}
	}
}

// agree checks that a key that parses is the standard library's.
func agree(t testing.TB, policy *Policy, der []byte) {
	t.Helper()
	ours, err := policy.parseKey(der)
	if err != nil {
		wantFault(t, err, fault.From(err).Reason)
		return
	}
	theirs, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		t.Fatalf("we read what the standard library refuses: %v: %x", err, der)
	}
	if public, ok := ours.public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(theirs) {
		t.Fatalf("read as %v and %v: %x", ours.public, theirs, der)
	}
	if again := spkiOf(t, ours.public); !bytes.Equal(again, der) {
		t.Fatalf("not canonical: %x became %x", der, again)
	}
}
