package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/kmstest"
)

// outside lets the stand-ins of kmstest run outside of a test: what fails in them
// ends the benchmark, and close is the test's end.
type outside struct {
	testing.TB // the rest is never called
	dir        string
	cleanups   []func()
}

func (*outside) Helper()                           {}
func (*outside) Error(args ...any)                 { fmt.Fprintln(os.Stderr, args...) }
func (*outside) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (*outside) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }          //nolint:forbidigo // a test's Fatal never returns
func (*outside) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) } //nolint:forbidigo // a test's Fatal never returns
func (o *outside) Cleanup(f func())                { o.cleanups = append(o.cleanups, f) }
func (o *outside) TempDir() string                 { return o.dir }

func (o *outside) close() {
	for i := len(o.cleanups) - 1; i >= 0; i-- {
		o.cleanups[i]()
	}
}

// introduction is how a stand-in in another process is reached.
type introduction struct {
	Ref         string
	Access      kms.Access
	Environment map[string]string
}

// credentials are the variables that the stand-ins' credentials are in.
var credentials = []string{
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "GCE_METADATA_HOST", "VAULT_TOKEN",
}

func (i introduction) options() kms.Options {
	return kms.Options{Access: i.Access, Getenv: func(name string) string { return i.Environment[name] }}
}

// serveStandIn is this program as a vendor's service: it introduces itself on
// standard output, and ends with its standard input.
func serveStandIn(vendor, dir string) error {
	t := &outside{dir: dir}
	defer t.close()
	s := kmstest.Vendors[vendor](t, kmstest.Key(t, kms.ECDSAP256))
	i := introduction{Ref: s.Ref, Access: s.Options.Access, Environment: make(map[string]string)}
	for _, name := range credentials {
		i.Environment[name] = s.Options.Getenv(name)
	}
	if err := json.NewEncoder(os.Stdout).Encode(i); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// startStandIn starts this program as a vendor's service, so that its CPU time
// isn't ours; stop ends it.
func startStandIn(ctx context.Context, vendor string) (i introduction, stop func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return i, nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-stand-in", vendor)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return i, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return i, nil, err
	}
	if err := cmd.Start(); err != nil {
		return i, nil, err
	}
	stop = func() error { _ = in.Close(); return cmd.Wait() }
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &i)
	}
	if err != nil {
		return i, nil, fmt.Errorf("the stand-in for %s: %w (%w)", vendor, err, stop())
	}
	return i, stop, nil
}
