package server

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
	fulciov2 "github.com/mayfly-ca/mayfly/proto/dev/sigstore/fulcio/v2"
)

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Now()} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func limited(k *clock, l RateLimits) rigOption {
	return func(c *Config, o *Options) { c.RateLimits, o.Now = l, k.now }
}

// sendFrom is a v2 request of an address, with the lines of X-Forwarded-For.
func (r *rig) sendFrom(t testing.TB, from string, body any, forwarded ...string) *http.Response {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, v2Path, strings.NewReader(string(asJSON(t, body))))
	request.RemoteAddr = from
	request.Header["X-Forwarded-For"] = forwarded
	recorder := httptest.NewRecorder()
	r.server.serveHTTP(recorder, request)
	return recorder.Result()
}

// What an address sends over its limit is answered before it is read: 429 with
// Retry-After, nothing on record, and nobody else is affected.
func TestAddressLimit(t *testing.T) {
	t.Parallel()
	k := newClock()
	r := newRig(t, limited(k, RateLimits{PerAddress: Rate{Rate: 0.5, Burst: 3}}))
	garbage := []byte(`{`)
	for range 3 {
		readRefusal(t, r.sendFrom(t, "192.0.2.1:1000", garbage), http.StatusBadRequest, fault.RequestMalformed)
	}
	recorded := len(r.audit.of(audit.Denied))
	shed := r.sendFrom(t, "192.0.2.1:1001", garbage)
	if b := readRefusal(t, shed, http.StatusTooManyRequests, fault.RateExceeded); b.Code != int(codes.ResourceExhausted) || b.Details[0].Metadata["limit"] != limitAddress.name {
		t.Errorf("%+v", b)
	}
	if after := shed.Header.Get("Retry-After"); after != "2" {
		t.Errorf("Retry-After: %q, want 2 seconds", after)
	}
	if n := len(r.audit.of(audit.Denied)); n != recorded {
		t.Errorf("%d records of load that was shed", n-recorded)
	}
	chainOf(t, r.sendFrom(t, "192.0.2.2:1000", r.bodyV2(t)))
	// Reads and probes have no limit.
	for range 10 {
		if response := r.send(t, http.MethodGet, "/api/v2/trustBundle", nil); response.StatusCode != http.StatusOK {
			t.Fatalf("a read answered %d", response.StatusCode)
		}
	}
	k.advance(2 * time.Second)
	readRefusal(t, r.sendFrom(t, "192.0.2.1:1002", garbage), http.StatusBadRequest, fault.RequestMalformed)
	if text := metricsText(t, r); !strings.Contains(text, `mayfly_rate_limited_total{limit="address"} 1`) {
		t.Error("the metric doesn't count it")
	}
}

func metricsText(t *testing.T, r *rig) string {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			b.WriteString(f.GetName() + "{")
			for _, l := range m.GetLabel() {
				fmt.Fprintf(&b, "%s=%q", l.GetName(), l.GetValue())
			}
			fmt.Fprintf(&b, "} %v\n", m.GetCounter().GetValue())
		}
	}
	return b.String()
}

