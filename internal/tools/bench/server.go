package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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

// server is a running Mayfly.
type server struct {
	endpoints
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the process has ended
	failure error         // how it ended; read after exited
}

// start starts a CA with its state in dir, made when it isn't there.
func (p plan) start(ctx context.Context, dir, log string) (*server, error) {
	if _, err := os.Stat(filepath.Join(dir, "mayfly.yaml")); err != nil {
		if err := p.prepare(ctx, dir, log); err != nil {
			return nil, err
		}
	}
	return p.launch(ctx, dir)
}

// launch starts `mayfly serve` on free ports with its state in dir and waits
// until it is ready.
func (p plan) launch(ctx context.Context, dir string) (*server, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	at := endpoints{HTTP: "http://127.0.0.1:" + ports[0], GRPC: "127.0.0.1:" + ports[1], Metrics: "http://127.0.0.1:" + ports[2]}
	err = edit(dir, func(doc document) error {
		server, err := section(doc, "server")
		if err == nil {
			maps.Copy(server, document{"public_url": at.HTTP, "http_address": "127.0.0.1:" + ports[0], "grpc_address": at.GRPC, "metrics_address": "127.0.0.1:" + ports[2]})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return p.run(ctx, func(s *server) bool {
		s.endpoints = at
		return answers(ctx, at.HTTP+"/readyz")
	}, "serve", "--config", filepath.Join(dir, "mayfly.yaml"))
}

// answers is whether a URL does, with 200.
func answers(ctx context.Context, url string) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	return answer.Body.Close() == nil && answer.StatusCode == http.StatusOK
}

// dev starts `mayfly dev` on free ports with its state in dir, where people on this
// machine administer, and waits until it is ready.
func (p plan) dev(ctx context.Context, dir string) (*server, error) {
	file := filepath.Join(dir, "endpoints.json")
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return p.run(ctx, func(s *server) bool {
		text, err := os.ReadFile(file)
		return err == nil && json.Unmarshal(text, &s.endpoints) == nil
	}, "dev", "--dir", dir, "--http-address", "127.0.0.1:0", "--grpc-address", "127.0.0.1:0",
		"--issuer-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
}

// run starts the binary and waits until it is ready.
func (p plan) run(ctx context.Context, ready func(*server) bool, args ...string) (*server, error) {
	cmd := exec.CommandContext(ctx, p.binary, args...)
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
		if ready(s) {
			return s, nil
		}
	}
}

// prepare makes a CA in dir as `mayfly dev` does and adds to its configuration
// what is measured with: profiles, the bench's issuer, and where certificates go.
func (p plan) prepare(ctx context.Context, dir, log string) error {
	s, err := p.dev(ctx, dir)
	if err != nil {
		return err
	}
	s.stop()
	return edit(dir, func(doc document) error {
		server, err := section(doc, "server")
		if err != nil {
			return err
		}
		server["profiling"] = true
		doc["logging"] = document{"level": "warn"}
		issuers, ok := doc["issuers"].([]any)
		if !ok {
			return fmt.Errorf("no issuers: %w", errLayout)
		}
		doc["issuers"] = append(issuers, document{
			"url": p.issuer.URL, "audiences": []any{audience}, "allow": "true", "type": "email", "allow_insecure_loopback": true,
		})
		if log == unlogged {
			doc["ctlog"] = document{"mode": "none", "accept_unlogged": true}
		}
		if log != indexed {
			delete(doc, "store")
		}
		return nil
	})
}

// document is a configuration, or a section of one.
type document = map[string]any

// edit changes the configuration in dir.
func edit(dir string, change func(doc document) error) error {
	file := filepath.Join(dir, "mayfly.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var doc document
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return err
	}
	if err := change(doc); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if text, err = yaml.Marshal(doc); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// errLayout is a binary of another version.
var errLayout = errors.New("not the layout of this version's configurations; fix: measure a binary of this tree (make build), and an older one with the bench beside it")

// section is a part of a configuration that the binary wrote.
func section(doc document, name string) (document, error) {
	found, ok := doc[name].(document)
	if !ok {
		return nil, fmt.Errorf("no section %s: %w", name, errLayout)
	}
	return found, nil
}

// authorityOf is the one authority of a configuration that mayfly init made.
func authorityOf(doc document) (document, error) {
	ca, err := section(doc, "ca")
	if err != nil {
		return nil, err
	}
	if all, ok := ca["authorities"].([]any); ok && len(all) == 1 {
		if one, ok := all[0].(document); ok {
			return one, nil
		}
	}
	return nil, fmt.Errorf("no ca.authorities with one authority: %w", errLayout)
}

// changeAuthority puts what is given into the one authority of the configuration in dir.
func changeAuthority(dir string, with document) error {
	return edit(dir, func(doc document) error {
		authority, err := authorityOf(doc)
		if err == nil {
			maps.Copy(authority, with)
		}
		return err
	})
}

// stop ends the server as an operator would and waits for it.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.exited
}

// kill ends the server as a crash would and waits for it.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// process is the running server.
func (s *server) process() process { return process(s.cmd.Process.Pid) }
