package authority

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"slices"

	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// lineage is a root, an intermediate and what a test changes about them before
// they are signed.
type lineage struct {
	root, intermediate *x509.Certificate
	rootKey, key       crypto.Signer
	order              func(intermediate, root string) string // of the chain file
	keyFile            crypto.Signer                          // what the key file holds; nil: key
}

func newLineage(t testing.TB) *lineage {
	t.Helper()
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: newSerial(t), Subject: pkix.Name{CommonName: name, Organization: []string{"Example"}},
			NotBefore: noon.AddDate(-1, 0, 0), NotAfter: noon.AddDate(1, 0, 0),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	l := &lineage{
		root: ca("root"), intermediate: ca("intermediate"),
		rootKey: ecKey(t, elliptic.P384()), key: ecKey(t, elliptic.P256()),
		order: func(intermediate, root string) string { return intermediate + root },
	}
	l.intermediate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	return l
}

// noon is when it is in these tests, with a fraction of a second to cut off.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 987_654_321, time.UTC)

func clock() time.Time { return noon }

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSerial(t testing.TB) *big.Int {
	t.Helper()
	serial, err := cacert.NewSerial(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return serial
}

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// write signs the lineage and writes chain and key.
func (l *lineage) write(t testing.TB) Config {
	t.Helper()
	sign := func(c, parent *x509.Certificate, public crypto.PublicKey) string {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, public, l.rootKey)
		if err != nil {
			t.Fatal(err)
		}
		return chain.Encode(der)
	}
	if l.keyFile == nil {
		l.keyFile = l.key
	}
	der, err := x509.MarshalPKCS8PrivateKey(l.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	chain, key := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")
	content := l.order(sign(l.intermediate, l.root, l.key.Public()), sign(l.root, l.root, l.rootKey.Public()))
	if err := errors.Join(
		os.WriteFile(chain, []byte(content), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return Config{Chain: setting.Path(chain), Key: setting.KeyRef("file:" + key)}
}

// TestLoadRefuses: an authority that can't issue is refused at start, with the fix
// in one line.
func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		wrong func(*testing.T, *lineage)
		want  []string // a part of each fault, in order; none loads
	}{
		{"good", func(*testing.T, *lineage) {}, nil},
		{"root alone", func(_ *testing.T, l *lineage) {
			l.order = func(_, root string) string { return root }
			l.keyFile = l.rootKey
		}, nil},
		{"RSA 3072", func(t *testing.T, l *lineage) {
			key, err := rsa.GenerateKey(rand.Reader, 3072)
			if err != nil {
				t.Fatal(err)
			}
			l.key = key
		}, nil},
		{"comment lines between blank ones", func(_ *testing.T, l *lineage) {
			l.order = func(i, r string) string { return "\n\n" + i + "\n" + r + "\n" }
		}, nil},
		{"another key", func(t *testing.T, l *lineage) { l.keyFile = ecKey(t, elliptic.P256()) }, []string{"isn't the key of the first certificate"}},
		{"the root's key", func(_ *testing.T, l *lineage) { l.keyFile = l.rootKey }, []string{"name the issuing certificate's key"}},
		{"expired", func(_ *testing.T, l *lineage) { l.intermediate.NotAfter = noon.Add(-time.Minute) }, []string{"expired at 2026-03-01T11:59:00Z: renew it"}},
		{"expires soon", func(_ *testing.T, l *lineage) { l.intermediate.NotAfter = noon.Add(30 * time.Minute) }, []string{"too soon for the certificates it would issue: renew it"}},
		{"root expired", func(_ *testing.T, l *lineage) { l.root.NotAfter = noon.Add(-time.Minute) }, []string{"certificate 2 (CN=root,O=Example): expired"}},
		{"not yet valid", func(_ *testing.T, l *lineage) { l.intermediate.NotBefore = noon.Add(time.Hour) }, []string{"not valid before 2026-03-01T13:00:00Z: wait"}},
		{"no CA", func(_ *testing.T, l *lineage) { l.intermediate.IsCA, l.intermediate.SubjectKeyId = false, []byte{1} }, []string{"reissue it with basicConstraints CA:TRUE"}},
		{"no keyCertSign", func(_ *testing.T, l *lineage) { l.intermediate.KeyUsage = x509.KeyUsageDigitalSignature }, []string{"lacks the key usage keyCertSign"}},
		{"no codeSigning", func(_ *testing.T, l *lineage) { l.intermediate.ExtKeyUsage = nil }, []string{"lacks the extended key usage codeSigning"}},
		{"serverAuth", func(_ *testing.T, l *lineage) {
			l.intermediate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, []string{"lacks the extended key usage codeSigning"}},
		{"root for servers", func(_ *testing.T, l *lineage) {
			l.root.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, []string{"the root (CN=root,O=Example): its extended key usages exclude code signing"}},
		{"lone root for servers", func(_ *testing.T, l *lineage) {
			l.root.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			l.order = func(_, root string) string { return root }
			l.keyFile = l.rootKey
		}, []string{"exclude code signing"}},
		{"path length", func(_ *testing.T, l *lineage) { l.root.MaxPathLenZero = true }, []string{"its path length 0 forbids the 1 CA certificates below it"}},
		{"upside down", func(_ *testing.T, l *lineage) {
			l.order = func(i, r string) string { return r + i }
			l.keyFile = l.rootKey
		}, []string{"upside down: put the issuing certificate first"}},
		{"no root", func(_ *testing.T, l *lineage) { l.order = func(i, _ string) string { return i } }, []string{"isn't a self-signed root: add its issuer (CN=root,O=Example) at the end"}},
		{"a stranger between", func(t *testing.T, l *lineage) {
			other := newLineage(t)
			other.root.Subject.CommonName = "stranger"
			other.order = func(_, root string) string { return root }
			b, err := os.ReadFile(string(other.write(t).Chain))
			if err != nil {
				t.Fatal(err)
			}
			l.order = func(i, r string) string { return i + string(b) + r }
		}, []string{"was issued by CN=root,O=Example, but CN=stranger,O=Example follows it", "certificate 2 (CN=stranger,O=Example) was issued by CN=stranger"}},
		{"another root of the name", func(t *testing.T, l *lineage) {
			b, err := os.ReadFile(string(newLineage(t).write(t).Chain))
			if err != nil {
				t.Fatal(err)
			}
			_, rest := pem.Decode(b)
			l.order = func(i, _ string) string { return i + string(rest) }
		}, []string{"isn't signed by the key of the next"}},
		{"organizations", func(_ *testing.T, l *lineage) { l.intermediate.Subject.Organization = []string{"Other"} }, []string{"the Organization of CN=intermediate,O=Other differs from the root's"}},
		{"policies", func(_ *testing.T, l *lineage) {
			l.intermediate.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 36}, Critical: true, Value: []byte{0x30, 3, 0x80, 1, 0}}}
		}, []string{"clients would refuse certificates below this chain"}},
		{"unknown critical extension", func(_ *testing.T, l *lineage) {
			l.intermediate.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}, []string{"critical extensions that Mayfly doesn't know ([1.2.3])"}},
		{"P-224 root", func(t *testing.T, l *lineage) { l.rootKey = ecKey(t, elliptic.P224()) }, []string{"curve P-224 isn't supported"}},
		{"several at once", func(t *testing.T, l *lineage) {
			l.intermediate.NotAfter = noon.Add(-time.Minute)
			l.intermediate.ExtKeyUsage = nil
			l.root.KeyUsage = x509.KeyUsageCRLSign
			l.keyFile = ecKey(t, elliptic.P256())
		}, []string{"expired", "lacks the extended key usage", "lacks the key usage keyCertSign", "isn't the key of the first"}},
		{"a key in the chain", func(_ *testing.T, l *lineage) {
			l.order = func(i, r string) string {
				return i + "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n" + r
			}
		}, []string{"holds a private key"}},
		{"a request in the chain", func(_ *testing.T, l *lineage) {
			l.order = func(i, _ string) string {
				return i + "-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"
			}
		}, []string{"only certificates belong here"}},
		{"cut off", func(_ *testing.T, l *lineage) { l.order = func(i, r string) string { return i + r[:len(r)-40] } }, []string{"isn't whole PEM at block 2"}},
		{"damaged", func(_ *testing.T, l *lineage) {
			l.order = func(i, _ string) string { return i + "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n" }
		}, []string{"certificate 2 can't be read"}},
		{"empty", func(_ *testing.T, l *lineage) { l.order = func(_, _ string) string { return "\n" } }, []string{"is empty: a certificate"}},
		{"too long", func(t *testing.T, l *lineage) {
			l.order = func(i, r string) string {
				for range 9 {
					i += chain.Encode(catest.Sign(t, l.root, nil, l.rootKey.Public(), l.rootKey).Raw) // ECDSA: no two are the same
				}
				return i + r
			}
		}, []string{"has more than 8 certificates"}},
		{"too large", func(_ *testing.T, l *lineage) {
			l.order = func(_, _ string) string { return strings.Repeat("\n", chain.MaxBytes+1) }
		}, []string{"is larger than 262144 bytes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLineage(t)
			tt.wrong(t, l)
			a, err := Load(t.Context(), l.write(t), LoadOptions{Now: noon})
			wantFaults(t, err, tt.want)
			if (a == nil) != (len(tt.want) > 0) {
				t.Errorf("authority %v with error %v", a, err)
			}
		})
	}
}

