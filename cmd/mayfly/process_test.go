package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// patience is how long a test waits for what takes a moment: enough for a
// loaded machine under the race detector.
const patience = 30 * time.Second

// quickExit keeps a program that is built with the race detector from sleeping a
// second before it exits, as the detector would have it.
const quickExit = "atexit_sleep_ms=0"

// process is the program running in the background.
type process struct {
	cmd    *exec.Cmd
	group  bool   // it has a group of its own, with all that it starts
	stderr string // the file it writes to
	ended  chan struct{}
	err    error // of Wait, once ended is closed
}

// launch starts a program in dir with its output in files called name.
func launch(dir, name string, env []string, program string, args ...string) (*process, error) {
	return (&process{}).launch(dir, name, env, program, args...)
}

// launchTerminal is launch as in a terminal, whose Ctrl-C reaches the program and all
// that it starts.
func launchTerminal(dir, name string, env []string, program string, args ...string) (*process, error) {
	return (&process{group: true}).launch(dir, name, env, program, args...)
}

func (p *process) launch(dir, name string, env []string, program string, args ...string) (*process, error) {
	p.stderr, p.ended = filepath.Join(dir, name+".err"), make(chan struct{})
	out, err := os.Create(filepath.Join(dir, name+".out")) // #nosec G304 -- a test's own file
	if err != nil {
		return nil, err
	}
	defer out.Close()
	errs, err := os.Create(p.stderr)
	if err != nil {
		return nil, err
	}
	defer errs.Close()
	p.cmd = exec.Command(program, args...) // #nosec G204 -- a test's own program
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = dir, append(slices.Clone(env), "GORACE="+quickExit), out, errs
	if p.group {
		ownGroup(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// signal sends a signal to the program, and to all that it started in its group.
func (p *process) signal(s syscall.Signal) error {
	if p.group {
		return signalGroup(p.cmd.Process.Pid, s)
	}
	return p.cmd.Process.Signal(s)
}

// kill ends the program at once, if it runs.
func (p *process) kill() {
	_ = p.signal(syscall.SIGKILL) // it may have ended
	<-p.ended
}

// end tells the program to stop, and is nil when it exits with 0 in time.
func (p *process) end() error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("%w: %s", err, p.said())
	}
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("%w: %s", p.err, p.said())
		}
		return nil
	case <-time.After(patience):
		p.kill()
		return errors.New("SIGTERM didn't end it")
	}
}

// said is what the program wrote to standard error.
func (p *process) said() string {
	text, err := os.ReadFile(p.stderr)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// until polls condition until it is true; an error ends it early. The program's
// own end is an error: it won't get there.
func (p *process) until(what string, condition func() (bool, error)) error {
	var ended <-chan struct{}
	if p != nil {
		ended = p.ended
	}
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := condition()
		if done || err != nil {
			return err
		}
		select {
		case <-ended:
			return fmt.Errorf("it ended (%w) before %s: %s", p.err, what, p.said())
		case <-deadline:
			return fmt.Errorf("gave up waiting: %s", what)
		case <-tick.C:
		}
	}
}

// endpoints waits until `mayfly dev` says in dir where everything is.
func (p *process) endpoints(dir string) (e endpoints, err error) {
	err = p.until("endpoints.json was written", func() (bool, error) {
		text, err := os.ReadFile(filepath.Join(dir, endpointsName)) // #nosec G304 -- a test's own file
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return true, json.Unmarshal(text, &e)
	})
	return e, err
}

// serving waits for the line of `mayfly serve` that says where it listens.
func (p *process) serving() (e endpoints, err error) {
	err = p.until("it said where it serves", func() (bool, error) {
		for line := range strings.Lines(p.said()) {
			var at struct{ Msg, HTTP, GRPC, Metrics string }
			if json.Unmarshal([]byte(line), &at) == nil && at.Msg == "serving" {
				e = endpoints{HTTP: "http://" + at.HTTP, GRPC: at.GRPC, Metrics: "http://" + at.Metrics}
				return true, nil
			}
		}
		return false, nil
	})
	return e, err
}

// get asks once, on a connection of its own.
func get(ctx context.Context, url string) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

// freePorts are the flags that let `mayfly dev` listen anywhere.
func freePorts() []string {
	var flags []string
	for _, f := range []string{"http", "grpc", "issuer", "metrics"} {
		flags = append(flags, "--"+f+"-address", "127.0.0.1:0")
	}
	return flags
}

// useFreePorts puts port 0 into a configuration that mayfly init wrote.
func useFreePorts(path string) error {
	text, err := os.ReadFile(path) // #nosec G304 -- a test's own file
	if err != nil {
		return err
	}
	const section = "\nserver:\n"
	if !bytes.Contains(text, []byte(section)) {
		return fmt.Errorf("%s has no section server", path)
	}
	with := section + "  http_address: 127.0.0.1:0\n  grpc_address: 127.0.0.1:0\n  metrics_address: 127.0.0.1:0\n"
	return os.WriteFile(path, bytes.Replace(text, []byte(section), []byte(with), 1), 0o600) // #nosec G703 -- a test's own file
}
