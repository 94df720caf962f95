package server

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/server/internal/unixsocket"
)

// Config is where the service listens and what it lets a client use.
type Config struct {
	// HTTPAddress is where REST is served (`127.0.0.1:5555`). With tls it also
	// speaks gRPC on the same port; without, gRPC clients with prior knowledge
	// (h2c) may use it too. Port 0 takes a free port. `unix:/run/mayfly/http.sock` is a
	// Unix socket for a proxy in front, to which owner and group may connect; it
	// wants public_url, and the proxy in trusted_proxies.
	HTTPAddress string `yaml:"http_address"`
	// GRPCAddress is where gRPC alone is served, on a port or a Unix socket. Empty
	// serves none there.
	GRPCAddress string `yaml:"grpc_address"`
	// MetricsAddress is where /metrics is served, apart from the API. Empty serves none.
	MetricsAddress string `yaml:"metrics_address"`
	// Reflection serves gRPC's reflection on every port. Without it only a port of
	// loopback has it, for people who try the API with a tool.
	Reflection bool `yaml:"reflection,omitempty"`
	// MetricsHosts are further names, in lower case and without port, by which
	// /metrics may be asked for (`mayfly.monitoring.svc`). Addresses, `localhost` and
	// the host of metrics_address always may: any other name in a request's Host could
	// be that of a web page that has a browser read the metrics (DNS rebinding).
	MetricsHosts []string `yaml:"metrics_hosts,omitempty"`
	// Profiling serves Go's profiles at /debug/pprof/ beside /metrics, for
	// whoever can reach that listener.
	Profiling bool `yaml:"profiling,omitempty"`
	// PublicURL is the URL under which clients reach REST, as written into the
	// documents they fetch (`https://ca.example.com`).
	PublicURL string `yaml:"public_url,omitempty"`
	// TLS is the certificate of the API listeners. Without it they speak plain
	// text, which is right only on loopback or behind a proxy that ends TLS:
	// requests carry identity tokens.
	TLS TLSConfig `yaml:"tls,omitempty"`
	// RequestTimeout is how long one API request may take, the log and the
	// signer included.
	RequestTimeout time.Duration `yaml:"request_timeout"`
	// ShutdownDelay is how long the service goes on answering new requests with
	// 503 after it was told to stop, so that load balancers notice first.
	ShutdownDelay time.Duration `yaml:"shutdown_delay"`
	// ShutdownGrace is how long requests in flight may take to finish, after
	// which they are cut off.
	ShutdownGrace time.Duration `yaml:"shutdown_grace"`
	// CORSOrigins are the origins whose pages may read the API (`https://app.example.com`).
	// `*` alone means all: nothing here is authorised by a cookie.
	CORSOrigins []string `yaml:"cors_origins"`
	// Limits bound what a client can make the service spend.
	Limits Limits `yaml:"limits"`
	// RateLimits bound how often a client may ask for certificates.
	RateLimits RateLimits `yaml:"rate_limits"`
	// TrustedProxies are the networks (`10.0.0.0/8`) whose proxies are believed
	// in X-Forwarded-For, which then says whom the limit per address, the log and
	// the audit trail mean. `unix` is whoever connects to a Unix socket. Without the
	// proxy in front in this list, all clients behind it count as one address.
	TrustedProxies []string `yaml:"trusted_proxies,omitempty"`
}

// TLSConfig names the certificate of the API listeners. Both files are read
// again when they change; a pair that doesn't fit leaves the old one in force.
type TLSConfig struct {
	// CertFile is the certificate followed by its intermediates, in PEM.
	CertFile setting.Path `yaml:"cert_file,omitempty"`
	// KeyFile is its private key in PEM, not readable by others.
	KeyFile setting.Path `yaml:"key_file,omitempty"`
}

// Enabled reports whether the listeners speak TLS.
func (t TLSConfig) Enabled() bool { return t.CertFile != "" || t.KeyFile != "" }

// maxTokenBytes is the longest token that identity looks at: a higher limit would
// have no effect.
const maxTokenBytes = 16 << 10

