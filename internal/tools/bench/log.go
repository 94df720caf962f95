package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// logPlan says how much of the log alone is measured.
type logPlan struct {
	window time.Duration // of each figure of throughput
	sizes  string        // of the long log
	folder string        // of the long log; empty: it isn't measured
}

// callerCounts are the loads that group commit has to hold for.
var callerCounts = []int{1, 8, 64, 512}

// submit puts a chain into a log and returns when it is durable.
type submit func(ctx context.Context, chain ctlog.Chain) error

// throughput is the log at one load.
type throughput struct {
	callers   int
	entries   int
	wall      time.Duration
	p50, p99  time.Duration
	bareFsync time.Duration // on the same disk, just before
}

func (t throughput) perSecond() float64 { return float64(t.entries) / t.wall.Seconds() }

// measureLog is the whole of `-log`.
func measureLog(ctx context.Context, p plan, lp logPlan, dir string) (string, error) {
	source, err := newChainSource()
	if err != nil {
		return "", err
	}
	r := logReport{machine: describeMachine(), window: lp.window}
	for _, callers := range callerCounts {
		fmt.Fprintf(os.Stderr, "bench: the log alone, %d callers\n", callers)
		t, err := measureAlone(ctx, filepath.Join(dir, strconv.Itoa(callers)), source, callers, lp.window)
		if err != nil {
			return "", fmt.Errorf("%d callers: %w", callers, err)
		}
		r.all = append(r.all, t)
	}
	if lp.folder != "" {
		if r.long, err = measureLong(ctx, p, lp, source); err != nil {
			return "", fmt.Errorf("the long log: %w", err)
		}
	}
	return r.markdown(), nil
}

func measureAlone(ctx context.Context, dir string, source *chainSource, callers int, window time.Duration) (throughput, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return throughput{}, err
	}
	bare, err := fsyncTimes(dir, 100)
	if err != nil {
		return throughput{}, err
	}
	keyFile := filepath.Join(dir, "key.pem")
	if _, err := keystore.GenerateFile(keyFile, kms.ECDSAP256, nil); err != nil {
		return throughput{}, err
	}
	l, err := openLog(ctx, embedded.Config{Directory: pathOf(dir, "log"), MarkFile: pathOf(dir, "mark"), URL: "http://localhost/ctlog/bench"}, keyFile, true)
	if err != nil {
		return throughput{}, err
	}
	t, err := closedLoop(ctx, into(l), source, callers, func(begin time.Time, _ uint64) bool { return time.Since(begin) >= window })
	if endErr := l.Close(context.WithoutCancel(ctx)); err == nil {
		err = endErr
	}
	t.callers, t.bareFsync = callers, quantile(bare, 0.5)
	return t, err
}

// closedLoop submits from so many callers, each waiting for its answer before it
// asks again, until over says so of the time of the beginning and the number begun.
func closedLoop(ctx context.Context, do submit, source *chainSource, callers int, over func(begin time.Time, n uint64) bool) (throughput, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		count atomic.Uint64
		wait  sync.WaitGroup
		mu    sync.Mutex
		times []time.Duration
	)
	begin := time.Now()
	for range callers {
		wait.Go(func() {
			var own []time.Duration
			for ctx.Err() == nil && !over(begin, count.Add(1)) {
				asked := time.Now()
				if err := do(ctx, source.next()); err != nil {
					cancel(err)
					return
				}
				if own = append(own, time.Since(asked)); len(own) == maxTimes {
					own = own[:0] // a long run is not about latency
				}
			}
			mu.Lock()
			times = append(times, own...)
			mu.Unlock()
		})
	}
	wait.Wait()
	if err := context.Cause(ctx); err != nil {
		return throughput{}, err
	}
	t := throughput{entries: int(count.Load()) - callers, wall: time.Since(begin)}
	t.p50, t.p99 = quantile(times, 0.5), quantile(times, 0.99)
	return t, nil
}

// maxTimes bounds the latencies that one caller remembers.
const maxTimes = 100_000

// into submits to a log.
func into(l *embedded.Log) submit {
	return func(ctx context.Context, chain ctlog.Chain) error {
		_, err := l.Submit(ctx, chain)
		return err
	}
}

// openLog opens an embedded log, or makes it.
func openLog(ctx context.Context, c embedded.Config, keyFile string, create bool) (*embedded.Log, error) {
	key, err := keystore.Open(ctx, "file:"+keyFile, kms.Options{})
	if err != nil {
		return nil, err
	}
	c.CheckpointInterval = ctlog.DefaultCheckpointInterval
	return embedded.Open(ctx, c, embedded.Options{Signer: key, Create: create, Metrics: prometheus.NewRegistry()})
}

func pathOf(dir, name string) setting.Path { return setting.Path(filepath.Join(dir, name)) }

// chainSource makes precertificate chains that differ in their serial number. The
// log doesn't look at the precertificate's signature, so that isn't made anew.
type chainSource struct {
	precertificate []byte
	serial         []byte // as it stands in the precertificate
	issuer         []byte
	keyHash        [32]byte
	count          atomic.Uint64
}

func newChainSource() (*chainSource, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	issuer := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"bench"}, CommonName: "bench intermediate"},
		NotBefore: now, NotAfter: now.Add(time.Hour), BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	s := &chainSource{serial: bytes.Repeat([]byte{0x5a}, 20)}
	if s.issuer, err = x509.CreateCertificate(rand.Reader, issuer, issuer, key.Public(), key); err != nil {
		return nil, err
	}
	parent, err := x509.ParseCertificate(s.issuer)
	if err != nil {
		return nil, err
	}
	s.keyHash = sha256.Sum256(parent.RawSubjectPublicKeyInfo)
	leaf := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(s.serial), NotBefore: now, NotAfter: now.Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		EmailAddresses:  []string{email},
		ExtraExtensions: []pkix.Extension{{Id: ctlog.OIDPoison, Critical: true, Value: []byte{5, 0}}},
	}
	s.precertificate, err = x509.CreateCertificate(rand.Reader, leaf, parent, key.Public(), key)
	return s, err
}

// next is a chain with a serial number of its own.
func (s *chainSource) next() ctlog.Chain {
	number := fmt.Appendf(nil, "%020d", s.count.Add(1))
	precertificate := bytes.Replace(s.precertificate, s.serial, number, 1)
	tbs, err := ctlog.PrecertificateTBS(precertificate, nil)
	if err != nil {
		tbs = nil // never: only digits changed
	}
	return ctlog.Chain{Precertificate: precertificate, Issuers: [][]byte{s.issuer}, IssuerKeyHash: s.keyHash, TBS: tbs}
}
