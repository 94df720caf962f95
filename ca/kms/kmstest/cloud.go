// Package kmstest is a stand-in for each vendor's service, with real keys and with
// faults on demand. The suites of kms.Signer and kms.Sealer, which a backend passes
// or does not merge, are in the tests of package kms.
package kmstest

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// Fault is what a stand-in does with a request in place of answering it. The
// zero value answers.
type Fault struct {
	Hang    bool
	Slow    time.Duration    // wait before the answer
	Drop    bool             // close the connection
	Answer  http.HandlerFunc // something else answers
	Status  int              // refuse, with this HTTP status
	Code    string           // and the vendor's own error code or words
	Text    string           // and text, of a vendor that has both
	Spoil   func(answer any) // change what Google answers to the use of a key
	Other   bool             // sign with another key
	Corrupt bool             // break the signature
}

func (f Fault) Error() string { return f.Code }

// Version is one version of a key in a stand-in.
type Version struct {
	Key      crypto.Signer // nil for a key that seals
	Disabled bool
	Pending  bool // being made, until it is looked at
}

// Cloud is what all stand-ins have in common: real keys and signatures, faults
// on demand, and a count of what was asked.
type Cloud struct {
	URL string // with the address that it listens on

	t        testing.TB
	protocol protocol
	config   *tls.Config // nil: without TLS
	server   *http.Server
	listener net.Listener
	silence  atomic.Pointer[atomic.Bool] // of the connections that are made from now on

	mu      sync.Mutex
	keys    map[string][]*Version // by name; version 1 first
	aliases map[string]string     // to names of keys
	token   string                // that is taken, of a vendor with one for all requests
	fault   func(operation string, call int) Fault
	calls   map[string]int
}

// protocol is how one vendor's service is spoken to.
type protocol interface {
	// operation names what a request asks for.
	operation(r *http.Request) string
	// refuse answers with f's status, code and text.
	refuse(w http.ResponseWriter, f Fault)
	// answer does what is asked. It gives what to encode in JSON, a text, or a
	// handler that answers; an error that is a Fault is refused.
	answer(q request) (any, error)
}

// request is what is asked of a stand-in.
type request struct {
	*http.Request

	operation string
	body      []byte
	fault     Fault
}

func newCloud(t testing.TB) *Cloud {
	return &Cloud{t: t, keys: make(map[string][]*Version), aliases: make(map[string]string), calls: make(map[string]int)}
}

// start serves p on a free port of the loopback interface until the test ends,
// over TLS with a configuration.
func (c *Cloud) start(p protocol, config *tls.Config) {
	c.t.Helper()
	c.protocol, c.config = p, config
	c.silence.Store(new(atomic.Bool))
	c.listen("127.0.0.1:0")
	c.t.Cleanup(c.Down)
	c.URL = "http://" + c.listener.Addr().String()
	if config != nil {
		c.URL = "https://" + c.listener.Addr().String()
	}
}

func (c *Cloud) listen(address string) {
	c.t.Helper()
	var err error
	for began := time.Now(); time.Since(began) < 5*time.Second; { // the port may be in use for a moment
		if c.listener, err = net.Listen("tcp", address); err == nil { //nolint:noctx // on this machine
			break
		}
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.server = &http.Server{
		Handler: http.HandlerFunc(c.serve), TLSConfig: c.config.Clone(),
		ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), // of handshakes that a test breaks off
	}
	go func(s *http.Server, l net.Listener) {
		if c.config != nil {
			_ = s.ServeTLS(l, "", "") // until it is closed
			return
		}
		_ = s.Serve(l)
	}(c.server, listener{c.listener, c})
}

// Down closes every connection and refuses new ones, until Up.
func (c *Cloud) Down() {
	c.t.Helper()
	_ = c.listener.Close() // at once: the server may not have begun
	if err := c.server.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		c.t.Error(err)
	}
}

// Up listens again, where it did before.
func (c *Cloud) Up() { c.listen(c.listener.Addr().String()) }

// listener hands out connections that a test may break.
type listener struct {
	net.Listener

	cloud *Cloud
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return conn{c, l.cloud.silence.Load()}, err
}

// conn is one of them, through which nothing comes once it is silent.
type conn struct {
	net.Conn

	silent *atomic.Bool
}

func (c conn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.silent.Load() {
			return n, err
		}
	}
}

