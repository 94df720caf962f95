package proof

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/letsencrypt/boulder/goodkey"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// rsaExponent is the one public exponent accepted, F4.
const rsaExponent = 65537

// rsaSizes are the modulus sizes accepted, in bits.
var rsaSizes = []int{2048, 3072, 4096}

// Policy decides which keys are fit to be certified. It is immutable and safe
// for concurrent use.
type Policy struct {
	// factored asks whether an RSA modulus of an accepted size is known to be
	// easy to factor; nil means that no weakness was found.
	factored func(*rsa.PublicKey) error
}

// NewPolicy makes the policy. An error means that the weak-key checks can't be
// set up, which is a fault of the build.
func NewPolicy() (*Policy, error) {
	// EC keys never reach goodkey: parseEC has made sure of all that it would
	// check, without its multiplication by the curve's order.
	checks, err := goodkey.NewPolicy(&goodkey.Config{AllowedKeys: &goodkey.AllowedKeys{RSA2048: true, RSA3072: true, RSA4096: true}}, nil)
	if err != nil {
		return nil, fmt.Errorf("proof: setting up the weak-key checks: %w", err)
	}
	return &Policy{factored: func(key *rsa.PublicKey) error {
		// The context is only for a database of blocked keys, which isn't configured.
		return checks.GoodKey(context.Background(), key) //nolint:forbidigo // as said above
	}}, nil
}

// acceptedSize refuses an RSA key by the size of its numbers alone, so that a
// huge one costs nothing.
func acceptedSize(n, e *big.Int) error {
	bits := n.BitLen()
	switch {
	case bits < rsaSizes[0]:
		return fault.New(fault.KeyWeak, "an RSA key of %d bits is too short; accepted are 2048, 3072 and 4096", bits)
	case !slices.Contains(rsaSizes, bits):
		return fault.New(fault.KeyUnsupported, "an RSA key of %d bits is not accepted; accepted are 2048, 3072 and 4096", bits)
	case !e.IsInt64() || e.Int64() != rsaExponent:
		return fault.New(fault.KeyWeak, "the RSA key's public exponent is not accepted: expected %d", rsaExponent)
	}
	return nil
}

// errFactored stands for goodkey's error, which can hold the factors that it
// found: the private key.
var errFactored = errors.New("goodkey: the modulus has a small prime factor, the ROCA fingerprint or close factors")

// strong refuses an RSA modulus that can be factored: a small prime factor,
// the ROCA fingerprint (CVE-2017-15361), close primes (Fermat), a square.
func (p *Policy) strong(key *rsa.PublicKey) error {
	weak := fault.New(fault.KeyWeak, "the RSA key is weak, its modulus can be factored: make a new key with an up-to-date tool")
	// Fermat's method in goodkey starts above the root and so misses p = q.
	root := new(big.Int).Sqrt(key.N)
	if root.Mul(root, root).Cmp(key.N) == 0 {
		return weak.Because(errors.New("the modulus is a square"))
	}
	if p.factored(key) != nil {
		return weak.Because(errFactored)
	}
	return nil
}

// smallOrder are the canonical encodings in hex, without the sign bit, of the points
// of Ed25519 whose order divides 8. Anyone can sign for such a key.
var smallOrder = []string{
	"0100000000000000000000000000000000000000000000000000000000000000", // order 1, the identity
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // order 2
	"0000000000000000000000000000000000000000000000000000000000000000", // order 4
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // order 8
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", // order 8
}

// strongEd25519 refuses a point of small order and a y coordinate that isn't
// reduced, p = 2²⁵⁵ − 19 or above (RFC 8032 §5.1.3): libraries disagree about
// whether those verify.
func strongEd25519(key ed25519.PublicKey) error {
	y := slices.Clone([]byte(key))
	y[31] &= 0x7f // the sign of x
	switch {
	case y[0] >= 0xed && y[31] == 0x7f && bytes.Count(y[1:31], []byte{0xff}) == 30:
		return fault.New(fault.KeyMalformed, "the Ed25519 key is not in its canonical encoding")
	case slices.Contains(smallOrder, hex.EncodeToString(y)):
		return fault.New(fault.KeyWeak, "the Ed25519 key is a point of small order: anyone could sign with it")
	}
	return nil
}
