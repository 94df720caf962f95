package revoke

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/url"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config says whether single certificates can be revoked here, and by whom beside
// access.admins. Without a directory they can't. One instance alone writes it.
type Config struct {
	// Directory holds the statements, which are a Merkle log, and the lists made of them.
	Directory setting.Path `yaml:"directory,omitempty"`
	// MarkFile keeps how many statements there are, outside of directory, so that an
	// older copy of it is noticed: a revocation is final.
	MarkFile setting.Path `yaml:"mark_file,omitempty"`
	// Key signs the checkpoints of the statements: `file:PATH`, or a key in a KMS or an
	// HSM; ECDSA on P-256, and no authority's. Lists are signed by the authorities.
	Key setting.KeyRef `yaml:"key,omitempty"`
	// Passphrase decrypts the key, where it is an encrypted file.
	Passphrase setting.Secret `yaml:"passphrase,omitempty"`
	// SelfService lets whoever shows a token for which a certificate of the same name
	// and issuer would be issued now, or a signature by the certificate's own key,
	// revoke that one certificate.
	SelfService bool `yaml:"self_service,omitempty"`
	// TwoPeople has what one person asks for, beyond single certificates that they
	// name, wait until another of access.admins has approved it.
	TwoPeople bool `yaml:"two_people,omitempty"`
	// Access says how a key in a KMS is reached.
	kms.Access `yaml:",inline"`
}

// Enabled reports whether anything can be revoked.
func (c *Config) Enabled() bool { return c.Directory != "" }

// Check adds every fault of c. It reads no file.
func (c *Config) Check(path string, f *setting.Faults) {
	if !c.Enabled() {
		f.When(c.MarkFile != "" || c.Key != "" || c.SelfService || c.TwoPeople, setting.Join(path, "directory"), "required with the settings beside it: a folder for what is revoked")
		return
	}
	f.When(c.MarkFile == "" || c.MarkFile.Inside(c.Directory), setting.Join(path, "mark_file"), "required: a file outside of directory, where an older copy of that wouldn't take it along")
	if c.Key == "" {
		f.Add(setting.Join(path, "key"), "required: the key that signs checkpoints of the statements, file:PATH or a key in a KMS; `mayfly kms keygen` makes one")
	} else {
		keystore.CheckAccess(&c.Access, path, c.Key, f)
	}
	c.Passphrase.Check(setting.Join(path, "passphrase"), f)
}

// Options are what a Revoker works with.
type Options struct {
	Config Config
	Signer kms.Signer // of checkpoints; the Revoker closes it
	URL    string     // where clients reach the service
	// Issuers are the issuing certificates of all authorities that clients are told of.
	Issuers func() []*x509.Certificate
	Index   Index // nil: nothing can be searched for
	ListOptions
	Metrics prometheus.Registerer // nil leaves them unregistered
}

// Revoker is what a service revokes with. It is safe for concurrent use.
type Revoker struct {
	Log   *Log
	Lists *Lists
	feed  *Feed
	o     Options
	done  chan struct{}

	mu      sync.Mutex
	pending map[string]pending // guarded by mu
}

// Open opens what c names. It starts nothing: Run keeps the lists.
func Open(ctx context.Context, o Options) (*Revoker, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, err
	}
	r := &Revoker{o: o, done: make(chan struct{}), pending: map[string]pending{}}
	if r.Log, err = openLog(ctx, o.Config, u.Host+u.Path+"/revocations", o.Signer, o.Now, o.Logger); err != nil {
		return nil, err
	}
	r.feed = &Feed{log: r.Log, waiters: make(chan struct{}, maxWaiters), done: r.done, url: o.URL}
	if r.Lists, err = openLists(o.Config, r.Log, o.ListOptions); err == nil {
		err = metric.Register(o.Metrics, r.Lists.signed,
			metric.Read("mayfly_revocation_lists_behind", "Authorities whose list lacks statements, or should have been signed again.", nil, func() float64 { return float64(r.Lists.behind.Load()) }),
			metric.Read("mayfly_revocation_waiting", "Readers of the feed that wait for the next statement.", nil, func() float64 { return float64(len(r.feed.waiters)) }),
			metric.Read("mayfly_revocation_statements", "Certificates that were revoked, for good.", nil, func() float64 { return float64(r.Log.Size()) }))
	}
	if err != nil {
		_ = r.Log.close() // the error says what matters
		return nil, err
	}
	return r, nil
}

// Run keeps the lists until ctx ends.
func (r *Revoker) Run(ctx context.Context) error {
	defer close(r.done)
	return r.Lists.Run(ctx)
}

// Mounts are what everybody may read, by path prefix.
func (r *Revoker) Mounts() map[string]http.Handler {
	return map[string]http.Handler{ListPath: r.Lists, FeedPath: r.feed}
}

// Close gives up the files and the keys.
func (r *Revoker) Close() error {
	r.Lists.close()
	kms.Close(r.o.Signer)
	return r.Log.close()
}
