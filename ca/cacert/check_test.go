package cacert

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newKey(t testing.TB) Key {
	t.Helper()
	key, err := kms.ECDSAP256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return Key{Signer: key, Ref: "file:key.pem"}
}

// made drafts a certificate and signs it.
func made(t testing.TB, parent []*x509.Certificate, p Profile, key, issuer Key) (*Draft, *Certificate) {
	t.Helper()
	d, err := New(parent, p, noon)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.For(key.Public()); err != nil {
		t.Fatal(err)
	}
	m, err := d.Sign(issuer)
	if err != nil {
		t.Fatal(err)
	}
	return d, m
}

func rsaKey(t testing.TB) Key {
	t.Helper()
	key, err := kms.RSA2048.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return Key{Signer: key, Ref: "file:key.pem"}
}

// foreign is a chain that another tool made: root, policy CA, issuing CA.
type foreign struct {
	templates [3]*x509.Certificate // issuing, policy, root
	keys      [3]Key
	need      chain.Need
}

func newForeign(t testing.TB) *foreign {
	t.Helper()
	f := &foreign{need: chain.Need{Now: noon, Lifetime: time.Hour}}
	for i, name := range []string{"issuing", "policy", "root"} {
		f.keys[i] = newKey(t)
		f.templates[i] = &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name, Organization: []string{"Example"}},
			NotBefore: noon.Add(-Day), NotAfter: noon.Add(Day), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
			BasicConstraintsValid: true, IsCA: true, MaxPathLen: i, MaxPathLenZero: i == 0,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		}
	}
	f.templates[2].ExtKeyUsage = nil
	return f
}

