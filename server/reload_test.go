package server

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// New limits are in force for the next request; callers keep what they used of
// those that stay.
func TestReloadChangesLimitsAndDocuments(t *testing.T) {
	t.Parallel()
	k := newClock()
	r := newRig(t, limited(k, RateLimits{PerAddress: Rate{Rate: 0.1, Burst: 1}}))
	readRefusal(t, r.sendFrom(t, "192.0.2.1:1", []byte(`{`)), http.StatusBadRequest, fault.RequestMalformed)
	next := r.server.config
	next.Limits.TokenBytes = 4 << 10
	next.TrustedProxies = []string{"192.0.2.1"}
	prepare := func() (commit func()) {
		t.Helper()
		return r.prepare(t, next, func(s *Served) { s.Documents.TrustedRoot = []byte(`{"new":1}`) })
	}
	_ = prepare() // given up
	commit := prepare()
	if got := text(t, r.send(t, http.MethodGet, "/trusted_root.json", nil)); !strings.Contains(got, "root") {
		t.Errorf("it changed before it was committed: %s", got)
	}
	commit()
	if got := text(t, r.send(t, http.MethodGet, "/trusted_root.json", nil)); got != `{"new":1}` {
		t.Errorf("the document is still %s", got)
	}
	if got := text(t, r.send(t, http.MethodGet, "/signing_config.json", nil)); !strings.Contains(got, "signing") {
		t.Errorf("a document that stayed as it was is gone: %s", got)
	}
	readRefusal(t, r.sendFrom(t, "192.0.2.1:1", []byte(`{`)), http.StatusTooManyRequests, fault.RateExceeded)
	readRefusal(t, r.sendFrom(t, "192.0.2.1:1", []byte(`{`), "198.51.100.1"), http.StatusBadRequest, fault.RequestMalformed)
	next.RateLimits = RateLimits{}
	prepare()()
	big := r.bodyV2(t)
	setToken(big, strings.Repeat("x", 5<<10))
	readRefusal(t, r.sendFrom(t, "192.0.2.1:1", big), http.StatusRequestEntityTooLarge, fault.TokenTooLarge)
	next.Limits.TokenBytes = 0
	if _, err := r.server.Prepare(next, Served{}); err == nil || !strings.Contains(err.Error(), "server.limits.token_bytes") {
		t.Errorf("a bad one was taken: %v", err)
	}
}

// Another pair of files is served as soon as it is committed; one that can't be
// used is refused, and changes nothing.
func TestReloadServesAnotherCertificate(t *testing.T) {
	t.Parallel()
	dir, other := t.TempDir(), t.TempDir()
	first, _ := serverFiles(t, dir, "first")
	r := run(t, func(c *Config, _ *Options) { c.TLS = first })
	name := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", r.server.Addresses().HTTP.String(), &tls.Config{InsecureSkipVerify: true}) // #nosec G402 -- only its name is asked for
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	if got := name(); got != "first" {
		t.Fatal(got)
	}
	next := r.server.config
	next.TLS, _ = serverFiles(t, other, "second")
	commit := r.prepare(t, next, nil)
	if got := name(); got != "first" {
		t.Errorf("%s before the commit", got)
	}
	commit()
	if got := name(); got != "second" {
		t.Errorf("%s after the commit", got)
	}
	next.TLS.KeyFile = first.KeyFile
	if _, err := r.server.Prepare(next, Served{}); err == nil || !strings.Contains(err.Error(), "server.tls: ") {
		t.Errorf("a key of another certificate was taken: %v", err)
	}
	serverFiles(t, other, "third") // the new files are watched as the old ones were
	if got := name(); got != "third" {
		t.Errorf("%s after a change", got)
	}
}
