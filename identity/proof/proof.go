// Package proof turns a public key from outside into a [Key]: parsed strictly,
// strong enough, and shown to be in the requester's possession, either by a
// signature over a claim of a verified token ([Policy.Signature]) or by a
// certificate signing request ([Policy.CSR]).
//
// Both ways read the key with the same parser and the same rules, so that a key
// fit for one is fit for the other. Every refusal is a *fault.Error; none of
// them, and no cause within, holds the key, the proof or a claim's value.
package proof

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"

	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// The limits on what is parsed at all, in bytes. The largest honest inputs are
// an RSA-4096 key (800 bytes of PEM), its signature (512 bytes) and its request
// (under 2 KiB of PEM, more with many ignored extensions).
const (
	MaxKeyBytes   = 8 << 10
	MaxProofBytes = 1 << 10
	MaxCSRBytes   = 16 << 10
)

// Key is a public key that passed a [Policy]: well-formed, of an accepted
// algorithm and strength, and proven to be in the requester's possession. Only
// a Policy makes one; the zero Key proves nothing and is refused everywhere.
type Key struct {
	public    crypto.PublicKey
	spki      []byte
	algorithm string
}

// IsZero reports whether k is the zero Key, which proves nothing.
func (k Key) IsZero() bool { return k.public == nil }

// Public is the key: *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey.
// It is shared, not copied: whoever reads it must not write to it.
func (k Key) Public() crypto.PublicKey { return k.public }

// SPKI is a copy of the key's SubjectPublicKeyInfo in DER, made anew from the
// parsed key (RFC 5480 §2, RFC 3279 §2.3.1, RFC 8410 §4).
func (k Key) SPKI() []byte { return bytes.Clone(k.spki) }

// Algorithm names the key's kind for records and metrics; one of "ECDSA-P256",
// "ECDSA-P384", "ECDSA-P521", "RSA-2048", "RSA-3072", "RSA-4096", "Ed25519",
// or "" for the zero Key.
func (k Key) Algorithm() string { return k.algorithm }

// Signature proves the possession of a key by a signature over the raw bytes of
// any one of who's challenges: ECDSA in ASN.1 DER with the hash of the curve's
// size, RSA PKCS#1 v1.5 with SHA-256, or pure Ed25519. spki is a
// SubjectPublicKeyInfo in PEM or DER.
//
// Errors: KEY_MALFORMED, KEY_UNSUPPORTED, KEY_WEAK, KEY_TOO_LARGE for the key;
// PROOF_MISSING, PROOF_INVALID, PROOF_TOO_LARGE for the signature. A zero who is
// the caller's mistake and stays unclassified.
func (p *Policy) Signature(spki, sig []byte, who identity.Principal) (Key, error) {
	if who.IsZero() {
		return Key{}, errors.New("proof: the principal is zero: authenticate first")
	}
	return p.signature(spki, sig, who.Challenges())
}

// signature is Signature with the challenges taken out of the principal.
func (p *Policy) signature(spki, sig []byte, challenges []string) (Key, error) {
	switch {
	case len(spki) > MaxKeyBytes:
		return Key{}, tooLarge(fault.KeyTooLarge, "the public key", MaxKeyBytes)
	case len(sig) > MaxProofBytes:
		return Key{}, tooLarge(fault.ProofTooLarge, "the proof of possession", MaxProofBytes)
	}
	der, err := decodeKey(spki)
	if err != nil {
		return Key{}, err
	}
	public, err := p.parseKey(der)
	if err != nil {
		return Key{}, err
	}
	if len(sig) == 0 {
		return Key{}, fault.New(fault.ProofMissing,
			"the proof of possession is missing: sign the token's email claim, or sub when it has no email, with the private key")
	}
	for _, challenge := range challenges {
		// A signature over nothing shows nothing about this token.
		if challenge != "" && public.signed([]byte(challenge), sig, public.hash) {
			return public.key()
		}
	}
	return Key{}, fault.New(fault.ProofInvalid,
		"the proof of possession does not verify: expected %s by the private half of the key sent, over the exact bytes of the token's email claim, or of sub",
		public.proof)
}

// Strong is nil for a public key, as SubjectPublicKeyInfo in DER, that p would
// accept with a proof. It shows nothing about who has the key.
//
// Errors: KEY_MALFORMED, KEY_UNSUPPORTED, KEY_WEAK, KEY_TOO_LARGE.
func (p *Policy) Strong(spki []byte) error {
	if len(spki) > MaxKeyBytes {
		return tooLarge(fault.KeyTooLarge, "the public key", MaxKeyBytes)
	}
	_, err := p.parseKey(spki)
	return err
}

// key completes a parsed key whose possession was just shown.
func (k publicKey) key() (Key, error) {
	spki, err := x509.MarshalPKIXPublicKey(k.public)
	if err != nil {
		return Key{}, fmt.Errorf("proof: marshalling a key that parsed: %w", err)
	}
	return Key{public: k.public, spki: spki, algorithm: k.algorithm}, nil
}

// tooLarge is the fault of an input over its limit.
func tooLarge(reason fault.Reason, what string, limit int) *fault.Error {
	return fault.New(reason, "%s is too large: at most %d bytes are accepted", what, limit).
		With("limit", strconv.Itoa(limit))
}

// signed reports whether sig is k's signature over message: ASN.1 DER ECDSA or
// PKCS#1 v1.5 over the message's hash, or pure Ed25519, for which hash is zero.
// The standard library's verifiers are strict: trailing or non-minimal DER, r
// or s outside [1, n−1] and RSA signatures of another length don't verify.
func (k publicKey) signed(message, sig []byte, hash crypto.Hash) bool {
	if public, ok := k.public.(ed25519.PublicKey); ok {
		return ed25519.Verify(public, message, sig)
	}
	return pubkey.Verify(k.public, hash, pubkey.Digest(hash, message), sig) == nil
}
