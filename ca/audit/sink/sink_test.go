package sink

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// trail is a trail with a sink.
type trail struct {
	config   audit.Config
	registry *prometheus.Registry
	out      io.Writer
}

func newTrail(t *testing.T, to audit.Sink) *trail {
	t.Helper()
	c := audit.DefaultConfig()
	c.Path = setting.Path(filepath.Join(t.TempDir(), "audit.jsonl"))
	to.Name = "there"
	c.Sinks = []audit.Sink{to}
	var f setting.Faults
	if c.Check("audit", &f); f.Err() != nil {
		t.Fatal(f.Err())
	}
	return &trail{config: c}
}

// record writes certificates with these serial numbers, and a refusal.
func (r *trail) record(t *testing.T, serials ...string) {
	t.Helper()
	file, err := audit.Open(r.config, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, serial := range serials {
		if err := file.Record(t.Context(), audit.Event{Type: audit.Issued, Serial: serial, SAN: "alice@example.com"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(file.Record(t.Context(), audit.Event{Type: audit.Denied, Message: "a refusal"}), file.Close()); err != nil {
		t.Fatal(err)
	}
}

// run delivers until it is stopped.
func (r *trail) run(t *testing.T) (s *Sink, stop func()) {
	t.Helper()
	r.registry = prometheus.NewPedanticRegistry()
	all, err := New(r.config, Options{Out: r.out, Now: time.Now, Logger: slog.New(slog.DiscardHandler), Metrics: r.registry})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := all[0].Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return all[0], stop
}

// serials are those of records, in their order, with "-" for a refusal.
func serials(t *testing.T, records ...string) (all []string) {
	t.Helper()
	for _, record := range records {
		r, err := audit.ParseRecord([]byte(record))
		if err != nil {
			t.Fatalf("%s: %v", record, err)
		}
		serial, _ := r.Data["serial"].(string)
		all = append(all, cmp.Or(serial, "-"))
	}
	return all
}

// collector takes batches by HTTP.
type collector struct {
	mu     sync.Mutex
	got    []string
	refuse bool
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var batch []json.RawMessage
	err := json.NewDecoder(r.Body).Decode(&batch)
	if err != nil || r.Header.Get("Content-Type") != "application/cloudevents-batch+json; charset=UTF-8" || r.Header.Get("Authorization") != "Bearer secret" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if c.refuse {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	for _, one := range batch {
		c.got = append(c.got, string(one))
	}
}

func (c *collector) has() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within thirty seconds", what)
		}
	}
}

// TestPost: a receiver gets every record as a CloudEvent of a batch, in the order of each
// file and byte for byte; once only across restarts, and all that it refused once it takes
// them; meanwhile readiness and metrics say what waits.
func TestPost(t *testing.T) {
	t.Parallel()
	c := &collector{}
	server := httptest.NewServer(c)
	defer server.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newTrail(t, audit.Sink{URL: server.URL, BearerTokenFile: setting.Path(token)})
	r.record(t, "1", "2")
	s, stop := r.run(t)
	eventually(t, "three records", func() bool { return len(c.has()) == 3 })
	r.record(t, "3")
	eventually(t, "two more", func() bool { return testutil.ToFloat64(s.records.WithLabelValues("there", "delivered")) == 5 })
	stop()
	c.mu.Lock()
	c.refuse = true
	c.mu.Unlock()
	r.record(t, "4")
	s, stop = r.run(t)
	eventually(t, "a failure", func() bool { return s.Check(t.Context()) != nil })
	if err := s.Check(t.Context()); !strings.Contains(err.Error(), "answers 503") {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(r.registry, "mayfly_audit_sink_behind_seconds", "mayfly_audit_sink_records_total"); n != 3 || err != nil {
		t.Errorf("%d series, %v", n, err)
	}
	stop() // a service that ends waits for no receiver
	c.mu.Lock()
	c.refuse = false
	c.mu.Unlock()
	s, _ = r.run(t)
	eventually(t, "the rest", func() bool { return len(c.has()) == 7 && s.Check(t.Context()) == nil })
	if got := strings.Join(serials(t, c.has()...), ""); got != "12-3-4-" {
		t.Errorf("got %s", got)
	}
	trail, err := os.ReadFile(string(r.config.Path))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(trail)) {
		if !slices.Contains(c.has(), strings.TrimSpace(line)) {
			t.Errorf("the receiver has no %s", line)
		}
	}
}

// TestOneType: a sink of one type gets no other.
func TestOneType(t *testing.T) {
	t.Parallel()
	var out buffer
	r := newTrail(t, audit.Sink{URL: "stdout:", Only: audit.Denied})
	r.out = &out
	r.record(t, "1", "2")
	r.run(t)
	eventually(t, "the refusal", func() bool { return strings.HasSuffix(out.String(), "\n") })
	if got := serials(t, strings.TrimSpace(out.String())); !slices.Equal(got, []string{"-"}) {
		t.Errorf("got %q", got)
	}
}

type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// TestAReaderThatHangs: nobody waits for it when the service ends, and however often it
// is tried, one write waits for it.
func TestAReaderThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		out, in := io.Pipe()
		r := newTrail(t, audit.Sink{URL: "stdout:"})
		r.out = in
		r.record(t, "1")
		s, stop := r.run(t)
		<-time.After(10 * time.Minute) // by the bubble's clock
		synctest.Wait()
		if s.Check(t.Context()) == nil {
			t.Error("it is said to take records")
		}
		stop()
		got := make([]byte, 1<<20)
		n, err := out.Read(got)
		if err != nil || bytes.Count(got[:n], []byte("\n")) != 1 {
			t.Errorf("%v: %s", err, got[:n])
		}
		synctest.Wait()
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// rsyslog is a real one, which writes what it gets as text into a file.
type rsyslog struct {
	dir, config string
	process     *exec.Cmd
}

func newRsyslog(t *testing.T) *rsyslog {
	t.Helper()
	dir, err := os.MkdirTemp("", "mayfly-syslog-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	r := &rsyslog{dir: dir, config: filepath.Join(dir, "rsyslog.conf")}
	t.Cleanup(func() {
		r.stop(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rsyslog) start(t *testing.T, port string) {
	t.Helper()
	page, err := os.ReadFile("../../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```rsyslog\n")
	text, _, found := strings.Cut(text, "```")
	text = strings.NewReplacer("/var/log/mayfly-audit.jsonl", r.dir+"/got", "/run/mayfly", r.dir, "10514", port,
		"%msg%", "%pri%|%app-name%|%msgid%|%timereported:::date-rfc3339%|%msg%", `global(`, `global(workDirectory="`+r.dir+`" `).Replace(text)
	if !found || !strings.Contains(text, "%pri%") {
		t.Fatalf("docs/audit.md has no configuration of rsyslog: %s", text)
	}
	if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r.process = exec.Command("rsyslogd", "-n", "-f", r.config, "-i", filepath.Join(r.dir, "pid"))
	r.process.Stderr = os.Stderr
	if err := r.process.Start(); err != nil {
		t.Fatalf("%v; on Debian, rsyslog is a package", err)
	}
}

func (r *rsyslog) stop(t *testing.T) {
	t.Helper()
	if r.process != nil {
		if err := errors.Join(r.process.Process.Signal(syscall.SIGTERM), r.process.Wait()); err != nil {
			t.Error(err)
		}
		r.process = nil
	}
}

// got are the lines that it wrote.
func (r *rsyslog) got() []string {
	b, _ := os.ReadFile(filepath.Join(r.dir, "got")) // there is none before the first
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// TestRsyslog: a real rsyslog gets every record by TCP and by its socket, though it starts
// late and is started anew, with priority, type and time of each.
func TestRsyslog(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"tcp", "unix"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			_, port, err := net.SplitHostPort(l.Addr().String())
			if err := errors.Join(err, l.Close()); err != nil {
				t.Fatal(err)
			}
			collector := newRsyslog(t)
			to := map[string]string{"tcp": "tcp://127.0.0.1:" + port, "unix": "unix://" + collector.dir + "/log"}[scheme]
			r := newTrail(t, audit.Sink{URL: to})
			r.record(t, "1", "2")
			s, _ := r.run(t)
			eventually(t, "a failure", func() bool { return s.Check(t.Context()) != nil })
			collector.start(t, port)
			eventually(t, "three messages", func() bool { return len(collector.got()) == 3 })
			collector.stop(t)
			r.record(t, "3")
			eventually(t, "another failure", func() bool { return s.Check(t.Context()) != nil })
			collector.start(t, port)
			eventually(t, "all messages", func() bool { return len(collector.got()) == 5 })
			var records []string
			for _, line := range collector.got() {
				field := strings.SplitN(line, "|", 5)
				records = append(records, field[4])
				want := map[bool]string{true: "110|mayfly|issued", false: "109|mayfly|denied"}[strings.Contains(line, "issued")]
				record, err := audit.ParseRecord([]byte(field[4]))
				at, err2 := time.Parse(time.RFC3339Nano, field[3])
				if got := strings.Join(field[:3], "|"); got != want || err != nil || err2 != nil || !at.Equal(record.Time.Truncate(time.Microsecond)) {
					t.Errorf("%s, want %s, of %v (%v, %v)", line, want, record.Time, err, err2)
				}
			}
			if got := strings.Join(serials(t, records...), ""); got != "12-3-" {
				t.Errorf("got %s", got)
			}
		})
	}
}

// TestSyslogOverTLS: a server is verified with ca_file, and each message has its length.
func TestSyslogOverTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS() // for its certificate
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pemOf(server.Certificate().Raw), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := listenTLS(server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var n int
			in := bufio.NewReader(conn)
			if _, err := fmt.Fscanf(in, "%d ", &n); err == nil {
				b := make([]byte, n)
				if _, err := io.ReadFull(in, b); err == nil {
					got <- string(b)
				}
			}
			_ = conn.Close()
		}
	}()
	r := newTrail(t, audit.Sink{URL: "tls://" + l.Addr().String(), CAFile: setting.Path(ca), Only: audit.Issued})
	r.record(t, "1")
	r.run(t)
	if m := <-got; !strings.HasPrefix(m, "<110>1 ") || !strings.HasSuffix(m, "}}") {
		t.Errorf("%s", m)
	}
	stranger := newTrail(t, audit.Sink{URL: "tls://" + l.Addr().String()})
	stranger.record(t, "1")
	s, _ := stranger.run(t)
	eventually(t, "a refusal of the server", func() bool { return s.Check(t.Context()) != nil })
	if err := s.Check(t.Context()); !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// listenTLS listens with the certificate of a server.
func listenTLS(server *httptest.Server) (net.Listener, error) {
	return tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: server.TLS.Certificates, MinVersion: tls.VersionTLS12})
}
