package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// run is one load on one CA.
type run struct {
	callers int
	over    string // REST or gRPC
	logged  bool   // in the embedded log
}

// runs are the loads of the report, in its order. The first of each CA comes after
// a warm-up.
var runs = []run{
	{64, "REST", true}, {8, "REST", true}, {1, "REST", true}, {64, "gRPC", true}, {8, "gRPC", true},
	{64, "REST", false}, {1, "REST", false},
}

// certificates are how many of them a run is made of.
func (p plan) certificates(callers int) int {
	if callers == 1 {
		return p.solo
	}
	return p.each
}

// measureCallers makes the runs of a CA with or without a log.
func measureCallers(ctx context.Context, r *report, dir string, logged bool) error {
	p := r.plan
	s, err := p.start(ctx, dir, logged)
	if err != nil {
		return err
	}
	defer s.stop()
	l, err := p.newLoad(ctx, s.endpoints, p.callers, request{token: jose.RS256, unlogged: !logged})
	if err != nil {
		return err
	}
	defer l.close()
	calls := map[string]call{"REST": l.rest, "gRPC": l.grpc}
	if _, err := l.measure(ctx, s.process(), l.rest, p.callers, p.each/10); err != nil { // warm-up
		return err
	}
	for _, one := range runs {
		if one.logged != logged {
			continue
		}
		r.step("%d callers over %s, log: %t", one.callers, one.over, logged)
		if err := r.flushes(dir, one); err != nil {
			return err
		}
		if r.runs[one], err = l.measure(ctx, s.process(), calls[one.over], one.callers, p.certificates(one.callers)); err != nil {
			return err
		}
		if err := r.flushes(dir, one); err != nil {
			return err
		}
	}
	if !logged {
		return nil
	}
	return measureLife(ctx, r, dir, s, l)
}

// flushes measures the disk, right before and right after the run whose latency is
// compared with it.
func (r *report) flushes(dir string, of run) error {
	if of != (run{1, "REST", true}) {
		return nil
	}
	times, err := fsyncTimes(dir, 300)
	r.fsyncs = append(r.fsyncs, times...)
	return err
}

// measureLife has the CA issue until its memory is read, and starts it again.
func measureLife(ctx context.Context, r *report, dir string, s *server, l *load) error {
	p := r.plan
	if p.profile != "" {
		for _, callers := range []int{p.callers, 8, 1} {
			r.step("profile of %d callers", callers)
			if err := l.profile(ctx, s, p.profile, callers, p.certificates(callers)); err != nil {
				return err
			}
		}
	}
	r.step("soak: %d certificates", p.soak)
	if _, err := l.measure(ctx, s.process(), l.rest, p.callers, max(0, p.soak-l.issued())); err != nil {
		return err
	}
	var err error
	if r.resident, err = s.process().resident(); err != nil {
		return err
	}
	r.soaked = l.issued()
	if p.profile != "" {
		if err := save(ctx, s.Metrics+"/debug/pprof/heap", filepath.Join(p.profile, "mayfly-heap.pprof")); err != nil {
			return err
		}
	}
	s.stop()

	r.step("start to first certificate, with an existing CA")
	begin := time.Now()
	again, err := p.start(ctx, dir, true)
	if err != nil {
		return err
	}
	defer again.stop()
	first, err := p.newLoad(ctx, again.endpoints, 1, usual) // asks for one
	if err != nil {
		return err
	}
	r.start = time.Since(begin)
	first.close()
	return nil
}

// callersTable is the table of the runs.
func (r *report) callersTable() string {
	var b strings.Builder
	fmt.Fprintf(&b, `
## By callers

Each caller waits for its answer before it asks again. The bare cryptography of one
certificate, %s, is an RS256 and two P-256 verifications and three P-256 signatures;
without a log it is one of each less. What is written to disk is what the kernel
counts for the process, whole pages of 4 kB, of which each flush writes one at
least. Without a log that is the audit trail alone.

| Callers | Over | Log | Certificates a second | Latency, median / p99 | CPU a certificate | over bare | Written to disk a certificate |
|---|---|---|---|---|---|---|---|
`, micros(r.bare.usual()))
	for _, one := range runs {
		f, bare, log := r.runs[one], r.bare.usual(), "embedded"
		if !one.logged {
			bare, log = bare-r.bare[p256Sign]-r.bare[p256Verify], "none"
		}
		if one.callers == 64 {
			one.callers = r.plan.callers
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %.0f | %s / %s | %s | %s | %s |\n", one.callers, one.over, log, f.perSecond(), micros(f.p50), micros(f.p99),
			micros(f.cpu), ratio(f.cpu, bare), kilobytes(f.written))
	}
	return b.String()
}
