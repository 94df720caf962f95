package revoke

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/url"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

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
	m, err := newMetrics(o.Metrics, r.Log)
	if err == nil {
		r.Lists, err = openLists(o.Config, r.Log, o.ListOptions, m)
	}
	if err != nil {
		_ = r.Log.close() // the error says what matters
		return nil, err
	}
	r.feed = &Feed{log: r.Log, metrics: m, waiters: make(chan struct{}, maxWaiters), done: r.done, url: o.URL}
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
