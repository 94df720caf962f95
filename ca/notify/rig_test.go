package notify

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/store/storetest"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// rig is Alerts over a store, with a clock of the test's.
type rig struct {
	*Alerts
	t     *testing.T
	now   time.Time
	known time.Time
	next  uint64 // entry of the log
	made  statements
}

// statements are what the test revoked.
type statements []string

func (s *statements) Size() uint64                      { return uint64(len(*s)) }
func (s *statements) Line(index uint64) ([]byte, error) { return []byte((*s)[index]), nil }

func newRig(t *testing.T, c store.Config, alerts Config) *rig {
	t.Helper()
	r := &rig{t: t, now: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}
	r.known = r.now
	db := storetest.Open(t, c)
	i := index.New()
	var err error
	r.Alerts, err = New(Options{
		Source: "https://ca.example.com", Known: func() time.Time { return r.known }, Index: i, Statements: &r.made,
		Now: func() time.Time { return r.now }, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.jitter = func() float64 { return 0.5 }
	r.use(alerts)
	i.SetTaker(r.Alerts)
	for _, err := range []error{r.Open(t.Context(), db), i.Open(t.Context(), db)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// use puts a configuration in force, which must be good.
func (r *rig) use(c Config) {
	r.t.Helper()
	var f setting.Faults
	c.Check("alerts", &f)
	if err := f.Err(); err != nil {
		r.t.Fatal(err)
	}
	l := Load("alerts", c, &f)
	if err := f.Err(); err != nil {
		r.t.Fatal(err)
	}
	r.Use(l)
}

// kept is an entry with these fields.
func (r *rig) kept(fields map[string]string, uses ...index.Event) index.Kept {
	r.next++
	return index.Kept{FirstUses: uses, Certificate: index.Certificate{
		Index: r.next - 1, Logged: r.now, NotBefore: r.now, NotAfter: r.now.Add(10 * time.Minute), Fields: fields,
	}}
}

// take has entries kept, as the index does.
func (r *rig) take(all ...index.Kept) {
	r.t.Helper()
	if err := r.store.Write(r.t.Context(), func(tx store.Handle) error { return r.Take(r.t.Context(), tx, "log", slices.Values(all)) }); err != nil {
		r.t.Fatal(err)
	}
}

// pass lets time go by, a step at a time, as Run does.
func (r *rig) pass(d, step time.Duration) {
	r.t.Helper()
	for end := r.now.Add(d); r.now.Before(end); {
		r.now = r.now.Add(step)
		r.known = r.now
		r.round()
	}
}

func (r *rig) round() {
	r.t.Helper()
	c := r.current.Load()
	r.look(r.t.Context(), c)
	for _, t := range c.targets {
		for r.deliver(r.t.Context(), t) {
		}
	}
	if err := r.all[""]; err != nil && err.err != nil {
		r.t.Fatal(err.err)
	}
}

// receiver is a webhook's server, which takes what it gets unless it is down.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	down     bool
	asked    int
	messages []message
}

type message struct {
	header http.Header
	body   []byte
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asked++
		if r.down || err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		r.messages = append(r.messages, message{req.Header, body})
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) set(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

// taken is what was received since the last time: the events of all messages.
func (r *receiver) taken(t *testing.T) (all []event) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.messages {
		events := make([]event, 1)
		to := any(&events[0])
		if m.header.Get("Content-Type") == "application/cloudevents-batch+json" {
			to = &events
		}
		if err := json.Unmarshal(m.body, to); err != nil {
			t.Fatalf("%v: %s", err, m.body)
		}
		all = append(all, events...)
	}
	r.messages = nil
	return all
}

// sans are the names of what events are about.
func sans(all []event) (names []string) {
	for _, e := range all {
		names = append(names, e.Data["san"])
	}
	return names
}

var someSecret = "whsec_" + base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))

// secret is a file with a text.
func secret(t *testing.T, text string) setting.Secret {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return setting.Secret{File: setting.Path(path)}
}

func hook(t *testing.T, name, url string) Target {
	return Target{Name: name, Webhook: url, Secret: secret(t, someSecret), AllowNetworks: []string{"127.0.0.0/8"}}
}

func email(name string) map[string]string {
	return map[string]string{"san": name, "san_type": "email", "identity": name, "issuer": "https://login.example.com", "serial": "12ab"}
}

// captured is a sender that keeps what it is given, by recipient.
type captured struct {
	mu  sync.Mutex
	got map[string][][]event
	err error
}

func (c *captured) send(_ context.Context, recipient string, events []event, _ time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if c.got == nil {
		c.got = map[string][][]event{}
	}
	c.got[recipient] = append(c.got[recipient], events)
	return nil
}

func numbered(n int) string { return fmt.Sprintf("n%04d@example.com", n) }

func all(n int) (names []string) {
	for i := range n {
		names = append(names, numbered(i))
	}
	return names
}

// pass lets the bubble's time go by.
func pass(ctx context.Context, d time.Duration) { _ = wait.For(ctx, d) }

func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}
