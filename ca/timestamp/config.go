package timestamp

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config names the timestamp authority: without chain and key there is none.
type Config struct {
	// Chain is a PEM file with the timestamp authority's certificate first, each
	// followed by the one that signed it, and the self-signed root last. `mayfly ca
	// intermediate --purpose timestamp` makes it. With chain and key, timestamps are
	// given at /api/v1/timestamp, which the documents for clients name.
	Chain setting.Path `yaml:"chain,omitempty"`
	// Key is the private key of the first certificate: `file:PATH`, or a key in a KMS
	// or an HSM as for `ca.authority.key`.
	Key setting.KeyRef `yaml:"key,omitempty"`
	// Passphrase decrypts the key, where it is an encrypted file.
	Passphrase setting.Secret `yaml:"passphrase,omitempty"`
	// Policy is the object identifier of the policy that timestamps are given under;
	// the default is that of Sigstore's own authority. A query for another is refused.
	Policy string `yaml:"policy"`
	// Accuracy is how far a timestamp's time is from the true one at most, in whole
	// seconds from 2s to 1m. One second of it is that timestamps have whole seconds;
	// while the clock is known to be off by more than the rest, none is given.
	Accuracy time.Duration `yaml:"accuracy"`
	// TimeSources are NTP servers (`time.example.com`, `10.0.0.1:123`), eight at most,
	// that the clock is compared with once a minute: the median of their answers counts.
	// They can only stop timestamps, never change their time.
	TimeSources []string `yaml:"time_sources,omitempty"`
	// Access says how a key in a KMS is reached.
	kms.Access `yaml:",inline"`
}

// DefaultConfig names no authority.
func DefaultConfig() Config {
	// The policy is that of github.com/sigstore/timestamp-authority, under Sigstore's arc.
	return Config{Policy: "1.3.6.1.4.1.57264.2", Accuracy: 2 * time.Second}
}

const (
	maxTimeSources = 8
	// ownSecond is what the accuracy gives for genTime being in whole seconds.
	ownSecond = time.Second
	// maxPolicy bounds an object identifier, in bytes of DER: real ones have 10.
	maxPolicy = 32
)

// Enabled reports whether an authority is named.
func (c *Config) Enabled() bool { return c.Chain != "" || c.Key != "" }

// Check adds every fault of c. It reads no file: Load does that.
func (c *Config) Check(path string, f *setting.Faults) {
	switch {
	case c.Chain == "" && c.Key != "":
		f.Add(setting.Join(path, "chain"), "required with key: a PEM file, the timestamp authority's certificate first, root last")
	case c.Chain != "" && c.Key == "":
		f.Add(setting.Join(path, "key"), "required with chain: the private key of its first certificate, file:PATH or a key in a KMS")
	}
	if c.Key != "" {
		keystore.CheckAccess(&c.Access, path, c.Key, f)
	}
	c.Passphrase.Check(setting.Join(path, "passphrase"), f)
	if _, err := c.policy(); err != nil {
		f.Add(setting.Join(path, "policy"), "%q isn't an object identifier such as 1.3.6.1.4.1.57264.2", c.Policy)
	}
	if c.Accuracy < 2*time.Second || c.Accuracy > time.Minute || c.Accuracy%time.Second != 0 {
		f.Add(setting.Join(path, "accuracy"), "%v isn't a number of whole seconds from 2s to 1m", c.Accuracy)
	}
	f.When(len(c.TimeSources) > maxTimeSources, setting.Join(path, "time_sources"), "has %d servers; at most %d", len(c.TimeSources), maxTimeSources)
	for i, s := range c.TimeSources {
		host, _, err := net.SplitHostPort(s)
		f.When(s == "" || err == nil && host == "", setting.Index(setting.Join(path, "time_sources"), i), "%q is not an NTP server such as time.example.com or 10.0.0.1:123", s)
	}
}

// policy is the object identifier's contents in DER.
func (c *Config) policy() ([]byte, error) {
	id, err := x509.ParseOID(c.Policy)
	if err != nil {
		return nil, err
	}
	der, err := id.MarshalBinary()
	if err == nil && len(der) > maxPolicy {
		err = x509.ErrUnsupportedAlgorithm
	}
	return der, err
}

// bound is how far the clock may be off.
func (c *Config) bound() time.Duration { return c.Accuracy - ownSecond }

// Authority is a chain, the key of its first certificate, and what it says under it.
type Authority struct {
	Chain []*x509.Certificate // its certificate first, root last

	config   Config
	template *template

	using  sync.RWMutex // read-held while the key is used
	signer kms.Signer   // nil once closed; guarded by using
}

// soon is how long before a chain's end it is remarked on.
const soon = 90 * cacert.Day

// Load reads what c names, opens the key, and checks that all fits. The error is a
// *setting.FaultError with every fault, each with its fix.
func Load(ctx context.Context, c Config, path string, now time.Time, o kms.Options) (*Authority, error) {
	var f setting.Faults
	certs := cacert.Read(path, c.Chain, func(certs []*x509.Certificate) chain.Findings { return cacert.CheckTimestamping(certs, now) }, nil, &f)
	o.Passphrase, o.Access = c.Passphrase, c.Access
	a := &Authority{config: c, Chain: certs, signer: cacert.OpenKey(ctx, path, c.Key, "timestamp authority", c.Chain, certs, o, &f)}
	if f.Len() == 0 {
		var err error
		if a.template, err = newTemplate(certs, &c); err != nil {
			f.Add(path, "%v", err)
		}
	}
	if err := f.Err(); err != nil {
		kms.Close(a.signer)
		return nil, err
	}
	return a, nil
}

// Reload is Load, but gives before where it is what c names already.
func Reload(ctx context.Context, before *Authority, c Config, path string, now time.Time, o kms.Options) (*Authority, error) {
	if before == nil || !reflect.DeepEqual(before.config, c) {
		return Load(ctx, c, path, now, o)
	}
	if b, err := os.ReadFile(string(c.Chain)); err == nil && string(b) == string(chain.PEM(before.Chain)) {
		return before, nil
	}
	return Load(ctx, c, path, now, o)
}

// Remark says in words that the chain ends soon; "" when it doesn't, or there is none.
func (a *Authority) Remark(now time.Time) string {
	if a == nil || a.end().Sub(now) > soon {
		return ""
	}
	return fmt.Sprintf("%s: no timestamp is given after %s: make the next certificate, docs/timestamps.md", a.config.Chain, chain.Stamp(a.end()))
}

// end is the chain's: its first certificate ends before all others.
func (a *Authority) end() time.Time { return a.Chain[0].NotAfter }

// Close closes the key once nobody uses it any more. A nil authority has none.
func (a *Authority) Close() {
	if a == nil {
		return
	}
	a.using.Lock()
	defer a.using.Unlock()
	kms.Close(a.signer)
	a.signer = nil
}