func (c conn) Write(b []byte) (int, error) {
	if c.silent.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Freeze leaves every connection open, and nothing comes through any more, as
// when a firewall has forgotten them. New ones work.
func (c *Cloud) Freeze() { c.silence.Swap(new(atomic.Bool)).Store(true) }

// serve counts a request and does its fault, or what it asks for.
func (c *Cloud) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body) // all of it, or the server doesn't see its client go
	if err != nil {
		return // the client went away
	}
	r.Body = io.NopCloser(bytes.NewReader(body)) // for who reads a form
	operation := c.protocol.operation(r)
	f := c.begin(operation)
	switch {
	case f.Hang:
		_ = wait.For(r.Context(), time.Hour) // until the client goes away
	case f.Drop:
		panic(http.ErrAbortHandler) // net/http's way to close a connection, HTTP/2's too
	case f.Slow > 0 && wait.For(r.Context(), f.Slow) != nil: // the client went away first
	case f.Answer != nil:
		f.Answer(w, r)
	case f.Status != 0:
		c.protocol.refuse(w, f)
	default:
		out, err := c.protocol.answer(request{r, operation, body, f})
		c.reply(w, r, out, err)
	}
}

// reply writes an answer.
func (c *Cloud) reply(w http.ResponseWriter, r *http.Request, out any, err error) {
	if refused := (Fault{}); errors.As(err, &refused) {
		c.protocol.refuse(w, refused)
		return
	}
	if err != nil {
		c.t.Error(err)
	}
	w.Header().Set("Content-Type", "application/json")
	switch out := out.(type) {
	case http.HandlerFunc:
		out(w, r)
	case string:
		_, _ = io.WriteString(w, out) // the client may have gone
	default:
		_ = json.NewEncoder(w).Encode(out) // the client may have gone
	}
}

// begin counts an operation and decides on its fault.
func (c *Cloud) begin(operation string) Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[operation]++
	c.calls[""]++
	if c.fault == nil {
		return Fault{}
	}
	return c.fault(operation, c.calls[operation])
}

// Break sets what goes wrong from now on; nil for nothing.
func (c *Cloud) Break(f func(operation string, call int) Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

// Always breaks the operations, every time; all of them if none is named.
func (c *Cloud) Always(f Fault, operations ...string) {
	c.Break(func(asked string, _ int) Fault {
		if len(operations) == 0 || slices.Contains(operations, asked) {
			return f
		}
		return Fault{}
	})
}

// Mend ends what Break began.
func (c *Cloud) Mend() { c.Break(nil) }

// Count is how often an operation was asked for, or anything at all for "".
func (c *Cloud) Count(operation string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[operation]
}

// Add makes a new version of a key, and gives its number.
func (c *Cloud) Add(name string, key crypto.Signer) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[name] = append(c.keys[name], &Version{Key: key})
	return len(c.keys[name])
}

// Remove takes a key away, and gives what puts it back.
func (c *Cloud) Remove(name string) (restore func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.keys[name]
	delete(c.keys, name)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.keys[name] = kept
	}
}

// Change does something to a version while nobody looks at it.
func (c *Cloud) Change(name string, version int, f func(*Version)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c.keys[name][version-1])
}

// Alias points an alias at a key.
func (c *Cloud) Alias(alias, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.aliases[alias] = name
}

// named is the key that an alias points at; "" for none.
func (c *Cloud) named(alias string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.aliases[alias]
}

// accepted is the token that is taken.
func (c *Cloud) accepted() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

// SetToken makes another token the one that is taken.
func (c *Cloud) SetToken(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = token
}

// Versions are copies of a key's versions; none when there is no such key.
func (c *Cloud) Versions(name string) []Version {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Version
	for _, v := range c.keys[name] {
		all = append(all, *v)
	}
	return all
}

// at is a copy of a version; false when there is none.
func (c *Cloud) at(name string, version int) (Version, bool) {
	all := c.Versions(name)
	if version < 1 || version > len(all) {
		return Version{}, false
	}
	return all[version-1], true
}

// signature is one as the real service would make it, or as f says.
func (c *Cloud) signature(f Fault, key crypto.Signer, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if f.Other {
		key = Key(c.t, "another key")
	}
	sig, err := key.Sign(rand.Reader, digest, opts)
	if f.Corrupt && err == nil {
		sig[len(sig)-1] ^= 1
	}
	return sig, err
}

