package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Alice is who every client signs as.
const aliceEmail = "alice@example.com"

// startWithin bounds the start of every program, on a machine that is busy.
const startWithin = 30 * time.Second

// setting is an environment variable that run.sh sets.
func setting(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: run these tests with `make conformance`", name)
	}
	return value
}

// endpoints is what `mayfly dev` writes when it is ready.
type endpoints struct {
	HTTP    string `json:"http"`
	GRPC    string `json:"grpc"`
	Issuer  string `json:"issuer"`
	Metrics string `json:"metrics"`
	CTLog   string `json:"ctlog"`
}

// mayfly is a running `mayfly dev` and the documents that clients need.
type mayfly struct {
	endpoints
	process       *process
	dir           string   // the service's data
	trustedRoot   string   // path of trusted_root.json
	signingConfig string   // path of signing_config.json
	environment   []string // of the programs that call it

	// leaf is the index in the log of the last certificate that tells it.
	leaf uint64
}

// startDev runs the binary under test until the test ends, on free ports.
func startDev(t *testing.T) *mayfly {
	t.Helper()
	return startDevIn(t, filepath.Join(t.TempDir(), "mayfly-data"))
}

// startDevIn is startDev with the service's data in a folder.
func startDevIn(t *testing.T, dir string) *mayfly {
	t.Helper()
	m := &mayfly{dir: dir}
	args := []string{"dev", "--dir", m.dir}
	for _, listener := range []string{"http", "grpc", "issuer", "metrics"} {
		args = append(args, "--"+listener+"-address", "127.0.0.1:0")
	}
	p := start(t, setting(t, "MAYFLY_BIN"), args...)
	m.process = p
	written := filepath.Join(m.dir, "endpoints.json") // another's is gone: see stopDev
	p.until(t, "endpoints.json is written", func() bool {
		content, err := os.ReadFile(written)
		return err == nil && json.Unmarshal(content, &m.endpoints) == nil
	})

	documents := t.TempDir()
	m.trustedRoot = m.download(t, documents, "/trusted_root.json")
	m.signingConfig = m.download(t, documents, "/signing_config.json")
	return m
}

// stopDev ends the program, so that another can be started in its folder.
func (m *mayfly) stopDev(t *testing.T) {
	t.Helper()
	m.process.stop(t)
	if err := os.Remove(filepath.Join(m.dir, "endpoints.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// token asks the development issuer for an ID token of Alice's.
func (m *mayfly) token(t *testing.T) string {
	t.Helper()
	query := url.Values{"email": {aliceEmail}, "sub": {"alice"}, "aud": {"sigstore"}}
	return strings.TrimSpace(string(get(t, m.Issuer+"/dev/token?"+query.Encode())))
}

func (m *mayfly) download(t *testing.T, dir, path string) string {
	t.Helper()
	file := filepath.Join(dir, filepath.Base(path))
	write(t, file, get(t, m.HTTP+path))
	return file
}

// get answers with the body of a 200 answer.
func get(t *testing.T, url string) []byte {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := caller(t).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %v\n%s", url, response.Status, err, body)
	}
	return body
}

// answers reports whether a URL is answered with 200.
func answers(t *testing.T, url string) bool {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := caller(t).Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// artifact writes a file to sign, of its own for each test.
func artifact(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "artifact.txt")
	write(t, file, []byte("signed by "+t.Name()+"\n"))
	return file
}

// process is a program that runs beside the tests.
type process struct {
	command *exec.Cmd
	stdin   io.Closer
	output  *lockedBuffer
	ended   chan error
}

// start runs a program until the test ends.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	return startIn(t, nil, name, args...)
}

// startIn adds to the environment of the program.
func startIn(t *testing.T, environment []string, name string, args ...string) *process {
	t.Helper()
	p := &process{output: new(lockedBuffer), ended: make(chan error, 1)}
	p.command = exec.Command(name, args...)
	p.command.Env = append(os.Environ(), environment...)
	p.command.Stdout, p.command.Stderr = p.output, p.output
	stdin, err := p.command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.command.Wait() }()
	t.Cleanup(func() { p.stop(t) })
	return p
}

// stop asks the program to end, and waits until it has.
func (p *process) stop(t *testing.T) {
	t.Helper()
	_ = p.stdin.Close()
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	select {
	case err := <-p.ended:
		p.ended <- err // for whoever stops it again
	case <-time.After(startWithin):
		_ = p.command.Process.Kill()
		t.Errorf("%s did not end within %v of SIGTERM", p.command, startWithin)
	}
	if t.Failed() {
		t.Logf("%s said:\n%s", p.command, p.output)
	}
}

// until waits for a condition, as long as the program runs.
func (p *process) until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(startWithin)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case err := <-p.ended:
			p.ended <- err
			t.Fatalf("%s ended before %s: %v\n%s", p.command, what, err, p.output)
		case <-deadline:
			t.Fatalf("%s: not within %v: %s\n%s", p.command, startWithin, what, p.output)
		}
	}
}

// command runs a program to its end; a status other than 0 fails the test.
func command(t *testing.T, environment []string, name string, args ...string) string {
	t.Helper()
	output, err := attempt(t, environment, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, output)
	}
	return output
}

// attempt runs a program to its end and leaves the judgement to the caller.
func attempt(t *testing.T, environment []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = t.TempDir() // also the home: clients look for settings and caches there
	c.Env = append(os.Environ(), "HOME="+c.Dir, "NO_COLOR=1", "COSIGN_EXPERIMENTAL=", "SIGSTORE_NO_CACHE=1")
	c.Env = append(c.Env, environment...)
	c.WaitDelay = 5 * time.Second // for what it started
	output, err := c.CombinedOutput()
	return string(bytes.TrimSpace(output)), err
}