func TestAddressLimitOverGRPC(t *testing.T) {
	t.Parallel()
	k := newClock()
	r := run(t, limited(k, RateLimits{PerAddress: Rate{Rate: 1, Burst: 1}}), func(c *Config, _ *Options) { c.TrustedProxies = []string{"127.0.0.1"} })
	at := r.server.Addresses()
	for _, address := range []string{at.GRPC.String(), at.HTTP.String()} {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		client := fulciov2.NewCAClient(conn)
		from := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", "198.51.100.7, 127.0.0.1")
		ask := func(ctx context.Context) codes.Code {
			_, err := client.CreateSigningCertificate(ctx, &fulciov2.CreateSigningCertificateRequest{})
			return status.Code(err)
		}
		if got := ask(from); got != codes.Unauthenticated {
			t.Errorf("%s: the first: %v", address, got)
		}
		if got := ask(from); got != codes.ResourceExhausted {
			t.Errorf("%s: the second: %v", address, got)
		}
		other := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", "198.51.100.8")
		if got := ask(other); got != codes.Unauthenticated {
			t.Errorf("%s: another client's: %v", address, got)
		}
		k.advance(time.Minute)
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	if denied := r.audit.of(audit.Denied); len(denied) == 0 || denied[0].RemoteAddr != "198.51.100.7" {
		t.Errorf("the record names %+v", denied)
	}
}

// A principal that is over its limit is refused on record, before its key is looked at.
func TestPrincipalLimit(t *testing.T) {
	t.Parallel()
	k := newClock()
	r := newRig(t, limited(k, RateLimits{PerPrincipal: Rate{Rate: 0.1, Burst: 2}}))
	for range 2 {
		chainOf(t, r.postV2(t, r.bodyV2(t)))
	}
	issued := r.log.entries.Load()
	response := r.postV2(t, r.bodyV2(t))
	b := readRefusal(t, response, http.StatusTooManyRequests, fault.RateExceeded)
	if b.Details[0].Metadata["limit"] != limitPrincipal.name || response.Header.Get("Retry-After") != "10" {
		t.Errorf("%+v, Retry-After %s", b, response.Header.Get("Retry-After"))
	}
	denied := r.audit.of(audit.Denied)
	if len(denied) != 1 || denied[0].Reason != fault.RateExceeded || denied[0].Subject == "" {
		t.Errorf("on record: %+v", denied)
	}
	if r.log.entries.Load() != issued {
		t.Error("a refused request reached the log")
	}
	body := r.bodyV2(t)
	setToken(body, r.issuer.Token(t, object{"sub": "bob"}))
	chainOf(t, r.postV2(t, body)) // somebody else
	k.advance(10 * time.Second)
	chainOf(t, r.postV2(t, r.bodyV2(t)))
}

func TestIssuerLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t, limited(newClock(), RateLimits{PerIssuer: Rate{Rate: 1, Burst: 1}}))
	chainOf(t, r.postV2(t, r.bodyV2(t)))
	body := r.bodyV2(t)
	setToken(body, r.issuer.Token(t, object{"sub": "bob"}))
	b := readRefusal(t, r.postV2(t, body), http.StatusTooManyRequests, fault.RateExceeded)
	if b.Details[0].Metadata["limit"] != limitIssuer.name {
		t.Errorf("%+v", b)
	}
}

// The defaults let a CI fleet behind one address start at once.
func TestDefaultLimitsLetAFleetThrough(t *testing.T) {
	t.Parallel()
	l, now := newLimiters(DefaultConfig().RateLimits, nil), time.Now()
	for n := range 2000 {
		if f := l.address(limitAddress, netip.MustParseAddr("192.0.2.1"), now); f != nil {
			t.Fatalf("job %d: %v", n, f)
		}
	}
	if l.address(limitAddress, netip.MustParseAddr("192.0.2.1"), now) == nil {
		t.Error("no limit at all")
	}
}

// A flood from 100,000 addresses doesn't grow the memory, and one IPv6 customer
// is one address.
func TestAddressesAreBounded(t *testing.T) {
	t.Parallel()
	l, now := newLimiters(DefaultConfig().RateLimits, nil), time.Now()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for n := range 100_000 {
		l.address(limitAddress, netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), now)
	}
	if got := l.buckets[limitAddress].callers.Len(); got != maxCallers {
		t.Errorf("%d are remembered", got)
	}
	const most = 16 << 20 // other tests run beside this one
	if after := heap(); after > before+most {
		t.Errorf("%d bytes more", after-before)
	}
	runtime.KeepAlive(l)
	six := newLimiters(RateLimits{PerAddress: Rate{Rate: 1, Burst: 1}}, nil)
	if six.address(limitAddress, netip.MustParseAddr("2001:db8::1"), now) != nil || six.address(limitAddress, netip.MustParseAddr("2001:db8::ffff:2"), now) == nil {
		t.Error("two addresses of one /64 aren't one")
	}
	if six.address(limitAddress, netip.MustParseAddr("2001:db8:0:1::1"), now) != nil {
		t.Error("another /64 is limited too")
	}
	if six.address(limitAddress, netip.MustParseAddr("::ffff:192.0.2.1"), now) != nil || six.address(limitAddress, netip.MustParseAddr("192.0.2.1"), now) == nil {
		t.Error("a mapped address isn't the IPv4 address")
	}
}

