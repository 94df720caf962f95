package kmstest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// sealingSecret is what the sealing stand-ins' credentials keep secret: no text may hold it.
const sealingSecret = "do-not-log-me"

// Sealing is one vendor's service in this process, with keys in it that encrypt.
type Sealing struct {
	*sealingCloud

	Ref, Other    string // two keys
	Wrong         string // a key that isn't one to seal with
	Pinned        string // what Ref is pinned to
	Options       kms.Options
	Authenticates bool               // what a secret is about
	Codes         map[string]Trouble // by what went wrong: throttled, denied, disabled, internal
	Denied        string             // what to allow, in the error
	Unseal        string             // the operation that decrypts, as Count names it
}

// Sealings are the stand-ins that every test of sealing runs with.
var Sealings = map[string]func(t testing.TB) *Sealing{
	"aws": NewSealingAWS, "azure": NewSealingAzure, "azure hsm": NewSealingHSM, "gcp": NewSealingGCP, "vault": NewSealingVault,
}

// Trouble is what a stand-in does with a request in place of answering it.
type Trouble struct {
	Drop    bool   // close the connection
	Hang    bool   // no answer at all
	Status  int    // answer with this status and code
	Code    string // the vendor's own error code
	Corrupt bool   // change the answer on its way
}

// sealingCloud is what the stand-ins have in common: trouble on demand, and a
// count of what was asked.
type sealingCloud struct {
	rsa *rsa.PrivateKey // of the vendor whose RSA keys wrap

	mu      sync.Mutex
	trouble func(operation string) Trouble // nil for none
	calls   map[string]int
	done    chan struct{} // closed when the test ends: what hangs goes on
}

func newSealingCloud(t testing.TB, serve func(c *sealingCloud, w http.ResponseWriter, r *http.Request)) (*sealingCloud, *httptest.Server) {
	t.Helper()
	c := &sealingCloud{calls: make(map[string]int), done: make(chan struct{})}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serve(c, w, r) }))
	t.Cleanup(func() {
		close(c.done)
		server.Close()
	})
	return c, server
}

// Break sets what goes wrong from now on; nil for nothing.
func (c *sealingCloud) Break(f func(operation string) Trouble) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trouble = f
}

// Always breaks one operation, every time.
func (c *sealingCloud) Always(operation string, f Trouble) {
	c.Break(func(asked string) Trouble {
		if asked == operation {
			return f
		}
		return Trouble{}
	})
}

// Count is how often an operation was asked for; "" counts all of them.
func (c *sealingCloud) Count(operation string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if operation != "" {
		return c.calls[operation]
	}
	n := 0
	for _, calls := range c.calls {
		n += calls
	}
	return n
}

// begin counts a call; false when there is no answer.
func (c *sealingCloud) begin(r *http.Request, operation string) (Trouble, bool) {
	c.mu.Lock()
	c.calls[operation]++
	var f Trouble
	if c.trouble != nil {
		f = c.trouble(operation)
	}
	c.mu.Unlock()
	switch {
	case f.Hang:
		select {
		case <-r.Context().Done():
		case <-c.done:
		}
		return f, false
	case f.Drop:
		panic(http.ErrAbortHandler) // the way to close a connection, HTTP/2's too
	}
	return f, true
}

// sealingKey is AES-256-GCM under a key that is computed from a name, as a KMS
// has it in hardware.
func sealingKey(name string) cipher.AEAD {
	aead, err := cipher.NewGCMWithRandomNonce(sealingBlock(name))
	if err != nil {
		panic(err)
	}
	return aead
}

func sealingBlock(name string) cipher.Block {
	key := sha256.Sum256([]byte(name))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	return block
}

// seal seals as the key of that name would.
func seal(name string, plain, about []byte) []byte {
	return sealingKey(name).Seal(nil, nil, plain, about) //nolint:gosec // G407: this AEAD draws its own nonce
}

// only is a Getenv of these variables alone.
func only(pairs ...string) func(string) string {
	all := make(map[string]string)
	for i := 0; i+1 < len(pairs); i += 2 {
		all[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return all[name] }
}
