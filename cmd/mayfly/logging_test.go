package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestReaderOfTheLog: whoever reads standard error goes away, or stalls; the
// service answers as before, counts what is lost, and ends when it is told to.
func TestReaderOfTheLog(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("mayfly") // this program, see TestMain
	if err != nil {
		t.Fatal(err)
	}
	for name, goes := range map[string]bool{"goes away": true, "stalls": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			read, write, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer read.Close()
			dir := t.TempDir()
			p := &process{ended: make(chan struct{}), stderr: filepath.Join(dir, "none")}
			p.cmd = exec.Command(program, append([]string{"dev", "--dir", "ca"}, freePorts()...)...) // #nosec G204 -- this program
			p.cmd.Dir, p.cmd.Stderr = dir, write
			p.cmd.Env = append(os.Environ(), "GORACE="+quickExit)
			if err := p.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			go func() {
				p.err = p.cmd.Wait()
				close(p.ended)
			}()
			defer p.kill()
			if err := write.Close(); err != nil {
				t.Fatal(err)
			}
			e, err := p.endpoints(filepath.Join(dir, "ca"))
			if err != nil {
				t.Fatal(err)
			}
			if goes {
				if err := read.Close(); err != nil {
					t.Fatal(err)
				}
			}
			dropped := regexp.MustCompile(`(?m)^mayfly_log_lines_dropped_total [1-9]`)
			if err := p.until("lines were dropped", func() (bool, error) {
				if err := refusals(t.Context(), e.HTTP); err != nil {
					return false, err
				}
				_, text, err := get(t.Context(), e.Metrics+"/metrics")
				return dropped.Match(text), err
			}); err != nil {
				t.Fatal(err)
			}
			if code, _, err := get(t.Context(), e.HTTP+"/readyz"); code != http.StatusOK {
				t.Errorf("/readyz: %d, %v", code, err)
			}
			if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			select {
			case <-p.ended:
				if p.err != nil {
					t.Errorf("it ended with %v", p.err)
				}
			case <-time.After(patience):
				t.Error("SIGTERM didn't end it")
			}
		})
	}
}

// refusals sends many requests that are refused, each of which leaves a line in the log.
func refusals(ctx context.Context, ca string) error {
	group, ctx := errgroup.WithContext(ctx)
	for range 16 {
		group.Go(func() error {
			for range 64 {
				request, err := http.NewRequestWithContext(ctx, http.MethodPost, ca+"/api/v2/signingCert", strings.NewReader("{}"))
				if err != nil {
					return err
				}
				refused, err := (&http.Client{Timeout: patience}).Do(request)
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, refused.Body)
				if err := errors.Join(err, refused.Body.Close()); err != nil {
					return err
				}
				if refused.StatusCode != http.StatusUnauthorized {
					return errors.New(refused.Status)
				}
			}
			return nil
		})
	}
	return group.Wait()
}
