package timestamp

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// made is an authority in files, as a ceremony makes it.
type made struct {
	dir    string
	config Config
	root   string // PEM
}

// begin is when all of it begins.
var begin = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func newAuthority(t testing.TB, algorithm kms.Algorithm) made {
	t.Helper()
	dir := t.TempDir()
	rootKey := generate(t, filepath.Join(dir, "root.key.pem"), kms.ECDSAP384)
	root := certify(t, nil, cacert.Profile{Organization: "Example", PathLength: cacert.Unlimited}, rootKey, rootKey)
	key := generate(t, filepath.Join(dir, "key.pem"), algorithm)
	all := certify(t, root, cacert.Profile{Timestamping: true}, key, rootKey)
	m := made{dir: dir, config: DefaultConfig(), root: filepath.Join(dir, "root.pem")}
	m.config.Chain, m.config.Key = setting.Path(filepath.Join(dir, "chain.pem")), setting.KeyRef("file:"+filepath.Join(dir, "key.pem"))
	write(t, string(m.config.Chain), chain.PEM(all))
	write(t, m.root, chain.PEM(root))
	return m
}

func generate(t testing.TB, path string, a kms.Algorithm) crypto.Signer {
	t.Helper()
	key, err := keystore.GenerateFile(path, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certify(t testing.TB, parent []*x509.Certificate, p cacert.Profile, key, issuer crypto.Signer) []*x509.Certificate {
	t.Helper()
	d, err := cacert.New(parent, p, begin)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.For(key.Public()); err != nil {
		t.Fatal(err)
	}
	c, err := d.Sign(cacert.Key{Signer: issuer, Ref: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return c.Chain
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m made) load(t testing.TB) *Authority {
	t.Helper()
	a, err := Load(t.Context(), m.config, "timestamp", begin.Add(time.Hour), kms.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// clocks are a machine's clock that can be set, and one that can't.
type clocks struct{ wall, running atomic.Int64 }

func newClocks() *clocks {
	c := &clocks{}
	c.wall.Store(begin.Add(time.Hour).UnixNano())
	return c
}

func (c *clocks) now() time.Time       { return time.Unix(0, c.wall.Load()) }
func (c *clocks) run() time.Duration   { return time.Duration(c.running.Load()) }
func (c *clocks) set(by time.Duration) { c.wall.Add(int64(by)) }
func (c *clocks) pass(d time.Duration) { c.wall.Add(int64(d)); c.running.Add(int64(d)) }
func (c *clocks) begins() (now string) { return c.now().UTC().Format("Jan _2 15:04:05 2006 GMT") }

// force is an InForce with an authority, and its clocks and metrics.
func force(t testing.TB, a *Authority, sources ...string) (*InForce, *clocks, *prometheus.Registry) {
	t.Helper()
	c, r := newClocks(), prometheus.NewRegistry()
	f, err := NewInForce(Options{Now: c.now, TimeSources: sources, Logger: slog.New(slog.DiscardHandler), Metrics: r, running: c.run})
	if err != nil {
		t.Fatal(err)
	}
	f.Use(a)
	t.Cleanup(func() { f.Use(nil) })
	return f, c, r
}

func addID(b *cryptobyte.Builder, id []byte) {
	b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(id) })
}

func element(tag asn1.Tag, f cryptobyte.BuilderContinuation) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, f)
	return b.BytesOrPanic()
}

// ask is a TimeStampReq, for a test to bend.
type ask struct {
	version    int64
	hash       []byte // contents of an object identifier
	parameters []byte // in DER
	digest     []byte
	rest       []byte // what follows the imprint, in DER
}

func newAsk() ask {
	sum := sha256.Sum256([]byte("message"))
	return ask{version: 1, hash: digests[0].id, digest: sum[:]}
}

func (a ask) der() []byte {
	return element(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(a.version)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { addID(b, a.hash); b.AddBytes(a.parameters) })
			b.AddASN1OctetString(a.digest)
		})
		b.AddBytes(a.rest)
	})
}

// openssl runs it, and gives what it says.
func openssl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// stubSigner counts signatures, and fails where a test says so.
type stubSigner struct {
	kms.Signer
	signed atomic.Int64
	fail   func(ctx context.Context) error
}

func (s *stubSigner) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.signed.Add(1)
	if s.fail != nil {
		if err := s.fail(ctx); err != nil {
			return nil, err
		}
	}
	return s.Signer.Sign(ctx, digest, opts)
}

// stub is an authority of P-256 whose signatures are counted.
func stub(t testing.TB) *Authority {
	t.Helper()
	a := newAuthority(t, kms.ECDSAP256).load(t)
	a.signer = &stubSigner{Signer: a.signer}
	return a
}
