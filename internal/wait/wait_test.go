package wait_test

import (
	"context"
	"errors"
	"net/http"
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

func TestAsked(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 10, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "soon": 0, "-5": 0, "4294967296": 0, "0": 0,
		"7":                             7 * time.Second,
		"Sun, 29 Nov 2026 10:00:30 GMT": 30 * time.Second,
		"Sun, 29 Nov 2026 09:59:30 GMT": 0, // behind
	} {
		if got := wait.Asked(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q: %s; want %s", text, got, want)
		}
	}
}
