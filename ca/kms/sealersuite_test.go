package kms_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
)

// runSealer holds s against the contract of kms.Sealer. authenticates says
// whether the KMS authenticates what a secret is about; other is another key of
// the same KMS, or nil where there is none.
func runSealer(t *testing.T, s, other kms.Sealer, authenticates bool) {
	const about = "a key of the test"
	secret := bytes.Repeat([]byte{0x5a}, 32)
	sealed, err := s.Seal(t.Context(), secret, about)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, secret) {
		t.Fatal("the secret is in what was sealed")
	}
	refused := func(t *testing.T, by kms.Sealer, sealed []byte, about string) {
		t.Helper()
		got, err := by.Unseal(t.Context(), sealed, about)
		if !errors.Is(err, kms.ErrSealed) || got != nil {
			t.Errorf("%x, %v; want ErrSealed", got, err)
		}
	}
	t.Run("what was sealed comes back", func(t *testing.T) {
		if got, err := s.Unseal(t.Context(), sealed, about); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%x, %v", got, err)
		}
		if err := kms.TrySealer(t.Context(), s); err != nil {
			t.Error(err)
		}
	})
	t.Run("secrets that are too long or empty", func(t *testing.T) {
		for _, n := range []int{0, 65} {
			if _, err := s.Seal(t.Context(), make([]byte, n), about); err == nil || !strings.Contains(err.Error(), "1 to 64 can be sealed") {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
		if got, err := s.Seal(t.Context(), make([]byte, 64), strings.Repeat("a", 256)); err != nil || len(got) == 0 {
			t.Errorf("the longest: %v", err)
		}
		for _, about := range []string{"", "line\nbreak", strings.Repeat("a", 257)} {
			if _, err := s.Seal(t.Context(), secret, about); err == nil {
				t.Errorf("about %q is taken", about)
			}
		}
	})
	t.Run("changed since", func(t *testing.T) {
		changed := bytes.Clone(sealed)
		changed[len(changed)/2] = changed[len(changed)/2]&0x40 ^ 'B' // stays a letter, where letters are wanted
		if bytes.Equal(changed, sealed) {
			changed[len(changed)/2]++
		}
		refused(t, s, changed, about)
	})
	if authenticates {
		t.Run("about something else", func(t *testing.T) { refused(t, s, sealed, about+".") })
	}
	if other != nil {
		t.Run("another key", func(t *testing.T) { refused(t, other, sealed, about) })
	}
	t.Run("context that has ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, sealing := s.Seal(ctx, secret, about)
		_, unsealing := s.Unseal(ctx, sealed, about)
		if !errors.Is(sealing, context.Canceled) || !errors.Is(unsealing, context.Canceled) {
			t.Errorf("%v and %v; want context.Canceled", sealing, unsealing)
		}
	})
	t.Run("concurrent use", func(t *testing.T) { sealsAtOnce(t, s) })
}

func sealsAtOnce(t *testing.T, s kms.Sealer) {
	var all sync.WaitGroup
	for i := range concurrency {
		all.Go(func() {
			about := fmt.Sprintf("secret %d", i)
			sealed, err := s.Seal(t.Context(), []byte(about), about)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := s.Unseal(t.Context(), sealed, about); err != nil || string(got) != about {
				t.Errorf("%q, %v; want %q", got, err, about)
			}
		})
	}
	all.Wait()
}