func (f *foreign) chain(t testing.TB) []*x509.Certificate {
	t.Helper()
	chain := make([]*x509.Certificate, 3)
	for i := 2; i >= 0; i-- {
		parent, above := f.templates[i], i
		if i < 2 {
			parent, above = chain[i+1], i+1
		}
		der, err := x509.CreateCertificate(rand.Reader, f.templates[i], parent, f.keys[i].Public(), f.keys[above])
		if err != nil {
			t.Fatal(err)
		}
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	return chain
}

// withExtension sets an extension's bytes and drops what the template says of it.
func withExtension(id asn1.ObjectIdentifier, critical bool, value ...byte) []pkix.Extension {
	return []pkix.Extension{{Id: id, Critical: critical, Value: value}}
}

// TestEachBrokenRuleOfTheProfileIsFound: each rule of the profile, broken: what clients refuse is a fault, what
// they take a remark.
func TestEachBrokenRuleOfTheProfileIsFound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		wrong func(*foreign)
		want  []string // a part of each finding, in order; remarks are marked
	}{
		{"good", func(*foreign) {}, nil},
		{"good, of a policy CA", func(f *foreign) {
			f.templates[0].MaxPathLenZero, f.templates[0].MaxPathLen = false, -1
			f.templates[1].MaxPathLen = 2
			f.templates[2].MaxPathLen = 3
			f.need.Below = 1
		}, nil},
		{"a root as openssl makes it", func(f *foreign) { f.templates[2].KeyUsage = 0 }, []string{"remark: certificate 3 (CN=root,O=Example): the root states no key usage"}},
		{"an issuing CA without a key usage", func(f *foreign) { f.templates[0].KeyUsage = 0 }, []string{"certificate 1 (CN=issuing,O=Example): lacks the key usage keyCertSign"}},
		{"a root signed with SHA-1", func(f *foreign) { f.templates[2].SignatureAlgorithm = x509.ECDSAWithSHA1 }, []string{"remark: certificate 3 (CN=root,O=Example): the root signed itself with ECDSA-SHA1", "remark: its signature's hash"}},
		{"a policy CA signed with SHA-1", func(f *foreign) { f.templates[1].SignatureAlgorithm = x509.ECDSAWithSHA1 }, []string{"certificate 2 (CN=policy,O=Example): is signed with ECDSA-SHA1", "remark: its signature's hash"}},
		{"a root signed with PSS", func(f *foreign) {
			f.keys[2], f.templates[2].SignatureAlgorithm = rsaKey(t), x509.SHA256WithRSAPSS
		}, []string{"remark: certificate 3 (CN=root,O=Example): the root signed itself with SHA256-RSAPSS"}},
		{"name constraints", func(f *foreign) {
			f.templates[1].PermittedDNSDomainsCritical, f.templates[1].PermittedEmailAddresses = true, []string{"example.com"}
		}, []string{"remark: certificate 2 (CN=policy,O=Example): has name constraints"}},
		{"policies that a leaf doesn't have", func(f *foreign) {
			f.templates[1].ExtraExtensions = withExtension([]int{2, 5, 29, 36}, true, 0x30, 3, 0x80, 1, 0) // requireExplicitPolicy 0
		}, []string{"clients would refuse certificates below this chain"}},
		// crypto/x509 takes this one itself: it has to be asked about a leaf.
		{"policies that a leaf of this one doesn't have", func(f *foreign) {
			f.templates[0].ExtraExtensions = withExtension([]int{2, 5, 29, 36}, true, 0x30, 3, 0x80, 1, 1) // requireExplicitPolicy 1
		}, []string{"clients would refuse certificates below this chain"}},
		{"an extension that nobody knows", func(f *foreign) {
			f.templates[2].ExtraExtensions = withExtension([]int{1, 2, 3}, true, 5, 0)
		}, []string{"certificate 3 (CN=root,O=Example): has critical extensions that Mayfly doesn't know"}},
		{"expired", func(f *foreign) { f.need.Now = noon.Add(2 * Day) }, []string{"certificate 1 (CN=issuing,O=Example): expired", "certificate 2", "certificate 3"}},
		{"long serial", func(f *foreign) { f.templates[1].SerialNumber = new(big.Int).Lsh(big.NewInt(1), 159) }, []string{"remark: certificate 2 (CN=policy,O=Example): its serial number"}},
		{"basic constraints not critical", func(f *foreign) {
			f.templates[1].ExtraExtensions = withExtension(oidBasicConstraints, false, 0x30, 3, 1, 1, 0xff)
		}, []string{"remark: its basic constraints aren't critical"}},
		{"key usage not critical", func(f *foreign) { f.templates[2].ExtraExtensions = withExtension(chain.OIDKeyUsage, false, 3, 2, 1, 6) }, []string{"remark: certificate 3 (CN=root,O=Example): its key usage isn't critical"}},
		{"no cRLSign", func(f *foreign) { f.templates[0].KeyUsage = x509.KeyUsageCertSign }, []string{"remark: lacks the key usage cRLSign"}},
		{"no keyCertSign", func(f *foreign) { f.templates[1].KeyUsage = x509.KeyUsageCRLSign }, []string{"lacks the key usage keyCertSign"}},
		{"keyEncipherment", func(f *foreign) { f.templates[0].KeyUsage |= x509.KeyUsageKeyEncipherment }, []string{"remark: has key usages beyond"}},
		{"no key id", func(f *foreign) { f.templates[2].ExtraExtensions = withExtension([]int{2, 5, 29, 14}, false, 4, 0) }, []string{"remark: certificate 3 (CN=root,O=Example): has no subject key identifier"}},
		{"another authority's key id", func(f *foreign) {
			f.templates[0].ExtraExtensions = withExtension([]int{2, 5, 29, 35}, false, 0x30, 3, 0x80, 1, 7)
		}, []string{"names another issuer key", "remark: has no authority key identifier, or another"}},
		{"serverAuth too", func(f *foreign) {
			f.templates[1].ExtKeyUsage = append(f.templates[1].ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}, []string{"remark: its extended key usages allow more than code signing"}},
		{"any usage", func(f *foreign) { f.templates[1].ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, []string{"remark: its extended key usages allow more"}},
		{"the policy CA for servers", func(f *foreign) { f.templates[1].ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, []string{"exclude code signing", "remark: allow more"}},
		{"begins before the issuer", func(f *foreign) { f.templates[0].NotBefore = noon.Add(-2 * Day) }, []string{"remark: its validity isn't within its issuer's"}},
		{"outlives the issuer", func(f *foreign) { f.templates[1].NotAfter = noon.Add(2 * Day) }, []string{"remark: certificate 2 (CN=policy,O=Example): its validity"}},
		{"no organization", func(f *foreign) {
			for _, c := range f.templates {
				c.Subject.Organization = nil
			}
		}, []string{"remark: certificate 1 (CN=issuing): has no Organization", "remark: certificate 2", "remark: certificate 3"}},
		{"another organization", func(f *foreign) { f.templates[0].Subject.Organization = []string{"Other"} }, []string{"differs from the root's"}},
		{"long name", func(f *foreign) { f.templates[0].Subject.CommonName = strings.Repeat("ü", 65) }, []string{"remark: has a name longer than 64 characters"}},
		{"the issuer's name", func(f *foreign) { f.templates[0].Subject.CommonName = "policy" }, []string{"remark: has no authority key identifier", "remark: certificate 1 (CN=policy,O=Example): has the same name"}},
		{"the root's key", func(f *foreign) { f.keys[0] = f.keys[2] }, []string{"remark: has the same key as another"}},
		{"SHA-512 with P-256", func(f *foreign) { f.templates[0].SignatureAlgorithm = x509.ECDSAWithSHA512 }, []string{"remark: its signature's hash isn't the one that goes with"}},
		{"issues leaves without a path length", func(f *foreign) { f.templates[0].MaxPathLenZero, f.templates[0].MaxPathLen = false, -1 }, []string{"remark: could certify further CAs"}},
		{"path length of the root", func(f *foreign) { f.templates[2].MaxPathLen = 1 }, []string{"certificate 3 (CN=root,O=Example): its path length 1 forbids the 2 CA certificates below it"}},
		{"no room below", func(f *foreign) { f.need.Below = 1 }, []string{
			"certificate 1 (CN=issuing,O=Example): its path length 0 forbids the 1", "certificate 2 (CN=policy,O=Example): its path length 1 forbids the 2", "certificate 3 (CN=root,O=Example): its path length 2 forbids the 3",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newForeign(t)
			tt.wrong(f)
			got := Check(f.chain(t), f.need)
			if len(got) != len(tt.want) {
				t.Fatalf("%d findings, want %q:\n%+v", len(got), tt.want, got)
			}
			for i := range got {
				want, remark := strings.CutPrefix(tt.want[i], "remark: ")
				if !strings.Contains(got[i].Text, want) || got[i].Remark != remark {
					t.Errorf("found %+v; want %q", got[i], tt.want[i])
				}
			}
		})
	}
}

// TestPathLengthLeavesRoomForWhatIsNeededBelow: a chain that issues leaves may have no room for one more CA below it.
func TestPathLengthLeavesRoomForWhatIsNeededBelow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pathLength, below int
		want              string
	}{
		{0, 0, ""},
		{1, 1, ""},
		{0, 1, "its path length 0 forbids the 1 CA certificates below it"},
	} {
		key, template := catest.Key(t), catest.Authority("Example", "root", noon.AddDate(-1, 0, 0), noon.AddDate(1, 0, 0))
		template.MaxPathLen, template.MaxPathLenZero = tt.pathLength, tt.pathLength == 0
		root := catest.Sign(t, template, nil, key.Public(), key)
		faults := CheckUse([]*x509.Certificate{root}, chain.Need{Now: noon, Lifetime: time.Hour, Below: tt.below}).Faults()
		if got := strings.Join(faults, "; "); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("path length %d, %d below: %q; want %q", tt.pathLength, tt.below, got, tt.want)
		}
	}
}

