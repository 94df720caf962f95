package revoke

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

var begin = time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC)

// rig is a Revoker on a real disk, with authorities whose keys are at hand, by a clock
// that the test sets.
type rig struct {
	*Revoker
	o   Options
	now time.Time
}

func newRig(t testing.TB, change func(*Options), issuers ...Signing) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{now: begin}
	r.o = Options{
		Config: Config{Directory: setting.Path(filepath.Join(dir, "revocations")), MarkFile: setting.Path(filepath.Join(dir, "mark"))},
		Signer: kms.InMemory(catest.Key(t)), URL: "https://ca.example.com",
		Issuers: func() (all []*x509.Certificate) {
			for _, i := range issuers {
				all = append(all, i.Certificate)
			}
			return all
		},
		ListOptions: ListOptions{Now: func() time.Time { return r.now }, Logger: slog.New(slog.DiscardHandler),
			Open: func(context.Context, string) (Signing, func(), error) {
				return Signing{}, nil, errors.New("the key is gone")
			}},
	}
	if change != nil {
		change(&r.o)
	}
	r.open(t)
	return r
}

func (r *rig) open(t testing.TB) {
	t.Helper()
	var err error
	if r.Revoker, err = Open(t.Context(), r.o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
}

// reopen is a restart.
func (r *rig) reopen(t testing.TB) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r.open(t)
}

func key(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var k crypto.Signer
	var err error
	switch kind {
	case "P-256":
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issuing makes a root and an issuing certificate of a key, which is valid from begin on.
func issuing(t testing.TB, k crypto.Signer) (Signing, *x509.Certificate) {
	t.Helper()
	rootKey := catest.Key(t)
	end := begin.Add(20 * 365 * 24 * time.Hour)
	root := catest.Authority("Example", "Root", begin.Add(-time.Hour), end)
	root = catest.Sign(t, root, nil, rootKey.Public(), rootKey)
	template := catest.Authority("Example", "Issuing "+rand.Text()[:6], begin.Add(-time.Hour), end)
	cert := catest.Sign(t, template, root, k.Public(), rootKey)
	return Signing{Certificate: cert, Key: kms.InMemory(k)}, root
}

// leaf is a certificate of ten minutes.
func leaf(t testing.TB, by Signing, k crypto.Signer, change func(*x509.Certificate), at time.Time) *x509.Certificate {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: n, NotBefore: at, NotAfter: at.Add(10 * time.Minute), EmailAddresses: []string{"alice@example.com"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte("https://issuer.example.com")}},
	}
	if change != nil {
		change(template)
	}
	return catest.Sign(t, template, by.Certificate, k.Public(), cacert.Using(t.Context(), by.Key))
}

func draft(authority string, n int64) Statement {
	return Statement{Authority: authority, Serial: big.NewInt(n).Text(16), NotBefore: begin, Reason: "keyCompromise", By: Asker{Right: rightAdmin, Rule: "r"}}
}

var oneID = hex.EncodeToString([]byte("an authority's key identifier"))
