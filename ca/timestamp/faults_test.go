package timestamp

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// A key that fails, or is slow, makes a reply of systemFailure whose text says nothing
// of the key; readiness tells until it works again.
func TestSignerFails(t *testing.T) {
	secret := errors.New("connection to 10.1.2.3 refused")
	for name, c := range map[string]struct {
		fail   func(context.Context) error
		within time.Duration
		want   fault.Reason
	}{
		"down":        {func(context.Context) error { return secret }, time.Minute, fault.SignerUnavailable},
		"it hangs":    {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 50 * time.Millisecond, fault.DeadlineReached},
		"of no class": {func(context.Context) error { return fault.New(fault.ReasonInternal, "x") }, time.Minute, fault.SignerUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			f, _, _ := force(t, stub(t))
			key := f.current.Load().signer.(*stubSigner)
			key.fail = c.fail
			ctx, cancel := context.WithTimeout(t.Context(), c.within)
			defer cancel()
			reply, refused := f.ReplyDER(ctx, newAsk().der())
			if refused == nil || refused.Reason != c.want {
				t.Fatalf("refused as %v, want %s", refused, c.want)
			}
			r := parsed(t, reply)
			if r.Status.FailInfo.At(int(systemFailure)) != 1 || strings.Contains(strings.Join(r.Status.Text, ""), "10.1.2.3") {
				t.Errorf("the reply is %+v", r)
			}
			if err := f.Ready(t.Context()); (err == nil) != (c.want == fault.DeadlineReached) {
				t.Errorf("readiness says %v", err)
			}
			key.fail = nil
			if _, refused := f.ReplyDER(t.Context(), newAsk().der()); refused != nil || f.Ready(t.Context()) != nil {
				t.Errorf("the key works again: %v, %v", refused, f.Ready(t.Context()))
			}
		})
	}
}

// Outside the chain's validity nothing is signed.
func TestChainEnds(t *testing.T) {
	f, c, _ := force(t, stub(t))
	a := f.current.Load()
	for name, at := range map[string]time.Time{"before": begin.Add(-time.Second), "after": a.end().Add(time.Second)} {
		c.wall.Store(at.UnixNano())
		if _, refused := f.ReplyDER(t.Context(), newAsk().der()); refused == nil || refused.Reason != fault.SignerUnavailable {
			t.Errorf("%s: refused as %v", name, refused)
		}
		if f.Ready(t.Context()) == nil {
			t.Errorf("%s: it is ready", name)
		}
	}
	if n := a.signer.(*stubSigner).signed.Load(); n != 0 {
		t.Errorf("%d signatures were made", n)
	}
	if r := a.Remark(a.end().Add(-soon)); !strings.Contains(r, "no timestamp is given after "+chain.Stamp(a.end())) {
		t.Errorf("the remark is %q", r)
	}
	if r := a.Remark(a.end().Add(-soon - time.Second)); r != "" {
		t.Errorf("a remark too early: %q", r)
	}
}

// closing is a key that tells when it is used after it was closed.
type closing struct {
	kms.Signer
	mu     sync.Mutex
	closed bool
	late   bool
}

func (c *closing) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := c.Signer.Sign(ctx, digest, opts)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = c.late || c.closed
	return sig, err
}

func (c *closing) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

// Authorities follow one another under load: no key is used once it is closed, each is
// closed, and a query is refused only in the moment of the change, for another try.
func TestAuthoritiesFollowUnderLoad(t *testing.T) {
	var all []*closing
	next := func() *Authority {
		a := stub(t)
		key := &closing{Signer: a.signer}
		all = append(all, key)
		a.signer = key
		return a
	}
	f, _, _ := force(t, next())
	done := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, refused := f.ReplyDER(t.Context(), newAsk().der()); refused != nil && !errors.Is(refused, errClosed) {
					t.Error(refused)
				}
			}
		})
	}
	for range 5 {
		f.Use(next())
	}
	close(done)
	group.Wait()
	f.Use(nil)
	for i, key := range all {
		if key.late || !key.closed {
			t.Errorf("key %d: used after its close: %v, closed: %v", i, key.late, key.closed)
		}
	}
	if reply, refused := f.ReplyDER(t.Context(), newAsk().der()); refused == nil || parsed(t, reply).Status.Status != 2 || f.PEM() != nil {
		t.Errorf("without an authority: %v", refused)
	}
}

