//go:build pkcs11 && cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const (
	// maxCalls is how many calls a key has inside its library at once.
	maxCalls = 8
	// hungAfter is how long every one of those calls may have been inside
	// before the library counts as hung, and further requests fail at once.
	hungAfter = 10 * time.Second
)

// key is a private key on a token. Nothing can end a call into a C library:
// a caller whose time is up goes away and the call stays, in one of a fixed
// number of workers, so that a library that hangs costs those and no more.
type key struct {
	uri       *uri
	module    *module
	slot      uint
	pin       setting.Secret
	private   []*pkcs11.Attribute // finds the private key
	public    crypto.PublicKey    // its public half, once it is found
	algorithm kms.Algorithm       // of both
	idle      chan *worker
	workers   [maxCalls]*worker
	known     crypto.PublicKey // the public half, where the token has none; nil if unknown
	closed    sync.Once
}

// worker is one session, opened when it is first needed. Who took it from
// idle owns it.
type worker struct {
	open   bool
	handle pkcs11.SessionHandle
	object pkcs11.ObjectHandle
	always bool         // CKA_ALWAYS_AUTHENTICATE
	since  atomic.Int64 // when the present call began, in Unix nanoseconds; 0 when idle
}

// Open finds the token, logs in and finds the key.
func (u *uri) Open(ctx context.Context, o kms.Options) (kms.Signer, error) {
	if o.Passphrase.IsZero() {
		return nil, fmt.Errorf("key %s: no PIN: set the passphrase (env or file)", u)
	}
	k := newKey(u, o.Passphrase)
	k.known = o.Public
	err := o.Step("token", func() (string, error) { return call(ctx, k, k.find) })
	if err == nil {
		err = o.Step("key", func() (string, error) { return call(ctx, k, k.start) })
	}
	if err != nil {
		_ = k.Close()
		return nil, fmt.Errorf("key %s: %w", u, err)
	}
	return k, nil
}

func newKey(u *uri, pin setting.Secret) *key {
	k := &key{uri: u, pin: pin, idle: make(chan *worker, maxCalls)}
	k.private = append(k.private, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
	if id := u.values[attributeID]; id != "" {
		k.private = append(k.private, pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)))
	}
	if label := u.values[attributeObject]; label != "" {
		k.private = append(k.private, pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
	}
	for i := range k.workers {
		k.workers[i] = &worker{}
		k.idle <- k.workers[i]
	}
	return k
}

// find loads the library and finds the token.
func (k *key) find(*worker) (detail string, err error) {
	if k.module, err = load(k.uri.values[attributeModulePath], k.uri.values[attributeReserved]); err != nil {
		return "", err
	}
	if k.slot, err = k.module.slot(k.uri); err != nil {
		return "", err
	}
	return fmt.Sprintf("slot %d of %s", k.slot, k.module.path), nil
}

// session opens the worker's session and logs in.
func (k *key) session(w *worker, flags uint) error {
	handle, err := k.module.context.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION|flags)
	if err != nil {
		return fmt.Errorf("C_OpenSession: %w", err)
	}
	w.handle, w.open = handle, true
	if err = k.login(handle, pkcs11.CKU_USER); err != nil {
		k.end(w)
	}
	return err
}

// start opens the worker's session and finds the private key in it.
func (k *key) start(w *worker) (detail string, err error) {
	if err := k.session(w, 0); err != nil {
		return "", err
	}
	if err = k.begin(w); err != nil {
		k.end(w)
	}
	return string(k.algorithm), err
}

func (k *key) begin(w *worker) (err error) {
	if w.object, err = k.module.one(w.handle, k.private); err != nil {
		return fmt.Errorf("the private key: %w", err)
	}
	if may := k.module.attribute(w.handle, w.object, pkcs11.CKA_SIGN); len(may) > 0 && may[0] == 0 {
		return errors.New("may not sign (CKA_SIGN is false): use a key made for signing")
	}
	always := k.module.attribute(w.handle, w.object, pkcs11.CKA_ALWAYS_AUTHENTICATE)
	w.always = len(always) > 0 && always[0] != 0
	if k.public != nil {
		return nil
	}
	public, err := k.module.public(w.handle, w.object)
	if err != nil && k.known != nil {
		public, err = k.known, nil // the trial signature shows whether it is this key's
	}
	if err != nil {
		return err
	}
	k.algorithm, err = kms.AlgorithmOf(public)
	if err == nil {
		k.public = public
	}
	return err
}

// refusedPINs are the PINs that a token refused, so that none is tried twice: tokens
// lock after a few wrong ones, and every reload opens keys anew. A PIN is kept as a
// hash, together with its token's.
var refusedPINs sync.Map // of [sha256.Size]byte

