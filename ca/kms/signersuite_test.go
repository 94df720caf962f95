package kms_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// concurrency is how many signatures, or secrets, are asked for at once.
const concurrency = 64

// runSigner holds the signers that open gives against the contract of kms.Signer, for
// each of the algorithms that the backend offers. open makes or finds a key of
// the algorithm and fails t when it can't.
func runSigner(t *testing.T, open func(t *testing.T, a kms.Algorithm) kms.Signer, algorithms ...kms.Algorithm) {
	if len(algorithms) == 0 {
		algorithms = kms.Algorithms()
	}
	for _, a := range algorithms {
		t.Run(string(a), func(t *testing.T) {
			t.Parallel()
			s := open(t, a)
			t.Run("names its algorithm", func(t *testing.T) { algorithm(t, s, a) })
			t.Run("each hash and scheme verifies", func(t *testing.T) { signs(t, s, a) })
			t.Run("wrong digest length", func(t *testing.T) { digestLength(t, s) })
			t.Run("unsupported hash", func(t *testing.T) { unsupported(t, s) })
			t.Run("scheme of another key type", func(t *testing.T) { otherScheme(t, s) })
			t.Run("context that has ended", func(t *testing.T) { ended(t, s) })
			t.Run("concurrent use", func(t *testing.T) { concurrent(t, s, a) })
			t.Run("caller's digest stays", func(t *testing.T) { digestStays(t, s, a) })
		})
	}
}

func algorithm(t *testing.T, s kms.Signer, want kms.Algorithm) {
	got, err := kms.AlgorithmOf(s.Public())
	if err != nil || got != want {
		t.Fatalf("AlgorithmOf(Public()) = %q, %v; want %q", got, err, want)
	}
}

// schemes are what a key of s's type signs.
func schemes(s kms.Signer) map[string]crypto.SignerOpts {
	all := make(map[string]crypto.SignerOpts)
	_, isRSA := s.Public().(*rsa.PublicKey)
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		all[h.String()] = h
		if isRSA {
			all["PSS "+h.String()] = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
		}
	}
	return all
}

// signs wants the scheme of certificates, and of every other a signature or
// ErrSignatureScheme: a KMS may fix what a key signs with.
func signs(t *testing.T, s kms.Signer, a kms.Algorithm) {
	for name, opts := range schemes(s) {
		d := digestOf(t, opts.HashFunc())
		sig, err := s.Sign(t.Context(), d, opts)
		if opts != a.Hash() && errors.Is(err, kms.ErrSignatureScheme) && sig == nil {
			continue
		}
		if err != nil {
			t.Errorf("%s: Sign: %v", name, err)
			continue
		}
		if err := pubkey.Verify(s.Public(), opts, d, sig); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func digestLength(t *testing.T, s kms.Signer) {
	for _, n := range []int{0, 1, 20, 31, 33, 48, 64} {
		if sig, err := s.Sign(t.Context(), make([]byte, n), crypto.SHA256); !errors.Is(err, kms.ErrDigest) || sig != nil {
			t.Errorf("%d bytes as SHA-256: signature of %d bytes, error %v; want ErrDigest", n, len(sig), err)
		}
	}
}

func unsupported(t *testing.T, s kms.Signer) {
	for _, h := range []crypto.Hash{0, crypto.MD5, crypto.SHA1, crypto.SHA224, crypto.SHA3_256} {
		size := 0
		if h != 0 {
			size = h.Size()
		}
		if sig, err := s.Sign(t.Context(), make([]byte, size), h); !errors.Is(err, kms.ErrDigest) || sig != nil {
			t.Errorf("hash %v: signature of %d bytes, error %v; want ErrDigest", h, len(sig), err)
		}
	}
}

func otherScheme(t *testing.T, s kms.Signer) {
	if _, ok := s.Public().(*ecdsa.PublicKey); !ok {
		return // RSA keys sign every scheme that there is
	}
	opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	if sig, err := s.Sign(t.Context(), digestOf(t, crypto.SHA256), opts); err == nil {
		t.Errorf("an ECDSA key signed PSS: %d bytes", len(sig))
	}
}

func ended(t *testing.T, s kms.Signer) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if sig, err := s.Sign(ctx, digestOf(t, crypto.SHA256), crypto.SHA256); !errors.Is(err, context.Canceled) || sig != nil {
		t.Errorf("signature of %d bytes, error %v; want context.Canceled", len(sig), err)
	}
}

func concurrent(t *testing.T, s kms.Signer, a kms.Algorithm) {
	var wait sync.WaitGroup
	errs := make(chan error, concurrency)
	for range concurrency {
		d := digestOf(t, a.Hash())
		wait.Go(func() {
			sig, err := s.Sign(t.Context(), d, a.Hash())
			if err == nil {
				err = pubkey.Verify(s.Public(), a.Hash(), d, sig)
			}
			if err != nil {
				errs <- fmt.Errorf("one of %d at once: %w", concurrency, err)
			}
		})
	}
	wait.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}

func digestStays(t *testing.T, s kms.Signer, a kms.Algorithm) {
	d := digestOf(t, a.Hash())
	before := string(d)
	if _, err := s.Sign(t.Context(), d, a.Hash()); err != nil {
		t.Fatal(err)
	}
	if string(d) != before {
		t.Error("Sign wrote to the caller's digest")
	}
}
