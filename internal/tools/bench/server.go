package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
)

// endpoints is what `mayfly dev` writes to endpoints.json.
type endpoints struct {
	HTTP    string `json:"http"`
	GRPC    string `json:"grpc"`
	Issuer  string `json:"issuer"`
	Metrics string `json:"metrics"`
}

// server is a running `mayfly dev`.
type server struct {
	endpoints
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the process has ended
	failure error         // how it ended; read after exited
}

// startServer starts a CA with its state in dir, made when it isn't there.
func startServer(ctx context.Context, binary, dir string, withLog bool) (*server, error) {
	if _, err := os.Stat(filepath.Join(dir, "mayfly.yaml")); err != nil {
		if err := prepare(ctx, binary, dir, withLog); err != nil {
			return nil, err
		}
	}
	return launch(ctx, binary, dir)
}

// launch starts `mayfly dev` on free ports with its state in dir and waits
// until it is ready.
func launch(ctx context.Context, binary, dir string) (*server, error) {
	file := filepath.Join(dir, "endpoints.json")
	args := []string{"dev", "--dir", dir, "--http-address", "127.0.0.1:0", "--grpc-address", "127.0.0.1:0",
		"--issuer-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, exited: make(chan struct{})}
	go func() {
		s.failure = cmd.Wait()
		close(s.exited)
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		select {
		case <-s.exited:
			return nil, fmt.Errorf("the server ended: %w: %s", s.failure, said.String())
		case <-deadline:
			s.stop()
			return nil, fmt.Errorf("the server wasn't ready after 30 s: %s", said.String())
		case <-tick.C:
		}
		if text, err := os.ReadFile(file); err == nil && json.Unmarshal(text, &s.endpoints) == nil {
			return s, nil
		}
	}
}

// prepare makes a CA in dir as `mayfly dev` does and adds to its configuration
// what is measured with: profiles, and whether certificates go into a log.
func prepare(ctx context.Context, binary, dir string, withLog bool) error {
	s, err := launch(ctx, binary, dir)
	if err != nil {
		return err
	}
	s.stop()
	return edit(dir, func(doc map[string]any) {
		doc["server"].(map[string]any)["profiling"] = true
		doc["logging"] = map[string]any{"level": "warn"}
		if !withLog {
			doc["ctlog"] = map[string]any{"mode": "none", "accept_unlogged": true}
		}
	})
}

// edit changes the configuration in dir.
func edit(dir string, change func(doc map[string]any)) error {
	file := filepath.Join(dir, "mayfly.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var doc map[string]any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return err
	}
	change(doc)
	if text, err = yaml.Marshal(doc); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// authorityOf is the one authority of a configuration that mayfly init made.
func authorityOf(doc map[string]any) map[string]any {
	return doc["ca"].(map[string]any)["authorities"].([]any)[0].(map[string]any)
}

// stop ends the server as an operator would and waits for it.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.exited
}

// cpu is the CPU time of the server so far, user and system (proc(5), /proc/pid/stat).
func (s *server) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("unexpected /proc/pid/stat")
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on Linux
	var total time.Duration
	for _, f := range fields[11:13] { // utime and stime are fields 14 and 15
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(n) * tick
	}
	return total, nil
}

// resident is the server's resident memory in bytes (proc(5), VmRSS).
func (s *server) resident() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kB, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kB << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS in /proc/pid/status")
}
