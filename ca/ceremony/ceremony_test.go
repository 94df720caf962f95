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
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
)

// TestEveryKey: each kind of key below each, and what others say about the chain.
func TestEveryKey(t *testing.T) {
	t.Parallel()
	for _, above := range kms.Algorithms() {
		rootKey := keyOf(t, above, 0)
		root := made(t, nil, cacert.Profile{Organization: "Example", PathLength: cacert.Unlimited}, rootKey, rootKey)
		zlintAgrees(t, root.Chain[0])
		opensslAgrees(t, root.Chain)
		for _, below := range kms.Algorithms() {
			m := made(t, root.Chain, cacert.Profile{}, keyOf(t, below, 1), rootKey)
			c := m.Chain[0]
			if faults := cacert.Check(m.Chain, chain.Need{Now: noon, Lifetime: time.Hour}); len(faults) > 0 {
				t.Errorf("%s below %s: %v", below, above, faults)
			}
			if got, err := kms.AlgorithmOf(c.PublicKey); err != nil || got != below {
				t.Errorf("%s below %s: the key is %s, %v", below, above, got, err)
			}
			if !strings.Contains(c.SignatureAlgorithm.String(), strings.ReplaceAll(above.Hash().String(), "-", "")) || strings.Contains(c.SignatureAlgorithm.String(), "PSS") {
				t.Errorf("%s below %s: signed with %v", below, above, c.SignatureAlgorithm)
			}
			zlintAgrees(t, c)
			opensslAgrees(t, m.Chain)
		}
	}
}

// TestProfile: what a certificate says, from what was chosen.
func TestProfile(t *testing.T) {
	t.Parallel()
	r, rootKey := root(t, cacert.Profile{PathLength: 2, Lifetime: 400 * cacert.Day})
	if c := r.Chain[0]; c.MaxPathLen != 2 || c.Subject.String() != "CN=Example root,O=Example" || len(c.ExtKeyUsage) != 0 ||
		!c.NotAfter.Equal(noon.Add(400*cacert.Day-time.Second)) || c.SerialNumber.BitLen() > 159 || c.SerialNumber.BitLen() < 96 {
		t.Errorf("root %+v", c)
	}
	policyKey := keyOf(t, kms.ECDSAP256, 0)
	policy := made(t, r.Chain, cacert.Profile{CommonName: "Policy", PathLength: 1}, policyKey, rootKey)
	if c := policy.Chain[0]; c.MaxPathLen != 1 || !c.NotAfter.Equal(r.Chain[0].NotAfter) || c.Subject.Organization[0] != "Example" ||
		!slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}) {
		t.Errorf("policy CA %+v", c)
	}
	if !strings.Contains(string(policy.Record("chain.pem")), "the validity is shortened to end with CN=Example root") {
		t.Error("the shortened validity isn't on record")
	}
	issuing := made(t, policy.Chain, cacert.Profile{Lifetime: 30 * cacert.Day}, keyOf(t, kms.ECDSAP256, 1), policyKey)
	if c := issuing.Chain[0]; !c.MaxPathLenZero || len(issuing.Chain) != 3 || !c.NotAfter.Equal(noon.Add(30*cacert.Day-time.Second)) {
		t.Errorf("issuing CA %+v", c)
	}
	opensslAgrees(t, issuing.Chain)
	for i, need := range []chain.Need{{Below: 0}, {Below: 1}, {Below: 2}} {
		need.Now = noon
		if faults := cacert.Check(issuing.Chain[i:], need); len(faults) > 0 {
			t.Errorf("from %d on: %v", i, faults)
		}
	}
	serials := map[string]bool{}
	for range 8 {
		serials[made(t, r.Chain, cacert.Profile{}, policyKey, rootKey).Chain[0].SerialNumber.String()] = true
	}
	if len(serials) != 8 {
		t.Error("a serial number came twice")
	}
}

