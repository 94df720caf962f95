package timestamp

import (
	"crypto/x509"
	"net"
	"time"

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
	if len(c.TimeSources) > maxTimeSources {
		f.Add(setting.Join(path, "time_sources"), "has %d servers; at most %d", len(c.TimeSources), maxTimeSources)
	}
	for i, s := range c.TimeSources {
		host, _, err := net.SplitHostPort(s)
		if s == "" || err == nil && host == "" {
			f.Add(setting.Index(setting.Join(path, "time_sources"), i), "%q is not an NTP server such as time.example.com or 10.0.0.1:123", s)
		}
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
