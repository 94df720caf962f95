package server

import (
	"bytes"
	"context"
	"encoding/asn1"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/ceremony"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// heldTimestamps is a real timestamp authority that a test can hold up, or break.
type heldTimestamps struct {
	*timestamp.InForce
	chain  []byte
	before func(ctx context.Context) *fault.Error
}

func (h *heldTimestamps) ReplyDER(ctx context.Context, query []byte) ([]byte, *fault.Error) {
	if h.before != nil {
		if f := h.before(ctx); f != nil {
			return []byte("a reply that says so"), f
		}
	}
	return h.InForce.ReplyDER(ctx, query)
}

func newTimestamps(t *testing.T) *heldTimestamps {
	t.Helper()
	made, err := ceremony.CreateFiles(ceremony.CreateOptions{Dir: filepath.Join(t.TempDir(), "ca"), Organization: "Example", Now: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	c := timestamp.DefaultConfig()
	c.Chain, c.Key = setting.Path(made.Timestamps), setting.KeyRef("file:"+made.TimestampsKey)
	a, err := timestamp.Load(t.Context(), c, "timestamp", time.Now(), kms.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := timestamp.NewInForce(timestamp.Options{Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	f.Use(a)
	chain, err := os.ReadFile(made.Timestamps)
	if err != nil {
		t.Fatal(err)
	}
	return &heldTimestamps{InForce: f, chain: chain}
}

func withTimestamps(h *heldTimestamps) rigOption {
	return func(_ *Config, o *Options) { o.Timestamps = h }
}

const asQuery = "application/timestamp-query"

func (r *rig) stamp(t *testing.T, body []byte, media string) *http.Response {
	t.Helper()
	return r.send(t, http.MethodPost, timestamp.Path, body, "Content-Type", media)
}

// pkiStatus is the status in a TimeStampResp.
func pkiStatus(t *testing.T, response *http.Response) int {
	t.Helper()
	body := text(t, response)
	if media := response.Header.Get("Content-Type"); media != "application/timestamp-reply" {
		t.Fatalf("%d, %s: %s", response.StatusCode, media, body)
	}
	var r struct {
		Status struct{ Status int }
		Token  asn1.RawValue `asn1:"optional"`
	}
	if _, err := asn1.Unmarshal([]byte(body), &r); err != nil {
		t.Fatal(err)
	}
	return r.Status.Status
}

// A query in DER has a reply of RFC 3161 with status 200, a refusal too; one in JSON is
// refused as the API refuses, because its clients read no refusal in a reply.
func TestTimestamps(t *testing.T) {
	t.Parallel()
	h := newTimestamps(t)
	r := newRig(t, withTimestamps(h))
	good := catest.TimestampQuery("message")
	for _, media := range []string{asQuery, "application/x-www-form-urlencoded", "", asQuery + "; x=y"} { // what curl sends by itself is taken
		response := r.stamp(t, good, media)
		if status := pkiStatus(t, response); response.StatusCode != http.StatusOK || status != 0 || response.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%q: %d, status %d", media, response.StatusCode, status)
		}
	}
	if response := r.stamp(t, []byte("hello"), asQuery); response.StatusCode != http.StatusOK || pkiStatus(t, response) != 2 {
		t.Errorf("a refusal has %d", response.StatusCode)
	}
	asText := []byte(`{"artifactHash":"q83vq83vq83vq83vq83vq83vq83vq83vq83vq83vq80=","hashAlgorithm":"sha256"}`)
	if response := r.stamp(t, asText, "application/json; charset=utf-8"); response.StatusCode != http.StatusOK || pkiStatus(t, response) != 0 {
		t.Errorf("JSON has %d", response.StatusCode)
	}
	refused := readRefusal(t, r.stamp(t, []byte(`{"hashAlgorithm":"md5"}`), "application/json"), http.StatusBadRequest, fault.RequestMalformed)
	if refused.Details[0].Metadata["failure"] != "badAlg" {
		t.Errorf("%+v", refused)
	}
	readRefusal(t, r.stamp(t, make([]byte, maxQuery+1), asQuery), http.StatusRequestEntityTooLarge, fault.BodyTooLarge)

	chain := r.send(t, http.MethodGet, timestamp.ChainPath, nil)
	tag := chain.Header.Get("ETag")
	if got := text(t, chain); got != string(h.chain) || chain.Header.Get("Content-Type") != "application/pem-certificate-chain" || tag == "" {
		t.Errorf("the chain: %v %s", chain.Header, got)
	}
	if again := r.send(t, http.MethodGet, timestamp.ChainPath, nil, "If-None-Match", tag); again.StatusCode != http.StatusNotModified {
		t.Errorf("the chain again: %d", again.StatusCode)
	}
	if n := len(r.audit.events); n != 0 {
		t.Errorf("%d records", n)
	}
	if got := metricsText(t, r); !strings.Contains(got, `mayfly_requests_total{code="200"edge="rest"issuer_type="none"reason="REQUEST_MALFORMED"route="/api/v1/timestamp"} 1`) {
		t.Errorf("the metrics don't tell refusals in a reply:\n%s", got)
	}
}

// What may pass by itself has a status that clients try again at, and a reply beside.
func TestTimestampsThatMayComeLater(t *testing.T) {
	t.Parallel()
	h := newTimestamps(t)
	r := newRig(t, withTimestamps(h))
	h.before = func(context.Context) *fault.Error {
		return fault.New(fault.TimeUnavailable, "the clock is off").Because(errors.New("10.0.0.1 says so"))
	}
	response := r.stamp(t, catest.TimestampQuery("message"), asQuery)
	if body := text(t, response); response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") != "5" ||
		response.Header.Get("Content-Type") != "application/timestamp-reply" || body != "a reply that says so" {
		t.Errorf("%d %v %s", response.StatusCode, response.Header, body)
	}
	h.before = func(context.Context) *fault.Error { panic("10.0.0.1") }
	if body := text(t, r.stamp(t, catest.TimestampQuery("message"), asQuery)); strings.Contains(body, "10.0.0.1") {
		t.Errorf("a panic reads %s", body)
	}
}

// Timestamps have limits of their own: what is over them is refused, and certificates
// are issued meanwhile.
func TestTimestampLimits(t *testing.T) {
	t.Parallel()
	h := newTimestamps(t)
	k := newClock()
	r := newRig(t, limited(k, RateLimits{Timestamps: Rate{Rate: 0.5, Burst: 3}}), withTimestamps(h), func(c *Config, _ *Options) { c.Limits.Timestamps = 1 })
	entered, release := make(chan struct{}), make(chan struct{})
	h.before = func(context.Context) *fault.Error {
		close(entered)
		<-release
		return nil
	}
	first := make(chan *http.Response)
	go func() { first <- r.stamp(t, catest.TimestampQuery("first"), asQuery) }()
	<-entered
	readRefusal(t, r.stamp(t, catest.TimestampQuery("second"), asQuery), http.StatusServiceUnavailable, fault.Overloaded)
	chainOf(t, r.postV2(t, r.bodyV2(t)))
	close(release)
	if response := <-first; pkiStatus(t, response) != 0 {
		t.Error("the first got none")
	}
	h.before = nil
	if response := r.stamp(t, catest.TimestampQuery("third"), asQuery); pkiStatus(t, response) != 0 {
		t.Error("the third got none")
	}
	readRefusal(t, r.stamp(t, catest.TimestampQuery("fourth"), asQuery), http.StatusTooManyRequests, fault.RateExceeded)
	chainOf(t, r.postV2(t, r.bodyV2(t)))
	if got := metricsText(t, r); !strings.Contains(got, `mayfly_rate_limited_total{limit="timestamps"} 1`) {
		t.Error("the metric doesn't count it")
	}
}

// A request has its time for the key as any other has, and the end of the service
// waits for it.
func TestTimestampsEnd(t *testing.T) {
	t.Parallel()
	h := newTimestamps(t)
	r := newRig(t, withTimestamps(h), func(c *Config, _ *Options) { c.RequestTimeout = 100 * time.Millisecond })
	h.before = func(ctx context.Context) *fault.Error {
		<-ctx.Done()
		return fault.From(ctx.Err())
	}
	if response := r.stamp(t, catest.TimestampQuery("message"), asQuery); response.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("a key that hangs: %d", response.StatusCode)
	}
	r.server.inFlight.close()
	readRefusal(t, r.stamp(t, catest.TimestampQuery("message"), asQuery), http.StatusServiceUnavailable, fault.ShuttingDown)
}

// Without an authority nothing is at its paths, and a reload brings one and takes it.
func TestTimestampsOnAndOff(t *testing.T) {
	t.Parallel()
	h := newTimestamps(t)
	r := newRig(t)
	index := func() string { return text(t, r.send(t, http.MethodGet, "/", nil)) }
	reload := func(stamps Timestamps) {
		t.Helper()
		r.prepare(t, r.server.config, func(s *Served) { s.Timestamps = stamps })()
	}
	for _, on := range []bool{false, true, false} {
		if on {
			reload(h)
		} else {
			reload(nil)
		}
		response := r.stamp(t, catest.TimestampQuery("message"), asQuery)
		listed := bytes.Contains([]byte(index()), []byte("POST  /api/v1/timestamp\n"))
		if on {
			if pkiStatus(t, response) != 0 || !listed {
				t.Errorf("on: %d, listed: %v", response.StatusCode, listed)
			}
			continue
		}
		readRefusal(t, response, http.StatusNotFound, fault.RouteUnknown)
		readRefusal(t, r.send(t, http.MethodGet, timestamp.ChainPath, nil), http.StatusNotFound, fault.RouteUnknown)
		if listed {
			t.Error("off, and listed")
		}
	}
}
