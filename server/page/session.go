package page

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
)

const keySize = 32 // AES-256

// readKey reads the key of the cookies, and makes one where there is none.
func readKey(path string) ([]byte, error) {
	key, err := secretfile.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, keySize)
		_, _ = rand.Read(key) // which never fails
		if err = durable.WriteNew(path, key, 0o600); errors.Is(err, fs.ErrExist) { // another replica was first
			key, err = secretfile.Read(path)
		}
	}
	if err == nil && len(key) != keySize {
		err = fmt.Errorf("%s has %d bytes, not %d random ones: delete it, and one is made", path, len(key), keySize)
	}
	return key, err
}

// cookies are sealed: whoever has one can neither read nor change it, nor use it in
// another's place, after its time, or under other rules.
type cookies struct {
	aead   cipher.AEAD
	secure bool
	now    func() time.Time
}

func newCookies(key []byte, secure bool, now func() time.Time) (*cookies, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &cookies{aead, secure, now}, err
}

// name has browsers take the cookie from this very host alone, where that can be asked for.
func (c *cookies) name(of string) string {
	if c.secure {
		return "__Host-mayfly-" + of
	}
	return "mayfly-" + of
}

// sealed is what a cookie holds.
type sealed[T any] struct {
	Until time.Time `json:"until"`
	Value T         `json:"value"`
}

// context ties a cookie to what it is for, and to the rules that it was made under.
func (c *cookies) context(of, rules string) []byte {
	sum := sha256.Sum256([]byte(rules))
	return append([]byte(of+"\n"), sum[:]...)
}

// put sets a cookie for so long.
func put[T any](c *cookies, w http.ResponseWriter, of, rules string, value T, life time.Duration) error {
	text, err := json.Marshal(sealed[T]{c.now().Add(life), value})
	if err == nil {
		c.set(w, of, base64.RawURLEncoding.EncodeToString(c.aead.Seal(nil, nil, text, c.context(of, rules))), int(life.Seconds()))
	}
	return err
}

// drop removes a cookie.
func (c *cookies) drop(w http.ResponseWriter, of string) { c.set(w, of, "", -1) }

func (c *cookies) set(w http.ResponseWriter, of, value string, age int) {
	http.SetCookie(w, &http.Cookie{ // #nosec G124 -- Secure wherever there is TLS
		Name: c.name(of), Value: value, Path: "/", MaxAge: age, HttpOnly: true, Secure: c.secure, SameSite: http.SameSiteLaxMode,
	})
}

// get reads a cookie that is good now.
func get[T any](c *cookies, r *http.Request, of, rules string) (value T, ok bool) {
	cookie, err := r.Cookie(c.name(of))
	if err != nil {
		return value, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(cookie.Value)
	if err != nil {
		return value, false
	}
	var s sealed[T]
	text, err := c.aead.Open(nil, nil, raw, c.context(of, rules))
	if err != nil || json.Unmarshal(text, &s) != nil || !c.now().Before(s.Until) {
		return value, false
	}
	return s.Value, true
}
