package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/identity/proof"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// noon is when it is in these tests, with a fraction of a second to cut off.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 987_654_321, time.UTC)

func clock() time.Time { return noon }

// rig is an Issuer whose signer, log, auditor and clock the test watches and breaks.
type rig struct {
	issuer    *Issuer
	authority *authority.Authority
	signer    *watchedSigner
	log       *testLog
	audit     *recorder
	now       func() time.Time
}

type rigOption func(*Config, *Options)

// newRig makes an Issuer over a chain and a key in memory, with a log of its own
// behind the real submission policy.
func newRig(t testing.TB, algorithm kms.Algorithm, options ...rigOption) *rig {
	t.Helper()
	certs, key := sharedChain(t, algorithm)
	r := &rig{signer: &watchedSigner{Signer: key}, log: newTestLog(t), audit: &recorder{}, now: clock}
	c := DefaultConfig()
	c.Authority = authority.Config{Chain: "chain.pem", Key: "file:key.pem", PrecertificateSigner: authority.SignerOff}
	o := Options{Auditor: r.audit, Now: func() time.Time { return r.now() }}
	for _, option := range options {
		option(&c, &o)
	}
	if o.Authorities == nil {
		o.Authorities = authority.Single(newAuthority(t, certs, r.signer, c.Authority))
	}
	r.authority = o.Authorities.Active
	var err error
	if o.Log == nil && !o.AcceptUnlogged {
		r.log.now = o.Now
		if o.Log, err = ctlog.NewPolicy([]ctlog.Log{r.log}, ctlog.Options{Now: o.Now}); err != nil {
			t.Fatal(err)
		}
	}
	if r.issuer, err = New(c, o); err != nil {
		t.Fatal(err)
	}
	return r
}

func newAuthority(t testing.TB, certs []*x509.Certificate, key kms.Signer, c authority.Config) *authority.Authority {
	t.Helper()
	a, err := authority.New(certs, key, c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// testAuthority is an authority of its own, whose key signs precertificates as well.
func testAuthority(t testing.TB, algorithm kms.Algorithm) *authority.Authority {
	t.Helper()
	certs, key := newChain(t, algorithm, 0)
	return newAuthority(t, certs, key, authority.Config{})
}

// shared holds one chain of each algorithm for the whole run: RSA keys are slow to
// make.
var shared struct {
	sync.Mutex
	chains map[kms.Algorithm][]*x509.Certificate
	keys   map[kms.Algorithm]kms.Signer
}

func sharedChain(t testing.TB, algorithm kms.Algorithm) ([]*x509.Certificate, kms.Signer) {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.chains == nil {
		shared.chains, shared.keys = make(map[kms.Algorithm][]*x509.Certificate), make(map[kms.Algorithm]kms.Signer)
	}
	if shared.chains[algorithm] == nil {
		shared.chains[algorithm], shared.keys[algorithm] = newChain(t, algorithm, 0)
	}
	return shared.chains[algorithm], shared.keys[algorithm]
}

// newChain makes an intermediate with a key of the algorithm, which begins a month
// before noon and lives for so long (0: five years), below a root.
func newChain(t testing.TB, algorithm kms.Algorithm, life time.Duration) ([]*x509.Certificate, kms.Signer) {
	t.Helper()
	key, err := algorithm.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return chainFor(t, key.Public(), cacert.Profile{Lifetime: life}), kms.InMemory(key)
}

// chainFor certifies a key below a root of its own.
func chainFor(t testing.TB, public crypto.PublicKey, p cacert.Profile) []*x509.Certificate {
	t.Helper()
	rootKey, err := kms.ECDSAP384.Generate()
	if err != nil {
		t.Fatal(err)
	}
	root := certify(t, nil, cacert.Profile{Organization: "Example", PathLength: cacert.Unlimited}, rootKey.Public(), rootKey)
	return certify(t, root, p, public, rootKey)
}

func certify(t testing.TB, parent []*x509.Certificate, p cacert.Profile, public crypto.PublicKey, issuer crypto.Signer) []*x509.Certificate {
	t.Helper()
	draft, err := cacert.New(parent, p, noon.AddDate(0, -1, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := draft.For(public); err != nil {
		t.Fatal(err)
	}
	made, err := draft.Sign(cacert.Key{Signer: issuer, Ref: "the issuer's key"})
	if err != nil {
		t.Fatal(err)
	}
	return made.Chain
}

// writeChain writes a chain file.
func writeChain(t testing.TB, certs []*x509.Certificate) setting.Path {
	t.Helper()
	file := filepath.Join(t.TempDir(), "chain.pem")
	if err := os.WriteFile(file, chain.PEM(certs), 0o600); err != nil {
		t.Fatal(err)
	}
	return setting.Path(file)
}

// watchedSigner counts the signatures that are asked of the real key, and lets
// the test answer instead.
type watchedSigner struct {
	kms.Signer
	calls  atomic.Int64
	answer func(ctx context.Context, call int64, sign func() ([]byte, error)) ([]byte, error)
}

func (w *watchedSigner) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	call := w.calls.Add(1)
	sign := func() ([]byte, error) { return w.Signer.Sign(ctx, digest, opts) }
	if w.answer != nil {
		return w.answer(ctx, call, sign)
	}
	return sign()
}

// testLog signs real SCTs without keeping a tree, and lets the test break them.
type testLog struct {
	key   *ecdsa.PrivateKey
	about ctlog.Description
	wrong func(ctx context.Context, s *ctlog.SCT) error
	take  func(c ctlog.Chain) error // nil: everything
	now   func() time.Time          // nil: noon

	mu     sync.Mutex
	chains []ctlog.Chain
}

func newTestLog(t testing.TB) *testLog {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return &testLog{key: key, about: ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: "http://log.test", Start: noon.AddDate(-1, 0, 0)}}
}

func (l *testLog) Description() ctlog.Description { return l.about }
func (l *testLog) Ready(context.Context) error    { return nil }

func (l *testLog) Submit(ctx context.Context, c ctlog.Chain) (ctlog.SCT, error) {
	if l.take != nil {
		if err := l.take(c); err != nil {
			return ctlog.SCT{}, err
		}
	}
	l.mu.Lock()
	l.chains = append(l.chains, c)
	index := uint64(len(l.chains) - 1)
	l.mu.Unlock()
	extensions, err := ctlog.LeafIndexExtension(index)
	if err != nil {
		return ctlog.SCT{}, err
	}
	now := noon
	if l.now != nil {
		now = l.now()
	}
	s := ctlog.SCT{LogID: l.about.ID, Timestamp: uint64(now.UnixMilli()), Extensions: extensions}
	signed, err := c.SignedBytes(s.Timestamp, s.Extensions)
	if err != nil {
		return ctlog.SCT{}, err
	}
	digest := sha256.Sum256(signed)
	if s.Signature, err = ecdsa.SignASN1(rand.Reader, l.key, digest[:]); err != nil {
		return ctlog.SCT{}, err
	}
	if l.wrong != nil {
		err = l.wrong(ctx, &s)
	}
	return s, err
}

func (l *testLog) entries() []ctlog.Chain {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]ctlog.Chain(nil), l.chains...)
}