// login gives the token its PIN, which goes nowhere else. What is left of a token's
// tries is the operator's: the last one is never taken.
func (k *key) login(handle pkcs11.SessionHandle, user uint) error {
	pin, err := k.pin.Read()
	if err != nil {
		return fmt.Errorf("PIN: %w", err)
	}
	token, err := k.module.context.GetTokenInfo(k.slot)
	if err != nil {
		return fmt.Errorf("C_GetTokenInfo: %w", err)
	}
	id := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q", k.module.path, token.Label, token.SerialNumber, pin))
	_, refused := refusedPINs.Load(id)
	switch {
	case refused:
		return fmt.Errorf("C_Login: %w: it did before, and tokens lock after a few tries, so it isn't tried again: correct the PIN", kms.ErrPINRefused)
	case token.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return fmt.Errorf("C_Login: %w: it is locked after too many wrong ones: have its security officer set a new one", kms.ErrPINRefused)
	case token.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return fmt.Errorf("C_Login: %w: one try is left before it locks, which isn't taken: log in once by hand with the right PIN (`pkcs11-tool --module %s --token-label '%s' --login --list-objects`)",
			kms.ErrPINRefused, k.module.path, token.Label)
	}
	err = k.module.context.Login(handle, user, string(pin))
	switch {
	case err == nil || is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN):
		return nil
	case is(err, pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_EXPIRED):
		refusedPINs.Store(id, true)
		return fmt.Errorf("C_Login: %w: %w", kms.ErrPINRefused, err)
	default:
		return fmt.Errorf("C_Login: %w", err)
	}
}

// end closes the worker's session, if it has one.
func (k *key) end(w *worker) {
	if w.open {
		_ = k.module.context.CloseSession(w.handle) // it may be what is broken
		w.open = false
	}
}

// Close ends every worker's session once its call is over: a token has few, and
// each reload may open a key anew. It doesn't wait, since the library may hang.
func (k *key) Close() error {
	k.closed.Do(func() {
		go func() {
			for range k.workers {
				k.end(<-k.idle)
			}
		}()
	})
	return nil
}

func (k *key) Public() crypto.PublicKey { return k.public }

// Sign signs on the token. It tries a second time where the first attempt found
// its session or token gone: nothing was signed then.
func (k *key) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	scheme, err := kms.SchemeOf(k.algorithm, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", k.uri, err)
	}
	mechanism, input := mechanismOf(scheme, digest)
	sig, err := call(ctx, k, func(w *worker) ([]byte, error) { return k.signTwice(w, mechanism, input) })
	if err == nil && scheme.Key.Curve() != nil {
		sig, err = kms.ECDSASignature(sig)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", k.uri, err)
	}
	if err := pubkey.Verify(k.public, opts, digest, sig); err != nil {
		return nil, fmt.Errorf("key %s: the token gave a signature that doesn't verify: is it still the same key? %w", k.uri, err)
	}
	return sig, nil
}

// signTwice signs in the worker's session, and in a new one if that is gone.
func (k *key) signTwice(w *worker, mechanism *pkcs11.Mechanism, input []byte) ([]byte, error) {
	for attempt := 1; ; attempt++ {
		sig, err := k.signOnce(w, mechanism, input)
		if err == nil {
			return sig, nil
		}
		k.end(w) // a session with an operation half done can't be used again
		if attempt == 2 || !is(err, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_KEY_HANDLE_INVALID,
			pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_ERROR) {
			return nil, fmt.Errorf("attempt %d: %w", attempt, err)
		}
	}
}

func (k *key) signOnce(w *worker, mechanism *pkcs11.Mechanism, input []byte) ([]byte, error) {
	if !w.open {
		if _, err := k.start(w); err != nil {
			return nil, err
		}
	}
	if err := k.module.context.SignInit(w.handle, []*pkcs11.Mechanism{mechanism}, w.object); err != nil {
		return nil, fmt.Errorf("C_SignInit: %w", err)
	}
	if w.always { // PKCS #11 v2.40 §4.9: for each signature
		if err := k.login(w.handle, pkcs11.CKU_CONTEXT_SPECIFIC); err != nil {
			return nil, err
		}
	}
	sig, err := k.module.context.Sign(w.handle, input)
	if err != nil {
		return nil, fmt.Errorf("C_Sign: %w", err)
	}
	return sig, nil
}