// wantFaults holds the faults of err against parts of each, one line each.
func wantFaults(t *testing.T, err error, want []string) {
	t.Helper()
	if len(want) == 0 {
		if err != nil {
			t.Error(err)
		}
		return
	}
	var faults *setting.FaultError
	if !errors.As(err, &faults) {
		t.Fatalf("error %v; want faults %q", err, want)
	}
	if len(faults.Faults) != len(want) {
		t.Fatalf("%d faults; want %q:\n%v", len(faults.Faults), want, err)
	}
	for i, f := range faults.Faults {
		if !strings.Contains(f, want[i]) || strings.Contains(f, "\n") || !strings.HasPrefix(f, "ca.authority.") {
			t.Errorf("fault %q; want one line with %q", f, want[i])
		}
	}
}

// TestLoadTakesRootsAsTheyAre: what `openssl req -x509` makes, today and once, signs,
// and what it lacks is remarked on.
func TestLoadTakesRootsAsTheyAre(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		flags []string
		want  string
	}{
		"today":                 {nil, "the root states no key usage"},
		"SHA-1":                 {[]string{"-sha1"}, "the root signed itself with SHA1-RSA"},
		"PSS":                   {[]string{"-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"}, "the root signed itself with SHA256-RSAPSS"},
		"PSS, with a long salt": {[]string{"-sigopt", "rsa_padding_mode:pss"}, "the root signed itself with an algorithm that Mayfly doesn't know"},
	} {
		dir := t.TempDir()
		key, file := filepath.Join(dir, "key.pem"), filepath.Join(dir, "chain.pem")
		if _, err := keystore.GenerateFile(key, kms.RSA2048, nil); err != nil {
			t.Fatal(err)
		}
		flags := append([]string{"req", "-x509", "-key", key, "-subj", "/O=Example/CN=old", "-days", "3650", "-out", file}, tt.flags...)
		if out, err := exec.Command("openssl", flags...).CombinedOutput(); err != nil {
			t.Fatalf("%s: openssl req: %v\n%s", name, err, out)
		}
		pemBytes, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		certs, err := chain.Parse(pemBytes)
		if err != nil {
			t.Fatal(err)
		}
		var remarks []string
		o := LoadOptions{Now: certs[0].NotBefore, Remark: func(r string) { remarks = append(remarks, r) }}
		if _, err = Load(t.Context(), Config{Chain: setting.Path(file), Key: setting.KeyRef("file:" + key)}, o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.ContainsFunc(remarks, func(r string) bool {
			return strings.HasPrefix(r, "ca.authority.chain: "+file) && strings.Contains(r, tt.want)
		}) {
			t.Errorf("%s: remarks %q", name, remarks)
		}
	}
}

