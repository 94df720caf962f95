//go:build conformance

package ctlog_test

import (
	"bytes"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestCTFE holds a log of certificate-transparency-go, on a Trillian with a real
// database, to the same suite as ours. internal/tools/conformance/logs.sh runs it.
func TestCTFE(t *testing.T) {
	t.Run("suite-on-ctfe", func(t *testing.T) { conforms(t, os.Getenv("CTFE_KIND"), openCTFE) })
}

func openCTFE(t *testing.T) fixture {
	t.Helper()
	program := os.Getenv("CTFE")
	if program == "" {
		t.Fatal("CTFE is not set: run this with make conformance")
	}
	ca, dir := ctlogtest.NewCA(t), t.TempDir()
	roots := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	var said bytes.Buffer
	log := exec.Command(program, dir, roots, address) //nolint:gosec // G702: logs.sh says what to run
	log.Stdout, log.Stderr = &said, &said
	if err := log.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- log.Wait() }()
	t.Cleanup(func() {
		_ = log.Process.Signal(syscall.SIGKILL)
		<-ended
		if t.Failed() {
			t.Logf("CTFE said:\n%s", said.String())
		}
	})
	url := "http://" + address + "/log"
	awaitLog(t, url, ended)
	l, err := external.New(external.Config{URL: url, KeyFile: setting.Path(filepath.Join(dir, "log.pub.pem"))}, external.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	if err := l.CheckRoots(t.Context(), [][]byte{ca.Intermediate.Raw, ca.Root.Raw}); err != nil {
		t.Fatal(err)
	}
	return fixture{Log: l, CA: ca, URL: url, Client: l.Reader()}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// awaitLog waits for a first tree head.
func awaitLog(t *testing.T, url string, ended chan error) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/ct/v1/get-sth", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Close = true // no connection is left behind for goleak to find
		if response, err := http.DefaultClient.Do(request); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case err := <-ended:
			ended <- err
			t.Fatalf("the log ended: %v", err)
		case <-deadline:
			t.Fatal("the log doesn't answer")
		}
	}
}