// TestCorresponds: a certificate that says anything else than was to be signed
// is found, part by part.
func TestCorresponds(t *testing.T) {
	t.Parallel()
	rootKey := newKey(t)
	_, r := made(t, nil, Profile{Organization: "Example", PathLength: Unlimited}, rootKey, rootKey)
	d, m := made(t, r.Chain, Profile{}, newKey(t), rootKey)
	if err := d.corresponds(m.Chain[0]); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*x509.Certificate){
		"version":                  func(c *x509.Certificate) { c.Version = 1 },
		"serial number":            func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 159) },
		"subject":                  func(c *x509.Certificate) { c.Subject.CommonName = "other" },
		"validity":                 func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(1e9) },
		"public key":               func(c *x509.Certificate) { c.RawSubjectPublicKeyInfo = r.Chain[0].RawSubjectPublicKeyInfo },
		"subject key identifier":   func(c *x509.Certificate) { c.SubjectKeyId = nil },
		"authority key identifier": func(c *x509.Certificate) { c.AuthorityKeyId = nil },
		"basic constraints":        func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = false, -1 },
		"key usage":                func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDigitalSignature },
		"extended key usage":       func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) },
	} {
		changed := *m.Chain[0]
		changed.ExtKeyUsage = slices.Clone(changed.ExtKeyUsage)
		change(&changed)
		if err := d.corresponds(&changed); err == nil || err.Error() != "its "+want+" differs" {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// FuzzCheck: whatever a chain file holds, it is judged, in words.
func FuzzCheck(f *testing.F) {
	key := newKey(f)
	_, m := made(f, nil, Profile{Organization: "Example", PathLength: Unlimited}, key, key)
	f.Add(chain.PEM(m.Chain))
	strange := newForeign(f)
	strange.templates[0].ExtKeyUsage = nil
	f.Add(chain.PEM(strange.chain(f)))
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := chain.Parse(b)
		if err != nil {
			return
		}
		for _, found := range Check(certs, chain.Need{Now: noon, Lifetime: time.Hour}) {
			if found.Text == "" || found.At < 0 || found.At >= len(certs) {
				t.Errorf("found %+v", found)
			}
		}
	})
}
