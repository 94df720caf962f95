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
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
)

// logPlan says how much of the log alone is measured.
type logPlan struct {
	window  time.Duration // of each figure of throughput
	entries uint64        // of the long log
	memory  string        // folder of the long log, on a disk of memory; empty: it isn't measured
}

// callerCounts are the loads that group commit has to hold for.
var callerCounts = []int{1, 8, 64, 512}

// submit puts a chain into a log and returns when it is durable.
type submit func(ctx context.Context, chain ctlog.Chain) error

// batching is one way of making entries durable together.
type batching struct {
	name string
	open func(ctx context.Context, dir string) (submit, func() error, error)
}

// batchings are what the log does, and what Tessera does by itself.
func batchings() []batching {
	return []batching{{"a timer of 50 ms (Tessera alone, no SCT)", openTimer}, {"the log", openGate}}
}

// throughput is one setting at one load.
type throughput struct {
	setting   string
	callers   int
	entries   int
	wall      time.Duration
	p50, p99  time.Duration
	bareFsync time.Duration // on the same disk, just before
}

// measureLog is the whole of `-log`.
func measureLog(ctx context.Context, p logPlan, out string) error {
	dir, err := os.MkdirTemp("", "mayfly-bench-log-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	source, err := newChainSource()
	if err != nil {
		return err
	}
	r := logReport{machine: describeMachine(), window: p.window}
	for _, s := range batchings() {
		for _, callers := range callerCounts {
			fmt.Fprintf(os.Stderr, "bench: %s, %d callers\n", s.name, callers)
			t, err := measureSetting(ctx, filepath.Join(dir, fmt.Sprint(len(r.all))), s, source, callers, p.window)
			if err != nil {
				return fmt.Errorf("%s, %d callers: %w", s.name, callers, err)
			}
			r.all = append(r.all, t)
		}
	}
	if p.memory != "" {
		if r.long, err = measureLong(ctx, p, source); err != nil {
			return fmt.Errorf("the long log: %w", err)
		}
	}
	text := r.markdown()
	fmt.Println(text)
	if out == "" {
		return nil
	}
	return os.WriteFile(out, []byte(text), 0o644)
}

func measureSetting(ctx context.Context, dir string, s batching, source *chainSource, callers int, window time.Duration) (throughput, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return throughput{}, err
	}
	bare, err := fsyncTime(dir, 100)
	if err != nil {
		return throughput{}, err
	}
	do, done, err := s.open(ctx, dir)
	if err != nil {
		return throughput{}, err
	}
	t, err := closedLoop(ctx, do, source, callers, func(begin time.Time, _ uint64) bool { return time.Since(begin) >= window })
	if endErr := done(); err == nil {
		err = endErr
	}
	t.setting, t.callers, t.bareFsync = s.name, callers, bare
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

// openGate opens an embedded log as the service does.
func openGate(ctx context.Context, dir string) (submit, func() error, error) {
	l, err := openLog(ctx, dir, true)
	if err != nil {
		return nil, nil, err
	}
	do := func(ctx context.Context, chain ctlog.Chain) error {
		_, err := l.Submit(ctx, chain)
		return err
	}
	return do, func() error { return l.Close(context.WithoutCancel(ctx)) }, nil
}

// openLog opens the embedded log in dir, or makes it.
func openLog(ctx context.Context, dir string, create bool) (*embedded.Log, error) {
	keyFile := filepath.Join(dir, "key.pem")
	if create {
		if _, err := keystore.GenerateFile(keyFile, kms.ECDSAP256, nil); err != nil {
			return nil, err
		}
	}
	key, err := keystore.Open(ctx, "file:"+keyFile, kms.Options{})
	if err != nil {
		return nil, err
	}
	c := embedded.Config{
		Directory: pathOf(dir, "log"), MarkFile: pathOf(dir, "mark"), URL: "http://localhost/ctlog/bench",
		CheckpointInterval: ctlog.DefaultCheckpointInterval,
	}
	return embedded.Open(ctx, c, embedded.Options{Signer: key, Create: create, Metrics: prometheus.NewRegistry()})
}

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