// TestRefusals: what can't come out well is refused before any key is used.
func TestRefusals(t *testing.T) {
	t.Parallel()
	r, _ := root(t, cacert.Profile{PathLength: 1, Lifetime: 400 * cacert.Day})
	short, _ := root(t, cacert.Profile{PathLength: 1, Lifetime: cacert.Day})
	leafIssuer := made(t, r.Chain, cacert.Profile{}, keyOf(t, kms.ECDSAP256, 0), keyOf(t, kms.ECDSAP384, 0))
	long := strings.Repeat("n", 65)
	later := here
	later.Now = noon.Add(500 * cacert.Day)
	evening := here
	evening.Now = noon.Add(cacert.Day / 2)
	earlier := here
	earlier.Now = noon.Add(-time.Hour)
	for _, tt := range []struct {
		name   string
		parent []*x509.Certificate
		p      cacert.Profile
		at     Circumstances
		want   []string
	}{
		{"no organization", nil, cacert.Profile{PathLength: cacert.Unlimited}, here, []string{"the organization is empty"}},
		{"a root for nothing", nil, cacert.Profile{Organization: "E"}, here, []string{"could certify no intermediate"}},
		{"several at once", nil, cacert.Profile{Organization: long, Lifetime: time.Hour}, here, []string{"longer than 64 characters", "state from 1 day", "path length 0"}},
		{"too long a life", nil, cacert.Profile{Organization: "E", PathLength: cacert.Unlimited, Lifetime: 31 * 365 * cacert.Day}, here, []string{"state from 1 day to 10950 days"}},
		{"a line in the name", nil, cacert.Profile{Organization: "E", CommonName: "a\nb", PathLength: cacert.Unlimited}, here, []string{"can't be printed"}},
		{"a direction in the name", nil, cacert.Profile{Organization: "E", CommonName: "a\u202eb", PathLength: cacert.Unlimited}, here, []string{"can't be printed"}},
		{"not UTF-8", nil, cacert.Profile{Organization: "E\xff", PathLength: cacert.Unlimited}, here, []string{"can't be printed"}},
		{"a space", nil, cacert.Profile{Organization: " E", PathLength: cacert.Unlimited}, here, []string{"begins or ends in a space"}},
		{"another organization", r.Chain, cacert.Profile{Organization: "Other"}, here, []string{`is to be the root's, since clients choose the verifier by it: "Example", not "Other"`}},
		{"beyond the issuer", r.Chain, cacert.Profile{Lifetime: 401 * cacert.Day}, here, []string{"would outlive CN=Example root,O=Example, which ends at 2027-04-05T11:59:59Z: state at most 399 days"}},
		{"the issuer's name", r.Chain, cacert.Profile{CommonName: "Example root"}, here, []string{"choose another common name"}},
		{"path length of the issuer", r.Chain, cacert.Profile{PathLength: 1}, here, []string{"its path length 1 forbids the 2 CA certificates below it"}},
		{"below what issues leaves", leafIssuer.Chain, cacert.Profile{CommonName: "sub"}, here, []string{"its path length 0 forbids the 1 CA certificates below it"}},
		{"no path length", r.Chain, cacert.Profile{PathLength: cacert.Unlimited}, here, []string{"states its path length"}},
		{"an expired issuer", r.Chain, cacert.Profile{}, later, []string{"the issuer's chain: certificate 1 (CN=Example root,O=Example): expired"}},
		{"an issuer of the future", r.Chain, cacert.Profile{}, earlier, []string{"not valid before"}},
		{"an issuer near its end", short.Chain, cacert.Profile{}, evening, []string{"too soon for anything below it"}},
		{"no root", leafIssuer.Chain[:1], cacert.Profile{CommonName: "sub"}, here, []string{"isn't a self-signed root"}},
	} {
		_, err := New(tt.parent, tt.p, tt.at)
		t.Run(tt.name, func(t *testing.T) { wants(t, err, tt.want...) })
	}
}

// TestKeyRefusals: keys that a CA may not have.
func TestKeyRefusals(t *testing.T) {
	t.Parallel()
	r, rootKey := root(t, cacert.Profile{PathLength: cacert.Unlimited})
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sound := keyOf(t, kms.RSA2048, 0).Public().(*rsa.PublicKey)
	even := new(big.Int).Lsh(big.NewInt(1), 2047)
	for _, tt := range []struct {
		name   string
		public crypto.PublicKey
		want   string
	}{
		{"the root's", rootKey.Public(), "is that of CN=Example root,O=Example already"},
		{"P-224", p224.Public(), "curve P-224 isn't supported"},
		{"Ed25519", ed, "isn't supported"},
		{"RSA e=3", &rsa.PublicKey{N: sound.N, E: 3}, "the RSA key's public exponent is not accepted"},
		{"RSA divisible by 3", &rsa.PublicKey{N: even.Add(even, big.NewInt(1)), E: 65537}, "the RSA key is weak"},
	} {
		c, err := New(r.Chain, cacert.Profile{}, here)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(tt.name, func(t *testing.T) {
			wants(t, c.For(tt.public, "file:x"), tt.want)
			if _, err := c.Sign(rootKey); err == nil {
				t.Error("signed all the same")
			}
		})
	}
}

