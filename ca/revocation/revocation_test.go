package revocation

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/catest"
)

// signed is when the certificates of these tests begin, and today is a month later.
var (
	signed = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	today  = signed.AddDate(0, 1, 0)
)

// issuer is an authority with its key.
type issuer struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

func newIssuer(t testing.TB, template *x509.Certificate) issuer {
	t.Helper()
	key := catest.Key(t)
	return issuer{catest.Sign(t, template, nil, key.Public(), key), key}
}

func newAuthority(t testing.TB, name string) issuer {
	t.Helper()
	return newIssuer(t, catest.Authority("Example", name, signed.AddDate(-1, 0, 0), signed.AddDate(9, 0, 0)))
}

// leaf is a certificate of ten minutes.
func (i issuer) leaf(t testing.TB, serial int64) *x509.Certificate {
	t.Helper()
	return catest.Sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: signed, NotAfter: signed.Add(10 * time.Minute),
		EmailAddresses: []string{"alice@example.com"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}, i.Certificate, catest.Key(t).Public(), i.key)
}

// keeping is expiredCertsOnCRL.
func keeping(since time.Time) pkix.Extension {
	b, err := asn1.MarshalWithParams(since, "generalized")
	if err != nil {
		panic(err) // a time of these tests
	}
	return pkix.Extension{Id: oidExpiredCertsOnCRL, Value: b}
}

// template is a list that is in order and lists the serial 2.
func template() *x509.RevocationList {
	return &x509.RevocationList{
		Number: big.NewInt(7), ThisUpdate: today.Add(-time.Hour), NextUpdate: today.AddDate(0, 0, 7), ExtraExtensions: []pkix.Extension{keeping(signed.AddDate(-1, 0, 0))},
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(2), RevocationTime: signed, ReasonCode: 1}},
	}
}

func (i issuer) sign(t testing.TB, list *x509.RevocationList) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, list, i.Certificate, i.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// check is Check of a certificate with the serial 1, which isn't listed.
func (i issuer) check(t testing.TB, der []byte, terms Terms) error {
	t.Helper()
	l, err := Parse(der)
	if err != nil {
		return err
	}
	return l.Check(i.leaf(t, 1), i.Certificate, terms)
}

// refused wants a refusal of a kind with certain words.
func refused(t *testing.T, err error, kind Kind, words string) {
	t.Helper()
	if !errors.Is(err, &Refusal{Kind: kind}) || !strings.Contains(err.Error(), words) {
		t.Errorf("%v; want %q for the reason %s", err, words, kind)
	}
}