// recorder is an audit trail in memory that can be told to fail.
type recorder struct {
	fail func(e audit.Event) error

	mu     sync.Mutex
	events []audit.Event
}

func (r *recorder) Record(_ context.Context, e audit.Event) error {
	if r.fail != nil {
		if err := r.fail(e); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	return nil
}

func (r *recorder) types() []audit.Type {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []audit.Type
	for _, e := range r.events {
		all = append(all, e.Type)
	}
	return all
}

// alice is a principal that a real verifier made, with a key she has proven.
func alice(t testing.TB) (identity.Principal, proof.Key) {
	t.Helper()
	who := identitytest.Principal(t, nil)
	return who, proven(t, who, kms.ECDSAP256)
}

// proven makes a key of the algorithm (or "Ed25519") and proves that who has it.
func proven(t testing.TB, who identity.Principal, algorithm kms.Algorithm) proof.Key {
	t.Helper()
	policy, err := proof.NewPolicy()
	if err != nil {
		t.Fatal(err)
	}
	key, opts := clientKey(t, algorithm)
	challenge := []byte(who.Challenges()[0])
	if opts != crypto.Hash(0) {
		h := opts.New()
		h.Write(challenge)
		challenge = h.Sum(nil)
	}
	sig, err := key.Sign(rand.Reader, challenge, opts)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	k, err := policy.Signature(spki, sig, who)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func clientKey(t testing.TB, algorithm kms.Algorithm) (key crypto.Signer, hash crypto.Hash) {
	t.Helper()
	var err error
	switch algorithm {
	case kms.ECDSAP256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		hash = crypto.SHA256
	case kms.ECDSAP384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		hash = crypto.SHA384
	case kms.ECDSAP521:
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
		hash = crypto.SHA512
	case kms.RSA2048:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
		hash = crypto.SHA256
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		t.Fatalf("no client key of %q", algorithm)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key, hash
}

func mustSPKI(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return spki
}
