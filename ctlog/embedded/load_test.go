package embedded_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// load submits n chains from 32 callers.
func (b *bench) load(t testing.TB, l *embedded.Log, n int) {
	t.Helper()
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range work {
				if _, err := l.Submit(t.Context(), b.ca.Chain(t)); err != nil {
					t.Errorf("Submit: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkSubmit measures submissions from 1 and 64 callers, the SCT verified
// as in an issuance, beside the time of one bare fsync on the same disk.
func BenchmarkSubmit(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(strconv.Itoa(callers), func(b *testing.B) {
			bench := newBench(b)
			bench.config.CheckpointInterval = time.Second
			registry := prometheus.NewRegistry()
			bench.o.Metrics = registry
			l := bench.open(b)
			p, err := ctlog.NewPolicy([]ctlog.Log{l}, ctlog.Options{})
			if err != nil {
				b.Fatal(err)
			}
			chains := make([]ctlog.Chain, b.N)
			for i := range chains {
				if chains[i], err = quickChain(bench.ca.Root.Raw); err != nil {
					b.Fatal(err)
				}
			}
			var next atomic.Int64
			var wg sync.WaitGroup
			cpu := cpuTime(b)
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for {
						i := next.Add(1) - 1
						if i >= int64(len(chains)) {
							return
						}
						if _, err := p.Submit(b.Context(), chains[i]); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
			all := float64((cpuTime(b) - cpu).Microseconds()) / float64(b.N)
			bare := bareTime(b, bench.key, chains[0].TBS)
			b.ReportMetric(all, "cpu-µs/cert")
			b.ReportMetric(all-bare, "overhead-µs/cert")
			b.ReportMetric(float64(b.N)/batches(b, registry), "certs/batch")
			b.ReportMetric(float64(fsyncTime(b).Microseconds()), "fsync-µs")
		})
	}
}

// BenchmarkSubmitBesideReader measures what one greedy reader, with as many requests at
// once as one address may have, costs the callers of the log.
func BenchmarkSubmitBesideReader(b *testing.B) {
	for name, path := range map[string]string{
		"nobody": "", "get-entries": "/ct/v1/get-entries?start=0&end=255", "newest entries": "/ct/v1/get-entries?start=%d&end=%[1]d",
		"full tile": "/tile/data/000", "old partial tile": "/tile/data/000.p/255", "newest partial tile": "/tile/data/003.p/%d",
		"proof": "/ct/v1/get-sth-consistency?first=3&second=%d",
	} {
		b.Run(name, func(b *testing.B) {
			bench := newBench(b)
			l := bench.open(b)
			bench.load(b, l, 1000)
			url, c := serve(b, l)
			ctlogtest.NewReader(b, l.Description(), url, c).Await(b, 1000)
			c.Transport = &http.Transport{MaxIdleConnsPerHost: 64}
			ctx, cancel := context.WithCancel(b.Context())
			var readers sync.WaitGroup
			for range 32 {
				readers.Go(func() {
					for path != "" && ctx.Err() == nil {
						at := path
						if strings.Contains(path, "%") {
							at = fmt.Sprintf(path, 1000%256)
						}
						r, _ := http.NewRequestWithContext(ctx, http.MethodGet, url+at, nil)
						r.Header.Set("Accept-Encoding", "gzip")
						if answer, err := c.Do(r); err == nil {
							_, _ = io.Copy(io.Discard, answer.Body)
							_ = answer.Body.Close()
						}
					}
				})
			}
			took := make([]time.Duration, b.N)
			for i := range took {
				chain, err := quickChain(bench.ca.Root.Raw)
				if err != nil {
					b.Fatal(err)
				}
				begin := time.Now()
				if _, err := l.Submit(b.Context(), chain); err != nil {
					b.Fatal(err)
				}
				took[i] = time.Since(begin)
			}
			cancel()
			readers.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "median-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// bareTime is the CPU time, in µs, of the two operations that no log can save: the
// signature over an SCT and its verification.
func bareTime(b *testing.B, key *ctlogtest.Signer, message []byte) float64 {
	b.Helper()
	const n = 500
	digest := sha256.Sum256(message)
	begin := cpuTime(b)
	for range n {
		signature, err := key.Sign(b.Context(), digest[:], crypto.SHA256)
		if err != nil {
			b.Fatal(err)
		}
		if !ecdsa.VerifyASN1(&key.Key.PublicKey, digest[:], signature) {
			b.Fatal("the signature does not hold")
		}
	}
	return float64((cpuTime(b) - begin).Microseconds()) / n
}

// fsyncTime is the mean of a small write with fsync.
func fsyncTime(b *testing.B) time.Duration {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "fsync"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const n = 50
	begin := time.Now()
	for range n {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(begin) / n
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func batches(b testing.TB, r *prometheus.Registry) float64 {
	b.Helper()
	families, err := r.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "mayfly_ctlog_batch_entries" {
			return float64(f.GetMetric()[0].GetHistogram().GetSampleCount())
		}
	}
	b.Fatal("no metric")
	return 0
}