// Limits bound what a client can make the service spend. Each is checked
// before the thing it limits is parsed. docs/limits.md says what they come to.
type Limits struct {
	// BodyBytes is the largest request body.
	BodyBytes int `yaml:"body_bytes"`
	// HeaderBytes is the largest request head; a token may come in it.
	HeaderBytes int `yaml:"header_bytes"`
	// TokenBytes is the largest identity token; at most 16384.
	TokenBytes int `yaml:"token_bytes"`
	// Issuances is how many certificates may be in the making at once; more are
	// answered with 503 OVERLOADED.
	Issuances int `yaml:"issuances"`
	// Timestamps is how many timestamps may be in the making at once, of the places of
	// requests that wait; at most 128. More are answered with 503 OVERLOADED.
	Timestamps int `yaml:"timestamps"`
	// Connections is how many connections each listener keeps. When there are
	// more, the one that has been quiet longest is closed.
	Connections int `yaml:"connections"`
	// Streams is how many HTTP/2 requests one connection may have open.
	Streams int `yaml:"streams"`
	// HeaderTimeout is how long a request's head may take to arrive.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// ReadTimeout is how long a whole request may take to arrive.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// WriteTimeout is how long a client may take to read an answer; of a stream,
	// each message.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// IdleTimeout is how long a connection may wait between requests.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// StreamTime is how long a gRPC health watch or a reflection stream may stay
	// open; its client opens it again.
	StreamTime time.Duration `yaml:"stream_time"`
}

// RateLimits bound how often certificates may be asked for. What is over a
// limit is answered with 429 RATE_EXCEEDED and Retry-After.
type RateLimits struct {
	// PerAddress is for one client address (IPv6: one /64), before a request is
	// read. A whole CI fleet may share one address behind a NAT: the default
	// keeps a single source of rubbish from taking the service, no more. Its
	// refusals are counted in metrics, not written to the audit trail.
	PerAddress Rate `yaml:"per_address"`
	// PerPrincipal is for one issuer and subject, once the token is verified.
	PerPrincipal Rate `yaml:"per_principal"`
	// PerIssuer is for all tokens of one issuer together, once verified. Off by
	// default: where there is one issuer it would be a limit on everybody.
	PerIssuer Rate `yaml:"per_issuer"`
	// Timestamps is for the timestamps that one client address (IPv6: one /64) asks for.
	Timestamps Rate `yaml:"timestamps"`
	// LogReads is for what one client address (IPv6: one /64) reads of the logs that
	// are served here. A monitor that reads a million entries for the first time asks
	// for some 8,000 tiles, and stays within the default's burst.
	LogReads Rate `yaml:"log_reads"`
}

// Rate is a token bucket.
type Rate struct {
	// Rate is how many requests a second are let through in the long run; 0 sets no limit.
	Rate float64 `yaml:"rate"`
	// Burst is how many may come at once after a quiet time.
	Burst int `yaml:"burst"`
}

// DefaultConfig listens on loopback alone, with limits that suit two cores and
// 512 MiB.
func DefaultConfig() Config {
	return Config{
		HTTPAddress:    "127.0.0.1:5555",
		GRPCAddress:    "127.0.0.1:5554",
		MetricsAddress: "127.0.0.1:2112",
		RequestTimeout: 10 * time.Second,
		ShutdownGrace:  20 * time.Second,
		CORSOrigins:    []string{"*"},
		Limits: Limits{
			BodyBytes:     64 << 10,
			HeaderBytes:   32 << 10,
			TokenBytes:    16 << 10,
			Issuances:     256,
			Timestamps:    64,
			Connections:   512,
			Streams:       128,
			HeaderTimeout: 5 * time.Second,
			ReadTimeout:   10 * time.Second,
			WriteTimeout:  10 * time.Second,
			IdleTimeout:   time.Minute,
			StreamTime:    10 * time.Minute,
		},
		// Far above what honest clients do, and far below what two cores can take.
		RateLimits: RateLimits{
			PerAddress:   Rate{Rate: 200, Burst: 2000},
			PerPrincipal: Rate{Rate: 20, Burst: 500},
			PerIssuer:    Rate{Rate: 0, Burst: 5000},
			Timestamps:   Rate{Rate: 200, Burst: 2000},
			LogReads:     Rate{Rate: 500, Burst: 10000},
		},
	}
}

