package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // crypto.SHA256, for crypto.Hash.New
	_ "crypto/sha512" // crypto.SHA384 and crypto.SHA512
)

// signed reports whether sig is k's signature over message: ASN.1 DER ECDSA or
// PKCS#1 v1.5 over the message's hash, or pure Ed25519, for which hash is zero.
// The standard library's verifiers are strict: trailing or non-minimal DER, r
// or s outside [1, n−1] and RSA signatures of another length don't verify.
func (k publicKey) signed(message, sig []byte, hash crypto.Hash) bool {
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(public, digest(hash, message), sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, hash, digest(hash, message), sig) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(public, message, sig)
	default:
		return false
	}
}

// digest is the message's hash.
func digest(hash crypto.Hash, message []byte) []byte {
	h := hash.New()
	h.Write(message)
	return h.Sum(nil)
}

// describe says how a proof by k is made.
func (k publicKey) describe() string {
	switch k.public.(type) {
	case *ecdsa.PublicKey:
		return "an ASN.1 DER ECDSA signature with " + k.hash.String()
	case *rsa.PublicKey:
		return "an RSA PKCS#1 v1.5 signature with " + k.hash.String()
	default:
		return "a pure Ed25519 signature"
	}
}