// TestListIsRefused: a list that may leave something out counts for nothing, and each
// says why.
func TestListIsRefused(t *testing.T) {
	t.Parallel()
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	namesake := newIssuer(t, catest.Authority("Example", "ours", signed, signed.AddDate(9, 0, 0)))
	namesake.SubjectKeyId = ours.SubjectKeyId // says to be ours, with another key
	weak := catest.Authority("Example", "weak", signed, signed.AddDate(9, 0, 0))
	weak.KeyUsage = x509.KeyUsageCertSign
	now := Terms{Now: today}
	with := func(change func(l *x509.RevocationList)) []byte {
		l := template()
		change(l)
		return ours.sign(t, l)
	}
	good := with(func(*x509.RevocationList) {})
	if err := ours.check(t, good, Terms{Now: today, Known: big.NewInt(7)}); err != nil {
		t.Fatalf("a list that is in order: %v", err)
	}
	if err := ours.check(t, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good}), now); err != nil {
		t.Fatalf("the same in PEM: %v", err)
	}
	for name, test := range map[string]struct {
		list  []byte
		terms Terms
		kind  Kind
		words string
	}{
		"stale":                       {good, Terms{Now: today.AddDate(0, 0, 7)}, Stale, "there was to be another by 2027-01-05T12:00:00Z; get the newest"},
		"without an end":              {with(func(l *x509.RevocationList) { l.ThisUpdate, l.NextUpdate = time.Time{}, time.Time{}.Add(1) }), now, Stale, "stale"},
		"from the future":             {with(func(l *x509.RevocationList) { l.ThisUpdate = today.Add(time.Hour) }), now, NotYetValid, "ahead of this machine's clock"},
		"of an older number":          {good, Terms{Now: today, Known: big.NewInt(8)}, Older, "number 7, and number 8 of the same authority was seen"},
		"of another authority":        {other.sign(t, template()), now, OtherIssuer, "get that one's"},
		"signed by another key":       {namesake.sign(t, template()), now, WrongSignature, "hasn't signed the list"},
		"changed after it was signed": {flip(good), now, WrongSignature, "hasn't signed the list"},
		"cut short":                   {good[:len(good)-1], now, Malformed, "the whole of a revocation list"},
		"with more after it":          {append(good[:len(good):len(good)], 0), now, Malformed, "the whole of a revocation list"},
		"empty":                       {nil, now, Malformed, "the whole of a revocation list"},
		"a certificate":               {catest.PEM(ours.Certificate), now, Malformed, "something else in it"},
		"two lists":                   {append(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good}), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good})...), now, Malformed, "one list"},
		"with a critical extension": {with(func(l *x509.RevocationList) {
			l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}), now, Incomplete, "the extension 1.2.3"},
		"a part": {with(func(l *x509.RevocationList) {
			l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: oidIssuingDistribution, Value: []byte{0x30, 0}})
		}), now, Incomplete, "the extension 2.5.29.28"},
		"a difference": {with(func(l *x509.RevocationList) {
			l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: oidDeltaIndicator, Value: []byte{2, 1, 1}})
		}), now, Incomplete, "the extension 2.5.29.27"},
		"with an entry of another issuer": {with(func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}}
		}), now, Incomplete, "critical extension 2.5.29.29"},
		"that drops the expired": {with(func(l *x509.RevocationList) { l.ExtraExtensions = nil }), now, Incomplete, "leaves out certificates that have expired"},
		"that has dropped it":    {with(func(l *x509.RevocationList) { l.ExtraExtensions = []pkix.Extension{keeping(signed.Add(time.Hour))} }), now, Incomplete, "leaves out certificates that have expired"},
		"that keeps since no time": {with(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: oidExpiredCertsOnCRL, Value: []byte{5, 0}}}
		}), now, Malformed, "isn't a time"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, ours.check(t, test.list, test.terms), test.kind, test.words) })
	}
	t.Run("by a key that may not", func(t *testing.T) {
		i := newIssuer(t, weak)
		allowed := *i.Certificate
		allowed.KeyUsage |= x509.KeyUsageCRLSign
		refused(t, i.check(t, issuer{&allowed, i.key}.sign(t, template()), now), WrongSignature, "with the right to sign lists")
	})
	t.Run("larger than is read", func(t *testing.T) {
		refused(t, ours.check(t, make([]byte, MaxBytes+1), now), Malformed, "more than")
	})
}

// flip changes the serial number that is listed, without signing again.
func flip(der []byte) []byte {
	changed := append([]byte(nil), der...)
	changed[strings.Index(string(der), "\x02\x01\x02\x17")+2] = 3
	return changed
}

// TestStaleListWarns: a stale list counts where a warning is taken.
func TestStaleListWarns(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t, "ours")
	var warned *Refusal
	err := ours.check(t, ours.sign(t, template()), Terms{Now: today.AddDate(1, 0, 0), Stale: func(r *Refusal) { warned = r }})
	if err != nil || warned == nil || warned.Kind != Stale {
		t.Errorf("%v, warned of %v", err, warned)
	}
}

// TestRevokedWhateverTheDates: listed is invalid, whatever date the entry has beside the
// signature's, and by a list that is stale or of an older number too.
func TestRevokedWhateverTheDates(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t, "ours")
	for name, at := range map[string]time.Time{"before": signed.Add(-time.Hour), "within": signed.Add(time.Minute), "after": signed.AddDate(0, 0, 20)} {
		for now, terms := range map[string]Terms{
			"fresh": {Now: today}, "stale": {Now: today.AddDate(9, 0, 0)}, "older": {Now: today, Known: big.NewInt(8)}, "at the signature's time": {Now: signed},
		} {
			t.Run(name+", "+now, func(t *testing.T) {
				list := template()
				list.RevokedCertificateEntries[0].RevocationTime = at
				l, err := Parse(ours.sign(t, list))
				if err != nil {
					t.Fatal(err)
				}
				err = l.Check(ours.leaf(t, 2), ours.Certificate, terms)
				refused(t, err, Revoked, "the certificate 2 is revoked (reason code 1)")
				if r := (*Refusal)(nil); !errors.As(err, &r) || r.Entry == nil || !r.Entry.RevocationTime.Equal(at) {
					t.Errorf("the entry is missing: %+v", r)
				}
			})
		}
	}
}

