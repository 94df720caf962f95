package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/mayfly-ca/mayfly/internal/wait"
)

// attackTime is how long the attacks last; `make conformance` asks for a minute.
func attackTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("MAYFLY_ATTACK")
	if text == "" {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// attack is one connection's worth of abuse: what is sent, to which port. The
// answers aren't taken.
type attack struct {
	name, port string
	sent       []byte
}

// How much a client withholds, and how many of each kind there are at a time.
const (
	attackers  = 40 // connections of one kind from one address
	networks   = 3  // addresses that attack
	bodyLength = 60_000
	pause      = 3 * time.Second // of an attacker, before it comes again
)

// attacks are those of which each alone ended the process once, and their kin. log
// is the path of the log.
func attacks(t *testing.T, log string) []attack {
	t.Helper()
	const (
		api        = "/dev.sigstore.fulcio.v2.CA/CreateSigningCertificate"
		reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
		list       = "\x00\x00\x00\x00\x02\x3a\x00" // list_services
		entries    = "/ct/v1/get-entries?start=0&end=255"
	)
	begun := append([]byte{0, 0, 0, bodyLength >> 8, bodyLength & 0xff}, make([]byte, 8000)...)
	return []attack{
		{"health watches", "grpc", openStreams(t, 4, "POST", "/grpc.health.v1.Health/Watch", make([]byte, 5), true)},
		{"health watches on the REST port", "http", openStreams(t, 4, "POST", "/grpc.health.v1.Health/Watch", make([]byte, 5), true)},
		{"reflection without a window", "http", openStreams(t, 25, "POST", reflection, bytes.Repeat([]byte(list), 100), false)},
		{"bodies without their last byte", "http", fmt.Appendf(nil, "POST /api/v2/signingCert HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", bodyLength, strings.Repeat(" ", bodyLength-1))},
		{"messages without their last byte", "grpc", openStreams(t, 25, "POST", api, begun, false)},
		{"entries that nobody reads", "http", []byte(strings.Repeat("GET "+log+entries+" HTTP/1.1\r\nHost: x\r\n\r\n", 8))},
		{"entries without a window", "http", openStreams(t, 25, "GET", log+entries, nil, true)},
		{"answers without a window", "http", openStreams(t, 25, "GET", "/api/v2/trustBundle", nil, true)},
		{"heads that don't end", "http", []byte("GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("a", 30_000))},
		{"frames that are announced", "grpc", []byte(http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\xff\xff\xff\x00\x00\x00\x00\x00\x01")},
		{"metrics that nobody reads", "metrics", []byte(strings.Repeat("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 20))},
		{"silence", "grpc", nil},
	}
}

// openStreams are requests of one HTTP/2 connection, each with a long head of its own,
// no window for the answer, and data.
func openStreams(t *testing.T, n int, method, path string, data []byte, end bool) []byte {
	t.Helper()
	out, head := bytes.NewBufferString(http2.ClientPreface), new(bytes.Buffer)
	framer, encoder := http2.NewFramer(out, nil), hpack.NewEncoder(head)
	errs := []error{framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})}
	for one := range n {
		head.Reset()
		fields := [][2]string{{":method", method}, {":scheme", "http"}, {":authority", "x"}, {":path", path}, {"x-long", strconv.Itoa(one) + strings.Repeat("X", 8000)}}
		if method == http.MethodPost {
			fields = append(fields, [2]string{"content-type", "application/grpc"}, [2]string{"te", "trailers"})
		}
		for _, f := range fields {
			errs = append(errs, encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}))
		}
		id := uint32(2*one + 1) // #nosec G115 -- some dozen
		errs = append(errs, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: data == nil}))
		if data != nil {
			errs = append(errs, framer.WriteData(id, end, data))
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// run makes the attack again and again, from one address, until ctx ends.
func (a attack) run(ctx context.Context, to, from string) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	// Sooner, the attackers would take the processors from those they attack.
	again := time.NewTicker(pause)
	defer again.Stop()
	for ctx.Err() == nil {
		if conn, err := dialer.DialContext(ctx, "tcp", to); err == nil {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			if _, err := conn.Write(a.sent); err == nil {
				var one [1]byte
				for { // slowly, so that its answers stay where they are
					if _, err := conn.Read(one[:]); err != nil {
						break
					}
					select {
					case <-again.C:
					case <-ctx.Done():
					}
				}
			}
			stop()
			_ = conn.Close()
		}
		select {
		case <-again.C:
		case <-ctx.Done():
		}
	}
}

// memoryGroup makes a control group whose processes may have so much memory
// together. The functions give the command that runs another in it, and the most it
// held.
func memoryGroup(t *testing.T, limit int) (in func(args []string) []string, most func() int) {
	t.Helper()
	for _, version := range []struct{ root, limit, most string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"},
		{"/sys/fs/cgroup", "memory.max", "memory.peak"},
	} {
		dir := filepath.Join(version.root, fmt.Sprintf("mayfly-test-%d", os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil { // #nosec G301 -- as the kernel has it
			continue
		}
		if os.WriteFile(filepath.Join(dir, version.limit), []byte(strconv.Itoa(limit)), 0o600) != nil {
			_ = os.Remove(dir)
			continue
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		in = func(args []string) []string {
			return append([]string{"/bin/sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(dir, "cgroup.procs")}, args...)
		}
		most = func() int {
			text, err := os.ReadFile(filepath.Join(dir, version.most)) // #nosec G304 -- the kernel's
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		return in, most
	}
	return nil, nil
}

// peak is the most memory that a process had, by the kernel's account.
func peak(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s", text)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// unitLimits are the memory that the unit in deploy/ allows, and the environment
// that it sets.
func unitLimits(t *testing.T) (limit int, env string) {
	t.Helper()
	unit, err := os.ReadFile("../../deploy/mayfly.service")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^MemoryMax=(\d+)M$`).FindSubmatch(unit)
	e := regexp.MustCompile(`(?m)^Environment=(GOMEMLIMIT=\S+)$`).FindSubmatch(unit)
	if m == nil || e == nil {
		t.Fatal("the unit has no MemoryMax or no GOMEMLIMIT")
	}
	if limit, err = strconv.Atoi(string(m[1])); err != nil {
		t.Fatal(err)
	}
	return limit << 20, string(e[1])
}

// customer asks for certificates as honest clients do.
type customer struct {
	url    string
	body   []byte
	client http.Client

	mu    sync.Mutex
	asked int
	took  []time.Duration // of those that got theirs
	wrong map[string]int
}

func newCustomer(t *testing.T, e endpoints) *customer {
	t.Helper()
	_, token, err := get(t.Context(), e.Issuer+"/dev/token?email=alice@example.com")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	proof, err := crypto.SignMessage(key, rand.Reader, []byte("alice@example.com"), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{
		"credentials": map[string]any{"oidcIdentityToken": strings.TrimSpace(string(token))},
		"publicKeyRequest": map[string]any{
			"publicKey":         map[string]any{"algorithm": "ECDSA", "content": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))},
			"proofOfPossession": proof,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &customer{url: e.HTTP + "/api/v2/signingCert", body: body, client: http.Client{Timeout: 10 * time.Second}, wrong: map[string]int{}}
}

// ask asks once.
func (c *customer) ask(ctx context.Context) {
	began := time.Now()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(c.body))
	if err == nil {
		var response *http.Response
		if response, err = c.client.Do(request); err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			if response.StatusCode != http.StatusOK {
				err = errors.New(response.Status)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked++; err != nil {
		c.wrong[err.Error()]++
		return
	}
	c.took = append(c.took, time.Since(began))
}

// pace asks so many times a second, whatever becomes of what was asked before.
func (c *customer) pace(ctx context.Context, aSecond int) {
	tick := time.NewTicker(time.Second / time.Duration(aSecond))
	defer tick.Stop()
	var asked sync.WaitGroup
	for {
		select {
		case <-tick.C:
			asked.Go(func() { c.ask(context.WithoutCancel(ctx)) })
		case <-ctx.Done():
			asked.Wait()
			return
		}
	}
}

// All attacks at once, from several addresses, don't make the process hold more
// than the memory law and the limit of deploy/ say, nor take the service from honest
// clients, nor keep it from ending.
func TestAttacksStayWithinTheMemoryLaw(t *testing.T) {
	limit, env := unitLimits(t)
	dir := t.TempDir()
	program := os.Getenv("MAYFLY_BIN")
	if program == "" { // the race detector's memory is no measure
		program = filepath.Join(dir, "mayfly")
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil { // #nosec G204 -- a test's own program
			t.Fatalf("%v: %s", err, out)
		}
	}
	command := append([]string{program, "dev", "--dir", "data"}, freePorts()...)
	in, most := memoryGroup(t, limit)
	if in != nil {
		command = in(command)
	} else {
		t.Log("no control group can be made here: the peak is measured, and nothing holds the process to it")
	}
	p, err := launch(dir, "mayfly", append(slices.Clone(os.Environ()), env), command[0], command[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	e, err := p.endpoints(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	honest := newCustomer(t, e)
	for range 300 { // entries of the log
		honest.ask(t.Context())
	}
	if len(honest.wrong) > 0 {
		t.Fatalf("without an attack: %v", honest.wrong)
	}
	*honest = customer{url: honest.url, body: honest.body, client: http.Client{Timeout: 10 * time.Second}, wrong: map[string]int{}}

	addresses := map[string]string{"http": hostPort(t, e.HTTP), "grpc": e.GRPC, "metrics": hostPort(t, e.Metrics)}
	ctx, stop := context.WithTimeout(t.Context(), attackTime(t))
	defer stop()
	log, err := url.Parse(e.CTLog)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, a := range attacks(t, log.Path) {
		for network := range networks {
			for n := range attackers {
				all.Go(func() {
					if wait.For(ctx, time.Duration(n)*pause/attackers) == nil { // not all in one moment
						a.run(ctx, addresses[a.port], fmt.Sprintf("127.0.1.%d", network+1))
					}
				})
			}
		}
	}
	honest.pace(ctx, 20)
	all.Wait()

	held := peak(t, p.cmd.Process.Pid)
	if most != nil {
		held = most()
	}
	slices.Sort(honest.took)
	n := len(honest.took)
	if n == 0 || 10*n < 9*honest.asked {
		t.Fatalf("of %d honest requests %d were answered: %v", honest.asked, n, honest.wrong)
	}
	t.Logf("%d of %d honest requests, p50 %v, p99 %v; the process held %d MiB of %d", n, honest.asked, honest.took[n/2], honest.took[n*99/100], held>>20, limit>>20)
	if held >= limit {
		t.Errorf("%d MiB were held", held>>20)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

func hostPort(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
