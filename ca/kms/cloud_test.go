package kms_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// fault is what a stand-in does with a request in place of answering it.
type fault struct {
	hang    bool
	slow    time.Duration
	drop    bool   // close the connection
	status  int    // answer with this status and code
	code    string // the vendor's own error code
	other   bool   // sign with another key
	corrupt bool   // break the signature
}

// cloud is what the stand-ins have in common: one key, real signatures, faults
// on demand, and a count of what was asked.
type cloud struct {
	algorithm kms.Algorithm

	mu      sync.Mutex
	key     crypto.Signer
	enabled bool
	fault   func(operation string, call int) fault // nil for none
	calls   map[string]int
	done    chan struct{} // closed when the test ends: what hangs goes on
}

func newCloud(t *testing.T, a kms.Algorithm) *cloud {
	t.Helper()
	return &cloud{algorithm: a, key: testKey(t, a), enabled: true, calls: make(map[string]int), done: make(chan struct{})}
}

// closing ends what hangs, and then the server, when the test ends.
func (c *cloud) closing(t *testing.T, server *httptest.Server) {
	t.Cleanup(func() {
		close(c.done)
		server.Close()
	})
}

// breaks sets what goes wrong from now on.
func (c *cloud) breaks(f func(operation string, call int) fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

// always breaks one operation, every time.
func (c *cloud) always(operation string, f fault) {
	c.breaks(func(asked string, _ int) fault {
		if asked == operation {
			return f
		}
		return fault{}
	})
}

func (c *cloud) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *cloud) count(operation string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[operation]
}

// begin counts a call and does the fault's waiting; false when there is no answer.
func (c *cloud) begin(r *http.Request, operation string) (fault, bool) {
	c.mu.Lock()
	c.calls[operation]++
	var f fault
	if c.fault != nil {
		f = c.fault(operation, c.calls[operation])
	}
	c.mu.Unlock()
	switch {
	case f.hang:
		select {
		case <-r.Context().Done():
		case <-c.done:
		}
		return f, false
	case f.slow > 0:
		select {
		case <-time.After(f.slow):
		case <-r.Context().Done():
		case <-c.done:
		}
	case f.drop:
		panic(http.ErrAbortHandler) // the way to close a connection, HTTP/2's too
	}
	return f, true
}

// sign signs as the real service would, or as f says.
func (c *cloud) sign(f fault, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.mu.Lock()
	key := c.key
	c.mu.Unlock()
	if f.other {
		another, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		key = another
	}
	sig, err := key.Sign(rand.Reader, digest, opts)
	if f.corrupt && err == nil {
		sig[len(sig)-1] ^= 1
	}
	return sig, err
}

// testKeys are made once: RSA keys take their time.
var testKeys sync.Map

func testKey(t *testing.T, a kms.Algorithm) crypto.Signer {
	t.Helper()
	made, _ := testKeys.LoadOrStore(a, sync.OnceValues(func() (crypto.Signer, error) {
		switch a {
		case kms.ECDSAP256:
			return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		case kms.ECDSAP384:
			return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		case kms.ECDSAP521:
			return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
		case kms.RSA3072:
			return rsa.GenerateKey(rand.Reader, 3072)
		case kms.RSA4096:
			return rsa.GenerateKey(rand.Reader, 4096)
		default:
			return rsa.GenerateKey(rand.Reader, 2048)
		}
	}))
	key, err := made.(func() (crypto.Signer, error))()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// lockedLog is a log that a test reads.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// environment is a Getenv of these variables alone.
func environment(pairs ...string) func(string) string {
	all := make(map[string]string)
	for i := 0; i+1 < len(pairs); i += 2 {
		all[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return all[name] }
}

// standIn is one vendor's stand-in, as the common tests use it.
type standIn struct {
	*cloud

	ref     string
	options kms.Options
	host    string // as errors name it
	// the operations' names in calls
	get, signing string
	codes        map[string]fault // by what went wrong
}

// open opens the stand-in's key, and closes it when the test ends.
func (s *standIn) open(t *testing.T) kms.Signer {
	t.Helper()
	signer, err := kms.Open(t.Context(), s.ref, s.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kms.Close(signer) })
	return signer
}

// vendors are the stand-ins that every common test runs with.
var vendors = map[string]func(t *testing.T, a kms.Algorithm) *standIn{"aws": newAWS, "azure": newAzure}

func digestOf(t *testing.T, hash crypto.Hash) []byte {
	t.Helper()
	d := make([]byte, hash.Size())
	if _, err := rand.Read(d); err != nil {
		t.Fatal(err)
	}
	return d
}

// within is a context that ends soon.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