// badSigner signs wrongly.
type badSigner struct {
	crypto.Signer
	sign func(digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

func (b badSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return b.sign(digest, opts)
}

// TestSigningFails: the issuer's key fails or lies.
func TestSigningFails(t *testing.T) {
	t.Parallel()
	r, rootKey := root(t, cacert.Profile{PathLength: cacert.Unlimited})
	other := keyOf(t, kms.ECDSAP384, 1)
	for name, tt := range map[string]struct {
		key  cacert.Key
		want string
	}{
		"another key":  {other, "file:ECDSA-P384 isn't the key of CN=Example root,O=Example"},
		"down":         {cacert.Key{Signer: badSigner{rootKey, func([]byte, crypto.SignerOpts) ([]byte, error) { return nil, errors.New("down") }}, Ref: "kms"}, "signing with kms: down"},
		"no signature": {cacert.Key{Signer: badSigner{rootKey, func([]byte, crypto.SignerOpts) ([]byte, error) { return nil, nil }}, Ref: "kms"}, "signing with kms: "},
		"a stranger's signature": {cacert.Key{Signer: badSigner{rootKey, func(d []byte, o crypto.SignerOpts) ([]byte, error) {
			return other.Sign(rand.Reader, d, o)
		}}, Ref: "kms"}, "signing with kms: "},
	} {
		c, err := New(r.Chain, cacert.Profile{}, here)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.For(keyOf(t, kms.ECDSAP256, 0).Public(), "file:x"); err != nil {
			t.Fatal(err)
		}
		m, err := c.Sign(tt.key)
		t.Run(name, func(t *testing.T) { wants(t, err, tt.want) })
		if m != nil {
			t.Errorf("%s: a certificate came out", name)
		}
	}
}

// TestWrite: certificate and record, and nothing over anything.
func TestWrite(t *testing.T) {
	t.Parallel()
	r, _ := root(t, cacert.Profile{PathLength: cacert.Unlimited})
	dir := t.TempDir()
	to := Beside(filepath.Join(dir, "root.pem"))
	if err := errors.Join(bothFree(to), r.Write(to)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(to.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	read, err := chain.Parse(text)
	if err != nil || !read[0].Equal(r.Chain[0]) {
		t.Errorf("read back %v, %v", read, err)
	}
	record, err := os.ReadFile(filepath.Join(dir, "root.record.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"2026-03-01T12:00:00Z", "vault-1", "mayfly test", "Ada", "Grace", "root.pem", "file:ECDSA-P384", "2036-02-27T11:59:59Z",
		"keyCertSign, cRLSign", "unlimited", r.Chain[0].SerialNumber.Text(16), chain.Fingerprint(r.Chain[0].Raw), chain.Fingerprint(r.Chain[0].RawSubjectPublicKeyInfo),
		"crypto/x509 verifies the chain for code signing",
	} {
		if !bytes.Contains(record, []byte(want)) {
			t.Errorf("the record lacks %q:\n%s", want, record)
		}
	}
	wants(t, bothFree(to), "root.pem: file already exists, and nothing is overwritten", "root.record.txt: file already exists")
	for _, tt := range []struct{ there, want string }{
		{"x.record.txt", "nothing is written"},
		{"y.pem", "the certificate is nowhere"},
	} {
		path := filepath.Join(dir, tt.there)
		if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := r.Write(Beside(filepath.Join(dir, tt.there[:1]+".pem")))
		wants(t, err, tt.want, "the issuer's key has signed a certificate, serial "+serial(r.Chain[0]), chain.Fingerprint(r.Chain[0].Raw))
		if signed := (*cacert.SignedError)(nil); !errors.As(err, &signed) || !errors.Is(err, os.ErrExist) {
			t.Errorf("error %v", err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "theirs" {
			t.Errorf("%s was touched: %q, %v", tt.there, b, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "x.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an unrecorded certificate was written: %v", err)
	}
	wants(t, bothFree(Beside(filepath.Join(dir, "nowhere", "root.pem"))), "can't be written")
	if left, err := filepath.Glob(filepath.Join(dir, ".mayfly-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// FuzzPrint: whatever a certificate holds, no control character is printed.
func FuzzPrint(f *testing.F) {
	m, _ := root(f, cacert.Profile{PathLength: cacert.Unlimited})
	f.Add(chain.PEM(m.Chain))
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := chain.Parse(b)
		if err != nil {
			return
		}
		var s strings.Builder
		for _, c := range certs {
			Print(&s, c)
		}
		if strings.ContainsFunc(s.String(), func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }) {
			t.Errorf("a control character is printed: %q", s.String())
		}
	})
}

func bothFree(o Output) error { return errors.Join(Free(o.Certificate), Free(o.Record)) }
