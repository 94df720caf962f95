package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mayfly-ca/mayfly/ca/ceremony"
)

// processes are what a script has in the background, by name.
type processes struct{ running map[string]*process }

type processesKey struct{}

func running(ts *testscript.TestScript, name string) *process {
	p := ts.Value(processesKey{}).(*processes).running[name]
	if p == nil {
		ts.Fatalf("%s isn't running", name)
	}
	return p
}

func cmdLaunch(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 || args[1] != "mayfly" {
		ts.Fatalf("usage: launch NAME mayfly ARGS…")
	}
	name, args := args[0], args[2:]
	if args[0] == "dev" {
		args = append(args, freePorts()...)
	}
	env := []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "TMPDIR=" + ts.Getenv("TMPDIR")}
	if p := ts.Getenv("PASSPHRASE"); p != "" {
		env = append(env, "PASSPHRASE="+p)
	}
	program, err := exec.LookPath("mayfly")
	ts.Check(err)
	p, err := launch(ts.MkAbs("."), name, env, program, args...)
	ts.Check(err)
	ts.Value(processesKey{}).(*processes).running[name] = p
	ts.Defer(p.kill)
}

func setEndpoints(ts *testscript.TestScript, e endpoints) {
	for name, value := range map[string]string{"HTTP": e.HTTP, "GRPC": e.GRPC, "ISSUER": e.Issuer, "METRICS": e.Metrics, "CTLOG": e.CTLog} {
		if value != "" {
			ts.Setenv(name, value)
		}
	}
}

func cmdEndpoints(ts *testscript.TestScript, _ bool, args []string) {
	e, err := running(ts, args[0]).endpoints(ts.MkAbs(args[1]))
	ts.Check(err)
	setEndpoints(ts, e)
}

func cmdServing(ts *testscript.TestScript, _ bool, args []string) {
	e, err := running(ts, args[0]).serving()
	ts.Check(err)
	setEndpoints(ts, e)
}

func cmdEnd(ts *testscript.TestScript, _ bool, args []string) { ts.Check(running(ts, args[0]).end()) }

func cmdHangup(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(running(ts, args[0]).cmd.Process.Signal(syscall.SIGHUP))
}

func cmdExit(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var ended *exec.ExitError
	switch {
	case err == nil && want != 0:
		ts.Fatalf("exit status 0, want %d", want)
	case err != nil && (!errors.As(err, &ended) || ended.ExitCode() != want):
		ts.Fatalf("%v, want exit status %d", err, want)
	}
}

func cmdFetch(ts *testscript.TestScript, _ bool, args []string) {
	code, body, err := get(context.Background(), args[0])
	ts.Check(err)
	if code != 200 {
		ts.Fatalf("%s answered %d: %s", args[0], code, body)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), body, 0o600))
}

func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	want, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	ts.Check((*process)(nil).until(args[0]+" says "+args[1], func() (bool, error) {
		code, body, err := get(context.Background(), args[0])
		return err == nil && code == 200 && want.Match(body), nil
	}))
}

func cmdAnswers(ts *testscript.TestScript, _ bool, args []string) {
	code, body, err := get(context.Background(), args[1])
	ts.Check(err)
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("%s answered %d: %s", args[1], code, body)
	}
}

func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := "0" + strconv.FormatUint(uint64(info.Mode().Perm()), 8); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

func cmdFlip(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path) // #nosec G304 -- a test's own file
	ts.Check(err)
	data[len(data)/2] ^= 0xff
	ts.Check(os.Chmod(path, 0o600)) // #nosec G703 -- a test's own file
	ts.Check(os.WriteFile(path, data, 0o600))
}

func cmdConfig(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(useFreePorts(ts.MkAbs(args[0])))
}

// cmdAuthority replaces the authority of a folder that mayfly init made by one
// that can't issue.
func cmdAuthority(ts *testscript.TestScript, _ bool, args []string) {
	dir, now := filepath.Join(ts.MkAbs(args[0]), authorityName), time.Now()
	switch args[1] {
	case "expired":
		ts.Check(os.RemoveAll(dir))
		_, err := ceremony.CreateFiles(ceremony.CreateOptions{Dir: dir, Organization: "Example", Algorithm: "ECDSA-P256", Now: now.AddDate(-6, 0, 0)})
		ts.Check(err)
	case "mismatched":
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(dir, "issuing.key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	default:
		ts.Fatalf("unknown fault %s", args[1])
	}
}
