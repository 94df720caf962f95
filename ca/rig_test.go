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
	"math/big"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
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

// rig is an Issuer whose signer, log and auditor the test watches and breaks.
type rig struct {
	issuer    *Issuer
	authority *Authority
	signer    *watchedSigner
	log       *testLog
	audit     *recorder
}

type rigOption func(*Config, *Options)

// newRig makes an Issuer over an authority in files, with a log of its own
// behind the real submission policy.
func newRig(t testing.TB, algorithm kms.Algorithm, options ...rigOption) *rig {
	t.Helper()
	r := &rig{authority: sharedAuthority(t, algorithm), log: newTestLog(t), audit: &recorder{}}
	r.signer = &watchedSigner{Signer: r.authority.signer}
	r.authority.signer = r.signer
	c := DefaultConfig()
	c.Authority = AuthorityConfig{Chain: "chain.pem", Key: "file:key.pem"}
	o := Options{Authorities: One(r.authority), Auditor: r.audit, Now: clock}
	for _, option := range options {
		option(&c, &o)
	}
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

// shared holds one authority of each algorithm for the whole run: RSA keys are
// slow to make.
var shared struct {
	sync.Mutex
	authorities map[kms.Algorithm]*Authority
}

// sharedAuthority is a copy of the shared authority, for the test to watch and break.
func sharedAuthority(t testing.TB, algorithm kms.Algorithm) *Authority {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.authorities == nil {
		shared.authorities = make(map[kms.Algorithm]*Authority)
	}
	if shared.authorities[algorithm] == nil {
		shared.authorities[algorithm] = testAuthority(t, algorithm)
	}
	a := *shared.authorities[algorithm]
	a.lease = newLease(a.signer) // or the first test to replace it would close it for all
	return &a
}

// testAuthority makes a private CA in files and loads it.
func testAuthority(t testing.TB, algorithm kms.Algorithm) *Authority {
	t.Helper()
	made, err := CreateFileAuthority(CreateOptions{
		Dir: filepath.Join(t.TempDir(), "ca"), Organization: "Example", Algorithm: algorithm, Now: noon.AddDate(0, -1, 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	a, err := LoadAuthority(t.Context(), AuthorityConfig{Chain: setting.Path(made.Chain), Key: setting.KeyRef("file:" + made.IssuingKey)}, noon, kms.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return a
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

func newSerialFor(t testing.TB) *big.Int {
	t.Helper()
	serial, err := newSerial(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return serial
}
