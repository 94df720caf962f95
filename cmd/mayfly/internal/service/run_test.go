package service

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/config"
)

// TestRunEndsWithoutAPartThatHangs: SIGTERM ends a process whose reload reads a disk that doesn't
// answer, and what ends in time is waited for.
func TestRunEndsWithoutAPartThatHangs(t *testing.T) {
	t.Parallel()
	most := func() time.Duration { return time.Minute }
	for _, one := range []struct {
		takes time.Duration
		hangs bool
	}{{59 * time.Second, false}, {61 * time.Second, true}} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			wait := func() error {
				<-ctx.Done()
				time.Sleep(one.takes) //nolint:forbidigo // the bubble's clock
				return context.Canceled
			}
			time.AfterFunc(time.Hour, cancel)
			if err := waitFor(ctx, wait, most); errors.Is(err, errHangs) != one.hangs || err == nil {
				t.Errorf("a part that takes %v: %v", one.takes, err)
			}
			time.Sleep(one.takes) //nolint:forbidigo // the bubble's clock
		})
	}
}

// TestStartRemarksOnPlainText: a start says which address tokens can be read at on their way.
func TestStartRemarksOnPlainText(t *testing.T) {
	t.Parallel()
	r := startRig(t, func(_ *rig, c *config.Config) { c.Server.GRPCAddress = "0.0.0.0:0" })
	if all := r.lines.String(); strings.Count(all, "speaks plain text beyond this machine") != 1 || !strings.Contains(all, "server.grpc_address: 0.0.0.0:0 speaks") {
		t.Errorf("no word of one address alone: %s", all)
	}
}
