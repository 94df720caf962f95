// Command bench measures Mayfly against the cryptography that an issuance
// can't do without, in one run, and writes the figures as a table.
//
//	bench -mayfly bin/mayfly -out docs/performance.md
//
// Every figure that can be a ratio is one: CPU time a certificate over the bare
// cryptography's, REST over gRPC, with the log over without. CPU time is what
// the operating system charged to the server's process (user and system), so a
// busy client beside it doesn't count.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"
)

// plan says how much of each thing is measured.
type plan struct {
	binary       string
	certificates int // for each throughput figure
	soak         int // certificates before resident memory is read
	callers      int
	solo         int           // requests of the one caller whose median is reported
	direct       time.Duration // of each figure of a CA whose key is in a KMS
}

func main() {
	var p plan
	out := flag.String("out", "", "file that the table is written to as well")
	flag.StringVar(&p.binary, "mayfly", "bin/mayfly", "the binary to measure")
	flag.IntVar(&p.certificates, "certificates", 10_000, "certificates for each figure")
	flag.IntVar(&p.soak, "soak", 100_000, "certificates before resident memory is read")
	flag.IntVar(&p.callers, "callers", 64, "concurrent callers")
	flag.IntVar(&p.solo, "solo", 500, "requests of the single caller")
	flag.DurationVar(&p.direct, "direct", 10*time.Second, "time of each figure of a CA whose key is in a KMS")
	keys := flag.Bool("keys", false, "measure keys in a KMS alone, and write nothing")
	standIn := flag.String("stand-in", "", "be a vendor's service, for another of these programs")
	log := flag.Bool("log", false, "measure the embedded log alone instead")
	var lp logPlan
	flag.DurationVar(&lp.window, "log-window", 4*time.Second, "with -log: time of each figure")
	flag.Uint64Var(&lp.entries, "log-entries", 1_000_000, "with -log: entries of the long log")
	flag.StringVar(&lp.memory, "log-memory", "", "with -log: folder on a disk of memory for the long log; empty leaves it out")
	profile := flag.String("profile", "", "folder that receives a CPU profile of the server under REST load")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	measure := func() error { return run(ctx, p, *out, *profile) }
	if *log {
		measure = func() error { return measureLog(ctx, lp, *out) }
	}
	if *standIn != "" {
		measure = func() error { return serveStandIn(*standIn) }
	}
	if *keys {
		measure = func() error { return runKeys(ctx, p) }
	}
	if err := measure(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, p plan, out, profile string) error {
	dir, err := os.MkdirTemp("", "mayfly-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	r := report{machine: describeMachine(), plan: p}
	r.step("bare cryptography")
	if r.bare, err = bareCryptography(2 * time.Second); err != nil {
		return err
	}
	r.step("authentication")
	if r.identity, err = authentication(ctx, dir, time.Second); err != nil {
		return err
	}
	r.step("fsync")
	if r.fsync, err = fsyncTime(dir, 300); err != nil {
		return err
	}
	if info, err := os.Stat(p.binary); err == nil {
		r.binarySize = info.Size()
	}

	for _, withLog := range []bool{true, false} {
		if err := measureServer(ctx, &r, filepath.Join(dir, fmt.Sprintf("log-%t", withLog)), withLog, profile); err != nil {
			return err
		}
	}
	if err := measureKeys(ctx, &r, dir); err != nil {
		return err
	}
	text := r.markdown()
	fmt.Println(text)
	if out == "" {
		return nil
	}
	return os.WriteFile(out, []byte(text), 0o644)
}

// runKeys measures what costs what with the key in a KMS, and nothing else.
func runKeys(ctx context.Context, p plan) error {
	dir, err := os.MkdirTemp("", "mayfly-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := report{machine: describeMachine(), plan: p}
	if r.bare, err = bareCryptography(time.Second); err != nil {
		return err
	}
	if err := measureKeys(ctx, &r, dir); err != nil {
		return err
	}
	fmt.Println(r.keys())
	return nil
}

// measureKeys fills in the figures of keys in a KMS.
func measureKeys(ctx context.Context, r *report, dir string) error {
	r.step("adapters")
	var err error
	if r.adapters, err = measureAdapters(ctx, dir, 2*time.Second); err != nil {
		return err
	}
	if err := measureModes(ctx, r, dir); err != nil {
		return err
	}
	return measureDirect(ctx, r, dir, r.plan.direct)
}

// measureServer fills in the figures of one server: with the embedded log all
// of them, without it only the two that are compared.
func measureServer(ctx context.Context, r *report, dir string, withLog bool, profile string) error {
	p := r.plan
	s, err := startServer(ctx, p.binary, dir, withLog)
	if err != nil {
		return err
	}
	defer s.stop()
	load, err := newLoad(ctx, s, p.callers)
	if err != nil {
		return err
	}
	defer load.close()

	if !withLog {
		r.step("REST without the log")
		r.restNoLog, err = load.measure(ctx, s, load.rest, p.callers, p.certificates)
		return err
	}
	r.step("REST, %d callers", p.callers)
	if _, err := load.measure(ctx, s, load.rest, p.callers, p.certificates/10); err != nil { // warm-up
		return err
	}
	if r.rest, err = load.measure(ctx, s, load.rest, p.callers, p.certificates); err != nil {
		return err
	}
	r.step("gRPC, %d callers", p.callers)
	if r.grpc, err = load.measure(ctx, s, load.grpc, p.callers, p.certificates); err != nil {
		return err
	}
	r.step("REST, one caller")
	if r.solo, err = load.measure(ctx, s, load.rest, 1, p.solo); err != nil {
		return err
	}
	if profile != "" {
		r.step("profile")
		if err := load.profile(ctx, s, profile, p.callers, p.certificates); err != nil {
			return err
		}
	}
	r.step("soak: %d certificates", p.soak)
	if _, err := load.measure(ctx, s, load.rest, p.callers, max(0, p.soak-load.issued())); err != nil {
		return err
	}
	if r.resident, err = s.resident(); err != nil {
		return err
	}
	r.soaked = load.issued()
	if profile != "" {
		if err := save(ctx, s.Metrics+"/debug/pprof/heap", filepath.Join(profile, "mayfly-heap.pprof")); err != nil {
			return err
		}
	}
	s.stop()

	r.step("start to first certificate, with an existing CA")
	begin := time.Now()
	again, err := startServer(ctx, p.binary, dir, true)
	if err != nil {
		return err
	}
	defer again.stop()
	first, err := newLoad(ctx, again, 1)
	if err != nil {
		return err
	}
	defer first.close()
	if _, err := first.measure(ctx, again, first.rest, 1, 1); err != nil {
		return err
	}
	r.start = time.Since(begin)
	return nil
}