// TestYoungCertificate: a list made before the certificate expired needs to keep nothing.
func TestYoungCertificate(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t, "ours")
	list := template()
	list.ThisUpdate, list.ExtraExtensions = signed.Add(time.Minute), nil
	if err := ours.check(t, ours.sign(t, list), Terms{Now: signed.Add(2 * time.Minute)}); err != nil {
		t.Error(err)
	}
}

// TestSource: each authority has its own list.
func TestSource(t *testing.T) {
	t.Parallel()
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	l, err := Parse(ours.sign(t, template()))
	if err != nil {
		t.Fatal(err)
	}
	from := From(l)
	if got, err := from(fmt.Sprintf("%x", ours.SubjectKeyId)); err != nil || got != l {
		t.Errorf("%v, %v", got, err)
	}
	_, err = from(fmt.Sprintf("%x", other.SubjectKeyId))
	refused(t, err, Missing, fmt.Sprintf("/crl/%x.crl", other.SubjectKeyId))
}

// opensslConfig is what openssl makes a list by.
const opensslConfig = `[ca]
default_ca = ours
[ours]
database = index.txt
crlnumber = number
default_md = sha256
default_crl_days = 30
%s
[exts]
authorityKeyIdentifier = keyid:always
%s`

// TestListsOfOpenSSL: lists that openssl made, whole and otherwise.
func TestListsOfOpenSSL(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t, "ours")
	key, err := x509.MarshalPKCS8PrivateKey(ours.key)
	if err != nil {
		t.Fatal(err)
	}
	const keeps = "2.5.29.60 = ASN1:GENERALIZEDTIME:20250101000000Z"
	now := Terms{Now: today}
	for name, test := range map[string]struct {
		use, exts string
		kind      Kind
	}{
		"whole":               {"crl_extensions = exts", keeps, ""},
		"without expired":     {"crl_extensions = exts", "", Incomplete},
		"for CAs alone":       {"crl_extensions = exts", keeps + "\nissuingDistributionPoint = critical, @idp\n[idp]\nonlyCA = TRUE", Incomplete},
		"without extensions":  {"", keeps, OtherIssuer},
		"a critical surprise": {"crl_extensions = exts", keeps + "\n1.2.3.4 = critical, ASN1:NULL", Incomplete},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range map[string]string{
				"openssl.cnf": fmt.Sprintf(opensslConfig, test.use, test.exts), "number": "0A\n", "index.txt.attr": "",
				"index.txt": "R\t261129121000Z\t261129120000Z,keyCompromise\t02\tunknown\t/CN=x\n",
				"key.pem":   string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), "ca.pem": string(catest.PEM(ours.Certificate)),
			} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), "openssl", "ca", "-config", "openssl.cnf", "-gencrl", "-crl_lastupdate", "20261229110000Z", "-crl_nextupdate", "20270105120000Z", "-keyfile", "key.pem", "-cert", "ca.pem", "-out", "list.pem")
			cmd.Dir = dir
			if said, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, said)
			}
			b, err := os.ReadFile(filepath.Join(dir, "list.pem"))
			if err != nil {
				t.Fatal(err)
			}
			if err := ours.check(t, b, now); test.kind == "" && err != nil || test.kind != "" && !errors.Is(err, &Refusal{Kind: test.kind}) {
				t.Errorf("%v, want %q", err, test.kind)
			}
			if l, err := Parse(b); err == nil && test.kind == "" {
				refused(t, l.Check(ours.leaf(t, 2), ours.Certificate, now), Revoked, "reason code 1")
			}
		})
	}
}

// FuzzParse: no text makes it panic, and none that wasn't signed is taken.
func FuzzParse(f *testing.F) {
	ours := newAuthority(f, "ours")
	leaf := ours.leaf(f, 1)
	good := ours.sign(f, template())
	f.Add(good)
	f.Add(good[:100])
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Parse(b)
		if err != nil {
			return
		}
		if err := l.Check(leaf, ours.Certificate, Terms{Now: today}); err == nil && string(l.crl.Raw) != string(good) {
			t.Errorf("taken: %x", b)
		}
	})
}