// What is wrong with a chain is said before anything is signed with it, every fault
// with its place and its fix.
func TestLoadFaults(t *testing.T) {
	key := catest.Key(t)
	root := catest.Authority("Example", "root", begin, begin.AddDate(10, 0, 0))
	root = catest.Sign(t, root, root, key.Public(), key)
	leafKey := catest.Key(t)
	leaf := func(change func(*x509.Certificate)) *x509.Certificate {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(7), NotBefore: begin, NotAfter: begin.AddDate(1, 0, 0), Subject: root.Subject,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping},
		}
		c.Subject.CommonName = "leaf"
		change(c)
		der, err := x509.CreateCertificate(rand.Reader, c, root, leafKey.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	good := newAuthority(t, kms.ECDSAP256)
	of := good.load(t).Chain
	for name, c := range map[string]struct {
		file []byte
		want []string
	}{
		"empty":          {nil, []string{"timestamp.chain: "}},
		"the root alone": {chain.PEM(of[1:]), []string{"is alone", "timestamp.key: isn't the key of the first certificate"}},
		"upside down":    {chain.PEM([]*x509.Certificate{of[1], of[0]}), []string{"is a CA's", "isn't a self-signed root"}},
		"another's root": {chain.PEM([]*x509.Certificate{of[0], root}), []string{"isn't signed by the next"}},
		"not critical":   {catest.PEM(leaf(func(*x509.Certificate) {}), root), []string{"extended key usage isn't critical"}},
		"two usages":     {catest.PEM(leaf(func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }), root), []string{"has another one beside it"}},
		"code signing":   {catest.PEM(leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }), root), []string{"lacks the extended key usage timeStamping"}},
		"key agreement":  {catest.PEM(leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyAgreement }), root), []string{"its key usage isn't digitalSignature"}},
		"a CA's":         {catest.PEM(leaf(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), root), []string{"is a CA's"}},
		"outlives":       {catest.PEM(leaf(func(c *x509.Certificate) { c.NotAfter = root.NotAfter.Add(time.Second) }), root), []string{"its validity isn't within its issuers'"}},
		"expired":        {catest.PEM(leaf(func(c *x509.Certificate) { c.NotAfter = begin.Add(time.Minute) }), root), []string{"renew it, or correct this machine's clock"}},
		"not yet valid":  {catest.PEM(leaf(func(c *x509.Certificate) { c.NotBefore = begin.AddDate(0, 1, 0) }), root), []string{"renew it, or correct this machine's clock"}},
		"not a PEM file": {[]byte("hello"), []string{"timestamp.chain: "}},
		"nine megabytes": {make([]byte, 9<<20), []string{"is larger than"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newAuthority(t, kms.ECDSAP256)
			m.config.Key = good.config.Key
			write(t, string(m.config.Chain), c.file)
			_, err := Load(t.Context(), m.config, "timestamp", begin.Add(time.Hour), kms.Options{})
			var faults *setting.FaultError
			if !errors.As(err, &faults) {
				t.Fatalf("the error is %v", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the faults lack %q:\n%v", want, err)
				}
			}
		})
	}
}

// Every setting that can't be is a fault with its place.
func TestConfigFaults(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"timestamp.chain: required with key":                     func(c *Config) { c.Chain = "" },
		"timestamp.key: required with chain":                     func(c *Config) { c.Key = "" },
		`timestamp.policy: "1.2.x" isn't an object identifier`:   func(c *Config) { c.Policy = "1.2.x" },
		`timestamp.policy: "1.2`:                                 func(c *Config) { c.Policy = "1.2" + strings.Repeat(".99999", 20) },
		"timestamp.accuracy: 1s isn't":                           func(c *Config) { c.Accuracy = time.Second },
		"timestamp.accuracy: 2.5s isn't":                         func(c *Config) { c.Accuracy = 2500 * time.Millisecond },
		"timestamp.accuracy: 1m1s isn't":                         func(c *Config) { c.Accuracy = 61 * time.Second },
		"timestamp.time_sources: has 9 servers":                  func(c *Config) { c.TimeSources = strings.Fields(strings.Repeat("a ", 9)) },
		`timestamp.time_sources[1]: ":123" is not an NTP server`: func(c *Config) { c.TimeSources = []string{"a", ":123"} },
		"timestamp.passphrase: names both":                       func(c *Config) { c.Passphrase = setting.Secret{Env: "A", File: "b"} },
	} {
		c := DefaultConfig()
		c.Chain, c.Key = "chain.pem", "file:key.pem"
		change(&c)
		var f setting.Faults
		c.Check("timestamp", &f)
		if err := f.Err(); err == nil || !strings.Contains(err.Error(), want) || f.Len() != 1 {
			t.Errorf("the faults are %v, want %q", err, want)
		}
	}
	var f setting.Faults
	off := DefaultConfig()
	if off.Check("timestamp", &f); f.Len() > 0 || off.Enabled() {
		t.Errorf("without an authority: %v", f.Err())
	}
}
