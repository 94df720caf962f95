package wait_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

func TestWaitEndsWithTimeOrContext(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		d, deadline time.Duration
		woken       bool
		took        time.Duration
		want        error
	}{
		"the time passes":                {d: time.Hour, deadline: 2 * time.Hour, took: time.Hour},
		"the context ends first":         {d: 2 * time.Hour, deadline: time.Hour, took: time.Hour, want: context.DeadlineExceeded},
		"nothing to wait for":            {d: -time.Second, deadline: time.Hour},
		"nothing, but the context ended": {d: 0, deadline: 0, want: context.DeadlineExceeded},
		"woken before":                   {d: time.Hour, deadline: 2 * time.Hour, woken: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.deadline)
				defer cancel()
				woken := make(chan struct{}, 1)
				if tt.woken {
					woken <- struct{}{}
				}
				began := time.Now()
				if err := wait.OrWoken(ctx, tt.d, woken); !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
			})
		})
	}
}