// signerOpts are of a scheme whose name ends with the size of its hash: PSS with a
// salt of the hash's length, or PKCS #1 v1.5 and ECDSA.
func signerOpts(pss bool, name string) crypto.SignerOpts {
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[name[len(name)-3:]]
	if pss {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return hash
}

// aead is AES-256-GCM under a key that is computed from a name, as a KMS has it in
// hardware.
func (c *Cloud) aead(name string) (a cipher.AEAD) {
	key := sha256.Sum256([]byte(name))
	block, err := aes.NewCipher(key[:])
	if err == nil {
		a, err = cipher.NewGCMWithRandomNonce(block)
	}
	if err != nil {
		c.t.Error(err)
	}
	return a
}

// seal seals as the key of that name would.
func (c *Cloud) seal(name string, plain, about []byte) []byte {
	return c.aead(name).Seal(nil, nil, plain, about) //nolint:gosec // G407: this AEAD draws its own nonce
}

// unseal is seal's other way.
func (c *Cloud) unseal(name string, sealed, about []byte) ([]byte, error) {
	return c.aead(name).Open(nil, nil, sealed, about)
}

// made are the keys of Key: RSA keys take their time.
var made sync.Map

// Key is a key of an algorithm, the same for every caller. Any other name is that
// of one more key, of ECDSA P-256.
func Key(t testing.TB, a kms.Algorithm) crypto.Signer {
	t.Helper()
	once, _ := made.LoadOrStore(a, sync.OnceValues(func() (crypto.Signer, error) {
		if a.Hash() == 0 {
			return kms.ECDSAP256.Generate()
		}
		return a.Generate()
	}))
	key, err := once.(func() (crypto.Signer, error))()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// algorithmOf is the kind of a key that a test has made.
func algorithmOf(t testing.TB, key crypto.Signer) kms.Algorithm {
	a, err := kms.AlgorithmOf(key.Public())
	if err != nil {
		t.Error(err)
	}
	return a
}

// Secret is what the stand-ins' credentials keep secret: no text may hold it.
const Secret = "do-not-log-me"

// StandIn is one vendor's service in this process, with one key in it that signs
// and two that seal.
type StandIn struct {
	*Cloud

	sealing Sealing

	Ref     string // unpinned: version or id aren't named
	Pinned  string // as Open pins it
	Name    string // of the key, in Cloud
	Options kms.Options
	Host    string // as errors name it

	Get, Sign string // the operations that describe the key and sign, as Count names them
	// Codes are the vendor's refusals by what they say: throttled, denied,
	// disabled, deleted, internal.
	Codes map[string]Fault
}

// Open opens the key, and closes it when the test ends.
func (s *StandIn) Open(t testing.TB) kms.Signer {
	t.Helper()
	signer, err := keystore.Open(t.Context(), s.Ref, s.Options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kms.Close(signer) })
	return signer
}

// Vendors are the stand-ins of every backend that is reached over a network, by
// the backend's name.
var Vendors = map[string]func(t testing.TB, key crypto.Signer) *StandIn{
	"aws": NewAWS, "azure": NewAzure, "gcp": NewGCP, "vault": NewVault,
}

// Sealing is a stand-in, seen by the keys in it that seal.
type Sealing struct {
	*StandIn

	Ref, Other    string // two keys that seal
	Pinned        string // what Ref is pinned to
	Authenticates bool   // what a secret is about
	Denied        string // what to allow, in the error
	Unseal        string // the operation that decrypts, as Count names it
}

// Sealings are the stand-ins that every test of sealing runs with.
var Sealings = map[string]func(t testing.TB) *Sealing{
	"aws": sealing(NewAWS), "azure": sealing(NewAzure), "azure hsm": sealing(newManagedHSM), "gcp": sealing(NewGCP), "vault": sealing(NewVault),
}

func sealing(start func(t testing.TB, key crypto.Signer) *StandIn) func(t testing.TB) *Sealing {
	return func(t testing.TB) *Sealing {
		t.Helper()
		s := start(t, Key(t, kms.ECDSAP256))
		s.sealing.StandIn = s
		return &s.sealing
	}
}

// Environment is a Getenv of these variables alone: name, value, name, value…
func Environment(pairs ...string) func(string) string {
	all := make(map[string]string)
	for i := 0; i+1 < len(pairs); i += 2 {
		all[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return all[name] }
}