func TestClientBehindProxies(t *testing.T) {
	t.Parallel()
	trusted := proxies{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for name, c := range map[string]struct {
		from      string
		forwarded []string
		want      string
	}{
		"nobody in front":         {"192.0.2.1", nil, "192.0.2.1"},
		"a stranger's word":       {"192.0.2.1", []string{"198.51.100.1"}, "192.0.2.1"},
		"one proxy":               {"10.0.0.1", []string{"198.51.100.1"}, "198.51.100.1"},
		"what the client wrote":   {"10.0.0.1", []string{"1.1.1.1, 198.51.100.1"}, "198.51.100.1"},
		"two proxies":             {"10.0.0.1", []string{"1.1.1.1, 198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		"two header lines":        {"10.0.0.1", []string{"1.1.1.1, 198.51.100.1", "10.0.0.2"}, "198.51.100.1"},
		"with a port":             {"10.0.0.1", []string{"198.51.100.1:443"}, "198.51.100.1"},
		"IPv6":                    {"fd00::1", []string{"[2001:db8::1]:443"}, "2001:db8::1"},
		"IPv6 in brackets":        {"fd00::1", []string{"[2001:db8::1]"}, "2001:db8::1"},
		"nothing but proxies":     {"10.0.0.1", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		"no header from a proxy":  {"10.0.0.1", nil, "10.0.0.1"},
		"an empty header":         {"10.0.0.1", []string{""}, "10.0.0.1"},
		"not an address":          {"10.0.0.1", []string{"unknown"}, "10.0.0.1"},
		"not an address, further": {"10.0.0.1", []string{"x, 10.0.0.2"}, "10.0.0.2"},
		"more hops than there are": {
			"10.0.0.1", []string{"198.51.100.1" + strings.Repeat(", 10.0.0.2", 10_000)}, "10.0.0.2",
		},
	} {
		if got := trusted.client(netip.MustParseAddr(c.from), c.forwarded); got.String() != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func FuzzClient(f *testing.F) {
	f.Add("198.51.100.1, 10.0.0.2", "10.0.0.3:80")
	f.Add(",,", "[::1%eth0]:1")
	trusted := proxies{netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, a, b string) {
		if got := trusted.client(netip.MustParseAddr("10.0.0.1"), []string{a, b}); !got.IsValid() || got.Zone() != "" {
			t.Errorf("%v", got)
		}
	})
}

func TestRateLimitsCheck(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	c.RateLimits.PerAddress = Rate{Rate: -1, Burst: 5}
	c.RateLimits.PerPrincipal = Rate{Rate: 1, Burst: 0}
	c.RateLimits.PerIssuer = Rate{Rate: 0, Burst: 0}
	c.TrustedProxies = []string{"10.0.0.0/8", "fd00::1", "proxy.example.com"}
	var f setting.Faults
	c.Check("server", &f)
	want := "server.rate_limits.per_address.rate: -1 is outside 0 to 1000000 requests a second; 0 sets no limit\n" +
		"server.rate_limits.per_principal.burst: 0 is outside 1 to 1000000\n" +
		"server.trusted_proxies[2]: \"proxy.example.com\" is not a network such as 10.0.0.0/8 or fd00::/8, nor unix"
	if err := f.Err(); err == nil || err.Error() != want {
		t.Errorf("got:\n%v", err)
	}
}

// However many addresses and principals are shed, there are no new series.
func TestRateLimitsMakeNoSeries(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config, o *Options) {
		c.RateLimits = RateLimits{PerAddress: Rate{Rate: 0.001, Burst: 1}}
		o.Logger = nil
	})
	r.sendFrom(t, "192.0.2.1:1", []byte(`{`))
	r.sendFrom(t, "192.0.2.1:1", []byte(`{`))
	before := strings.Count(metricsText(t, r), "\n")
	for n := range 5_000 {
		r.sendFrom(t, fmt.Sprintf("10.1.%d.%d:1", n/2>>8, n/2&255), []byte(`{`))
	}
	if after := strings.Count(metricsText(t, r), "\n"); after != before {
		t.Errorf("%d series became %d", before, after)
	}
}

func BenchmarkAdmit(b *testing.B) {
	l, now, n := newLimiters(RateLimits{PerAddress: Rate{Rate: 1e6, Burst: 1e6}}, nil), time.Now(), 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		l.address(limitAddress, netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), now)
	}
}
