package service

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
)

// What operators are told to watch, as a scrape of the running service has it.

// scrape reads /metrics: the sum of each metric's series, counts of histograms.
func (r *rig) scrape(t *testing.T) map[string]float64 {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.metrics, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := r.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%d, %v", response.StatusCode, err)
	}
	found := make(map[string]float64)
	for line := range strings.Lines(string(body)) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), "{")
		if strings.HasPrefix(line, "#") || strings.HasSuffix(name, "_bucket") || strings.HasSuffix(name, "_sum") {
			continue
		}
		_, value, ok := strings.Cut(rest, "} ")
		if !ok {
			name, value, _ = strings.Cut(name, " ")
		}
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		found[strings.TrimSuffix(name, "_count")] += number
	}
	return found
}

// until scrapes until a metric is as wanted.
func (r *rig) until(t *testing.T, name string, wanted func(value float64) bool) map[string]float64 {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		found := r.scrape(t)
		if value, ok := found[name]; ok && wanted(value) {
			return found
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %v for %v", name, found[name], patience)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// documented are the metrics that docs/ctlog.md tells operators to watch.
func documented(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "ctlog.md"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile("`(mayfly_ctlog_[a-z_]+)`").FindAllStringSubmatch(string(text), -1) {
		names = append(names, m[1])
	}
	return names
}

func none(value float64) bool { return value == 0 }

// TestPromisesMetrics: every metric that the operator's page names is in a scrape of
// a service with that kind of log, with the value that a healthy log has.
func TestPromisesMetrics(t *testing.T) {
	t.Parallel()
	anything := func(float64) bool { return true }
	positive := func(value float64) bool { return value > 0 }
	both := map[string]func(float64) bool{
		"mayfly_ctlog_promises_overdue": none, "mayfly_ctlog_promises_broken": none, "mayfly_ctlog_promises_pending": none,
		"mayfly_ctlog_promises_unread_total": none,
		"mayfly_ctlog_bad_sct_total":         none, "mayfly_ctlog_submission_seconds": positive, "mayfly_ctlog_end_timestamp_seconds": positive,
		"mayfly_ctlog_covered_until_timestamp_seconds": positive,
	}
	own := map[string]func(float64) bool{
		"mayfly_ctlog_tree_size": positive, "mayfly_ctlog_checkpoint_age_seconds": func(age float64) bool { return age < 900 },
		"mayfly_ctlog_free_bytes": positive, "mayfly_ctlog_batch_failures_total": none, "mayfly_ctlog_integration_failures_total": none,
		"mayfly_ctlog_merge_delay_seconds": func(delay float64) bool { return delay < 30 },
		"mayfly_ctlog_verify_success":      anything, "mayfly_ctlog_verify_timestamp_seconds": anything, // NaN before the first
		"mayfly_ctlog_checkpoint_cosignatures": none, "mayfly_ctlog_witness_offers_total": anything,
	}
	elsewhere := map[string]func(float64) bool{
		"mayfly_ctlog_breaker_open": none, "mayfly_ctlog_roots_refused": none, "mayfly_ctlog_roots_checked_timestamp_seconds": positive,
	}
	end := time.Now().AddDate(1, 0, 0).Truncate(time.Second)
	for name, kind := range map[string]struct {
		edit func(*rig, *config.Config)
		own  map[string]func(float64) bool
	}{
		"embedded": {func(_ *rig, c *config.Config) {
			c.CTLog.Embedded.End = end
			c.CTLog.Embedded.Witnesses.List = []ctlog.WitnessConfig{{ // nobody is there
				URL: "http://127.0.0.1:1", Key: "witness.example+0080fed4+BAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
			}}
		}, own},
		"external": {func(r *rig, c *config.Config) {
			newRemoteLog(t, r, c)
			named(t, "log.example", &c.CTLog.Logs[0])
			c.CTLog.Logs[0].End = end
		}, elsewhere},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, kind.edit)
			r.issues(t, "one", r.signingRequest(t, r.token(t, nil)))
			r.until(t, "mayfly_ctlog_promises_kept_total", func(n float64) bool { return n == float64(len(edges)) })
			found := r.until(t, "mayfly_ctlog_promises_pending", none)
			for _, want := range []map[string]func(float64) bool{both, kind.own} {
				for metric, healthy := range want {
					if value, ok := found[metric]; !ok || !healthy(value) {
						t.Errorf("%s is %v, there: %t", metric, value, ok)
					}
				}
			}
		})
	}
	for _, metric := range documented(t) {
		if both[metric] == nil && own[metric] == nil && elsewhere[metric] == nil {
			t.Errorf("docs/ctlog.md tells to watch %s, which nothing here scrapes", metric)
		}
	}
}

// named reaches a remote log of the rig under its own name, which proofs of its
// entries need.
func named(t *testing.T, as string, l *ctlog.ExternalConfig) {
	t.Helper()
	host, path, ok := strings.Cut(strings.TrimPrefix(l.URL, "http://"), "/")
	if !ok {
		t.Fatal(l.URL)
	}
	l.URL, l.Address, l.AllowHTTP = "http://"+as+"/"+path, host, true
}

// TestPromisesMonitoringURL: a log that is read elsewhere is read there alone.
func TestPromisesMonitoringURL(t *testing.T) {
	t.Parallel()
	var reads, foreign atomic.Int64
	r := newRig(t, func(r *rig, c *config.Config) {
		l := newRemoteLog(t, r, c)
		named(t, "log.example", &c.CTLog.Logs[0])
		tiles := httptest.NewServer(http.StripPrefix("/tiles", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			reads.Add(1)
			http.ServeFileFS(w, r, os.DirFS(l.dir), strings.TrimPrefix(r.URL.Path, "/"))
		})))
		t.Cleanup(tiles.Close)
		c.CTLog.Logs[0].MonitoringURL = tiles.URL + "/tiles"
		count := logFault(func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
			if r.URL.Path != "/2027/ct/v1/get-roots" {
				foreign.Add(1)
			}
			honest.ServeHTTP(w, r)
		})
		l.reads.Store(&count)
	})
	r.issues(t, "one", r.signingRequest(t, r.token(t, nil)))
	r.until(t, "mayfly_ctlog_promises_kept_total", func(n float64) bool { return n == float64(len(edges)) })
	if reads.Load() == 0 || foreign.Load() != 0 {
		t.Errorf("%d reads where the log is read, %d where it is submitted to", reads.Load(), foreign.Load())
	}
}
