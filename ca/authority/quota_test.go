package authority

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

// pass lets time pass in a bubble.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	if err := wait.For(t.Context(), d); err != nil {
		t.Error(err)
	}
}

// TestQuotaBurst: a short burst passes, in the order of asking, with nobody waiting
// longer than the patience. The bubble ends, so no goroutine stays.
func TestQuotaBurst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, perSecond := range []int{1, 25, 200, 1000} {
			q := newQuota(perSecond)
			if q.patience < leastPatience || q.patience > mostPatience {
				t.Errorf("%d a second: a patience of %v", perSecond, q.patience)
			}
			burst := int(q.patience/q.interval) + 1
			var order []int
			var mu sync.Mutex
			var all sync.WaitGroup
			begin, refused := time.Now(), 0
			for n := range 2 * burst {
				all.Go(func() {
					err := q.admit(t.Context(), 1)
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						refused++
						return
					}
					order = append(order, n)
					if at, want := time.Since(begin), time.Duration(len(order)-1)*q.interval; at != want {
						t.Errorf("%d a second: admission %d after %v, want %v", perSecond, len(order), at, want)
					}
				})
				synctest.Wait() // each has asked before the next does
			}
			all.Wait()
			if len(order) != burst || refused != burst || !slices.IsSorted(order) {
				t.Errorf("%d a second: admitted %v, %d refused; want the first %d in their order", perSecond, order, refused, burst)
			}
			pass(t, 2*time.Second)
		}
	})
}

// TestQuotaEnds: who goes away while waiting is told so, and a signature that can't
// come before the request's end leaves its turn to another.
func TestQuotaEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQuota(1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := q.admit(ctx, 1); err != nil {
			t.Fatal(err)
		}
		if err := q.admit(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("admit: %v", err)
		}
		again, cancelAgain := context.WithTimeout(t.Context(), time.Second/2)
		defer cancelAgain()
		if err := q.pace(again); err != nil {
			t.Fatal(err)
		}
		free := q.free()
		if err := q.pace(again); !errors.Is(err, context.DeadlineExceeded) || !q.free().Equal(free) {
			t.Errorf("pace: %v; the next signature may be made at %v, was %v", err, q.free(), free)
		}
	})
}