// Check adds all that is wrong in c.
func (c *Config) Check(path string, f *setting.Faults) {
	c.checkAddresses(path, f)
	if c.PublicURL != "" {
		checkOrigin(setting.Join(path, "public_url"), c.PublicURL, true, f)
	}
	switch {
	case c.TLS.CertFile != "" && c.TLS.KeyFile == "":
		f.Add(setting.Join(path, "tls.key_file"), "required with cert_file")
	case c.TLS.CertFile == "" && c.TLS.KeyFile != "":
		f.Add(setting.Join(path, "tls.cert_file"), "required with key_file")
	}
	checkRange(setting.Join(path, "request_timeout"), c.RequestTimeout, 100*time.Millisecond, 5*time.Minute, f)
	checkRange(setting.Join(path, "shutdown_delay"), c.ShutdownDelay, 0, 5*time.Minute, f)
	checkRange(setting.Join(path, "shutdown_grace"), c.ShutdownGrace, 0, 10*time.Minute, f)
	for i, o := range c.CORSOrigins {
		switch at := setting.Index(setting.Join(path, "cors_origins"), i); {
		case o != "*":
			checkOrigin(at, o, false, f)
		case len(c.CORSOrigins) > 1:
			f.Add(at, "`*` already means all: remove it or the others")
		}
	}
	for i, h := range c.MetricsHosts {
		f.When(h == "" || h != hostOf(h), setting.Index(setting.Join(path, "metrics_hosts"), i), "%q is not a host's name in lower case, without scheme and port", h)
	}
	c.Limits.check(setting.Join(path, "limits"), f)
	c.RateLimits.check(setting.Join(path, "rate_limits"), f)
	for i, p := range c.TrustedProxies {
		if _, err := parseNetwork(p); err != nil {
			f.Add(setting.Index(setting.Join(path, "trusted_proxies"), i), "%q is not a network such as 10.0.0.0/8 or fd00::/8, nor unix", p)
		}
	}
}