func TestLoadNamesEveryMissingThing(t *testing.T) {
	t.Parallel()
	_, err := Load(t.Context(), Config{}, LoadOptions{Now: noon})
	wantFaults(t, err, []string{"ca.authority.chain: required", "ca.authority.key: required"})
	dir := t.TempDir()
	_, err = Load(t.Context(), Config{Chain: setting.Path(dir + "/chain.pem"), Key: setting.KeyRef("file:" + dir + "/key.pem")}, LoadOptions{Now: noon})
	wantFaults(t, err, []string{"chain.pem: no such file", "key.pem: no such file"})
}

// TestAuthorityKeyID: the extension is what crypto/x509 writes into a certificate
// below the authority.
func TestAuthorityKeyID(t *testing.T) {
	t.Parallel()
	l := newLineage(t)
	a, err := Load(t.Context(), l.write(t), LoadOptions{Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	var e pkix.Extension
	if rest, err := asn1.Unmarshal(a.KeyID, &e); err != nil || len(rest) > 0 || e.Critical {
		t.Fatalf("%x: %v", a.KeyID, err)
	}
	template := &x509.Certificate{SerialNumber: newSerial(t), NotBefore: noon, NotAfter: noon}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, l.key.Public(), l.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(c.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(e.Id) && bytes.Equal(x.Value, e.Value) }) {
		t.Errorf("%x isn't among %v", a.KeyID, c.Extensions)
	}
}