// call runs f in an idle worker and waits for it as long as ctx lasts. f goes on
// without its caller, and keeps its worker until it returns.
func call[T any](ctx context.Context, k *key, f func(*worker) (T, error)) (result T, err error) {
	if err := ctx.Err(); err != nil {
		return result, fmt.Errorf("not begun: %w", err)
	}
	began := time.Now()
	var w *worker
	select {
	case w = <-k.idle:
	default:
		if busy := k.youngest(began); busy > hungAfter {
			return result, fmt.Errorf("the library hangs: all %d calls have been inside it for more than %v; restart the service when the token answers again", maxCalls, busy.Round(time.Second))
		}
		select {
		case w = <-k.idle:
		case <-ctx.Done():
			return result, fmt.Errorf("all %d calls into the library are busy (waited %v): %w", maxCalls, time.Since(began).Round(time.Millisecond), ctx.Err())
		}
	}
	done := make(chan func() (T, error), 1)
	w.since.Store(began.UnixNano())
	go func() {
		result, err := f(w)
		w.since.Store(0)
		k.idle <- w
		done <- func() (T, error) { return result, err }
	}()
	select {
	case outcome := <-done:
		return outcome()
	case <-ctx.Done():
		return result, fmt.Errorf("the library hasn't answered after %v: %w", time.Since(began).Round(time.Millisecond), ctx.Err())
	}
}

// youngest is how long the latest of the calls under way has run.
func (k *key) youngest(now time.Time) time.Duration {
	latest := int64(0)
	for _, w := range k.workers {
		latest = max(latest, w.since.Load())
	}
	return now.Sub(time.Unix(0, latest))
}

// mechanismOf is the mechanism for a scheme, and what is given to it: PKCS #11
// v2.40 §2.1.5, §2.1.10 and §2.3.6.
func mechanismOf(s kms.SignatureScheme, digest []byte) (*pkcs11.Mechanism, []byte) {
	hash := hashes[s.Hash]
	switch {
	case s.Key.Curve() != nil:
		return pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil), digest
	case s.PSS:
		return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(hash.hash, hash.mask, uint(len(digest)))), digest
	default:
		return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil), slices.Concat(hash.info, digest)
	}
}

// hashes are the constants of each hash: the DigestInfo before a digest
// (RFC 8017 §9.2, note 1), and the parameters of PSS.
var hashes = map[crypto.Hash]struct {
	info       []byte
	hash, mask uint
}{
	crypto.SHA256: {[]byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}, pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {[]byte{0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30}, pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {[]byte{0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40}, pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

// Generate makes a key pair on the token, which never gives the private
// key out, and returns the URI that names it alone. A key that the URI names
// already is left as it is: the error then wraps ErrKeyExists.
func (u *uri) Generate(ctx context.Context, a kms.Algorithm, o kms.Options) (string, error) {
	switch {
	case u.values[attributeObject] == "":
		return "", fmt.Errorf("key %s: a new key needs a label: add object=LABEL", u)
	case o.Passphrase.IsZero():
		return "", fmt.Errorf("key %s: no PIN: set the passphrase (env or file)", u)
	}
	named := &uri{values: maps.Clone(u.values)}
	if named.values[attributeID] == "" {
		id := make([]byte, 8)
		_, _ = rand.Read(id) // crypto/rand never fails
		named.values[attributeID] = string(id)
	}
	k := newKey(u, o.Passphrase)
	_, err := call(ctx, k, func(w *worker) (string, error) {
		detail, err := k.find(w)
		if err == nil {
			err = k.generate(w, named, a)
		}
		return detail, err
	})
	if err != nil {
		return "", fmt.Errorf("key %s: %w", u, err)
	}
	return named.String(), nil
}

func (k *key) generate(w *worker, named *uri, a kms.Algorithm) error {
	if err := k.session(w, pkcs11.CKF_RW_SESSION); err != nil {
		return err
	}
	defer k.end(w)
	if _, err := k.module.one(w.handle, k.private); !errors.Is(err, errNoObject) {
		return fmt.Errorf("%w: choose another label, or destroy that key first", kms.ErrKeyExists)
	}
	mechanism, kind, err := generation(a)
	if err != nil {
		return err
	}
	both := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(named.values[attributeID])),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, named.values[attributeObject]),
	}
	public := append(slices.Concat(kind, both), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true))
	private := append(both,
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, true))
	if _, _, err := k.module.context.GenerateKeyPair(w.handle, []*pkcs11.Mechanism{mechanism}, public, private); err != nil {
		return fmt.Errorf("C_GenerateKeyPair (%s): %w", a, err)
	}
	return nil
}

// generation is the mechanism that makes keys of an algorithm, and what it wants in
// the public key's template: PKCS #11 v2.40 §2.1.4 and §2.3.5.
func generation(a kms.Algorithm) (*pkcs11.Mechanism, []*pkcs11.Attribute, error) {
	if a.Bits() > 0 {
		return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, a.Bits()),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		}, nil
	}
	i := slices.IndexFunc(pubkey.Curves, func(c pubkey.Curve) bool { return c.Algorithm == string(a) })
	if i < 0 {
		return nil, nil, fmt.Errorf("algorithm %q is unknown", string(a))
	}
	oid, err := asn1.Marshal(pubkey.Curves[i].OID)
	return pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil), []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, oid)}, err
}