// parseNetwork reads a prefix, or a single address; of `unix`, the zero prefix.
func parseNetwork(text string) (netip.Prefix, error) {
	if text == "unix" {
		return netip.Prefix{}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

// checkAddresses adds what is wrong with the listeners' addresses, and where two have
// one fixed address.
func (c *Config) checkAddresses(path string, f *setting.Faults) {
	f.When(c.HTTPAddress == "", setting.Join(path, "http_address"), "required: host:port, such as 127.0.0.1:5555")
	taken := map[string]string{}
	for _, a := range []struct{ field, address string }{
		{"http_address", c.HTTPAddress}, {"grpc_address", c.GRPCAddress}, {"metrics_address", c.MetricsAddress},
	} {
		at := setting.Join(path, a.field)
		if _, socket := socketPath(a.address); socket && a.field == "metrics_address" {
			f.Add(at, "%q is a Unix socket, which Prometheus can't read: give host:port, such as 127.0.0.1:2112", a.address)
		} else if a.address != "" {
			checkAddress(at, a.address, f)
		}
		_, port, err := net.SplitHostPort(a.address)
		if err != nil || port == "0" {
			continue
		}
		if other, ok := taken[a.address]; ok {
			f.Add(at, "is the address of %s too; give each its own", other)
		}
		taken[a.address] = a.field
	}
	if _, socket := socketPath(c.HTTPAddress); socket && c.PublicURL == "" {
		f.Add(setting.Join(path, "public_url"), "required where http_address is a Unix socket: the URL at which the proxy in front serves REST, such as https://ca.example.com")
	}
}

func (l *Limits) check(path string, f *setting.Faults) {
	checkRange(setting.Join(path, "body_bytes"), l.BodyBytes, 4<<10, 1<<20, f)
	checkRange(setting.Join(path, "header_bytes"), l.HeaderBytes, 4<<10, 1<<20, f)
	checkRange(setting.Join(path, "token_bytes"), l.TokenBytes, 1<<10, maxTokenBytes, f)
	checkRange(setting.Join(path, "issuances"), l.Issuances, 1, 1<<16, f)
	checkRange(setting.Join(path, "timestamps"), l.Timestamps, 1, waitingPlaces/2, f)
	checkRange(setting.Join(path, "connections"), l.Connections, 1, 1<<20, f)
	checkRange(setting.Join(path, "streams"), l.Streams, 1, 1<<16, f)
	checkRange(setting.Join(path, "header_timeout"), l.HeaderTimeout, 10*time.Millisecond, time.Minute, f)
	checkRange(setting.Join(path, "read_timeout"), l.ReadTimeout, 10*time.Millisecond, time.Minute, f)
	checkRange(setting.Join(path, "write_timeout"), l.WriteTimeout, 10*time.Millisecond, time.Minute, f)
	checkRange(setting.Join(path, "idle_timeout"), l.IdleTimeout, 10*time.Millisecond, time.Hour, f)
	checkRange(setting.Join(path, "stream_time"), l.StreamTime, 10*time.Millisecond, 24*time.Hour, f)
	if l.TokenBytes <= maxTokenBytes && l.TokenBytes > max(l.BodyBytes, l.HeaderBytes) {
		f.Add(setting.Join(path, "token_bytes"), "%d fits neither into body_bytes, %d, nor into header_bytes, %d", l.TokenBytes, l.BodyBytes, l.HeaderBytes)
	}
	f.When(l.HeaderTimeout > l.ReadTimeout, setting.Join(path, "header_timeout"), "%v has no effect beyond read_timeout, %v, which is for the whole request", l.HeaderTimeout, l.ReadTimeout)
}

func (l *RateLimits) check(path string, f *setting.Faults) {
	const mostRate, mostBurst = 1e6, 1_000_000
	for _, limit := range rateLimits {
		at, rate := setting.Join(path, limit.setting), limit.rate(l)
		if v := rate.Rate; !(v >= 0 && v <= mostRate) {
			f.Add(setting.Join(at, "rate"), "%v is outside 0 to %d requests a second; 0 sets no limit", v, int(mostRate))
		}
		if rate.Rate > 0 {
			checkRange(setting.Join(at, "burst"), rate.Burst, 1, mostBurst, f)
		}
	}
}

// socketPath is the path of an address that is a Unix socket.
func socketPath(address string) (path string, ok bool) { return strings.CutPrefix(address, "unix:") }

func checkAddress(path, address string, f *setting.Faults) {
	if socket, ok := socketPath(address); ok {
		if !filepath.IsAbs(socket) || filepath.Clean(socket) != socket {
			f.Add(path, "%q is not unix: and an absolute path, such as unix:/run/mayfly/http.sock", address)
		} else if len(socket) > unixsocket.MaxPath {
			f.Add(path, "%q is too long: a socket's path has at most %d bytes", address, unixsocket.MaxPath)
		}
		return
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		f.Add(path, "%q is not host:port, such as 127.0.0.1:5555", address)
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		f.Add(path, "port %q is not a number from 0 to 65535", port)
	}
}

// checkOrigin wants http(s)://host[:port], with a path only where allowed.
func checkOrigin(path, text string, pathAllowed bool, f *setting.Faults) {
	u, err := url.Parse(text)
	bad := err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil ||
		u.RawQuery != "" || u.Fragment != "" || !pathAllowed && u.Path != ""
	f.When(bad, path, "%q is not a URL such as https://ca.example.com", text)
}

func checkRange[T int | time.Duration](path string, v, least, most T, f *setting.Faults) {
	f.When(v < least || v > most, path, "%v is outside %v to %v", v, least, most)
}
