package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// report collects the figures of one run.
type report struct {
	machine string
	plan    plan

	bare       bareFigures
	identity   identityFigures
	fsyncs     []time.Duration
	runs       map[run]figure
	kinds      []figure
	peer       peerFigures
	resident   map[string]int64 // by where certificates go
	binarySize int64
	soaked     int
	start      time.Duration
	adapters   []adapterFigures
	direct     []directFigures
	modes      []modeFigures
}

func newReport(p plan) *report {
	return &report{machine: describeMachine(), plan: p, runs: make(map[run]figure), resident: make(map[string]int64)}
}

// step says on standard error what is being measured.
func (r *report) step(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

// row is a figure beside its target, met or not.
type row struct{ what, target, value string }

func table(rows []row) string {
	var b strings.Builder
	b.WriteString("| Figure | Target | Measured |\n|---|---|---|\n")
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", row.what, row.target, row.value)
	}
	return b.String()
}

// aims are the figures with a target.
func (r *report) aims() []row {
	bare, flush := r.bare.usual(), quantile(r.fsyncs, 0.5)
	full, eight, solo := r.runs[run{64, "REST", logged}], r.runs[run{8, "REST", logged}], r.runs[run{1, "REST", logged}]
	return []row{
		{"Median latency of one caller ÷ (3 flushes and the bare cryptography)", "≤ 2.5", ratio(solo.p50, 3*flush+bare)},
		{fmt.Sprintf("Certificates a second of 8 callers ÷ those of %d", r.plan.callers), "≥ 0.8", fmt.Sprintf("%.2f", eight.perSecond()/full.perSecond())},
		{fmt.Sprintf("CPU a certificate ÷ bare cryptography, %d callers", r.plan.callers), "≤ 1.7", ratio(full.cpu, bare)},
		{"The same, 8 callers", "≤ 2.2", ratio(eight.cpu, bare)},
		{"The same, 1 caller", "≤ 4", ratio(solo.cpu, bare)},
		{fmt.Sprintf("A peer's CPU a certificate (CA and log) ÷ ours, %d callers", r.plan.callers), "≥ 7", r.peerRatio()},
		{"CPU of authentication ÷ its RS256 verification alone, GitHub preset with CEL", "≤ 1.4", ratio(r.identity.github.all, r.identity.github.signature)},
		{"The same, type email", "≤ 1.4", ratio(r.identity.email.all, r.identity.email.signature)},
		{fmt.Sprintf("Resident memory after %d certificates", r.soaked), "≤ 64 MB", fmt.Sprintf("%.1f MB; with the index %.1f MB", float64(r.resident[logged])/1e6, float64(r.resident[indexed])/1e6)},
		{"Written to disk a certificate, 1 caller (of that the audit trail)", "≤ 8 kB", kilobytes(solo.written) + " (" + kilobytes(r.runs[run{1, "REST", unlogged}].written) + ")"},
		{"Log on disk a certificate, after a million", "≤ 1.4 kB", "[the log's own figures](log-performance.md)"},
		{"CPU of REST ÷ CPU of gRPC", "≤ 1.25", ratio(full.cpu, r.runs[run{64, "gRPC", logged}].cpu)},
		{fmt.Sprintf("Finding one of %d issuers and %d patterns rather than of a few", manyIssuers, manyPatterns), "+ 1 or 2 µs", more(r.identity.exact)},
		{"The same, an issuer that only a pattern matches", "+ 1 or 2 µs", more(r.identity.pattern)},
		{"Start to first certificate, existing CA", "< 1 s", r.start.Round(time.Millisecond).String()},
		{"Binary", "< 60 MB", fmt.Sprintf("%.1f MB", float64(r.binarySize)/1e6)},
	}
}

// markdown is the document.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Performance

Written by %s, all figures from one run. CPU is what the operating system
charged to the server's process, user and system, divided by the certificates
issued; the load generator runs beside it on the same cores. Compare ratios, not
absolute times: they survive a change of machine.

Machine: %s.

`, "`make bench`", r.machine)
	b.WriteString(table(r.aims()))
	fmt.Fprintf(&b, `
| Alone | |
|---|---|
| One write of 1 kB with fsync on the same disk, median, just before and after the run of one caller | %s |
`, micros(quantile(r.fsyncs, 0.5)))
	for _, op := range operations {
		fmt.Fprintf(&b, "| CPU, %s | %s |\n", op, micros(r.bare[op]))
	}
	fmt.Fprintf(&b, "| CPU of authentication with a condition in CEL, type email; its signature alone | %s; %s |\n", micros(r.identity.email.all), micros(r.identity.email.signature))
	fmt.Fprintf(&b, "| The same, GitHub preset | %s; %s |\n", micros(r.identity.github.all), micros(r.identity.github.signature))
	b.WriteString(r.callersTable() + r.peerTable() + r.kindsTable() + r.keys())
	return b.String()
}

// keys are the tables of keys in a KMS.
func (r *report) keys() string {
	var b strings.Builder
	fmt.Fprintf(&b, `
## Keys in a KMS

Mode `+"`direct`"+` over a stand-in for Vault on this machine that takes %v a signature, with
`+"`signing_quota: %d`"+` and the embedded log. Callers who are refused come back when `+"`Retry-After`"+`
says. Latency is that of answers with a certificate, less the KMS's own part in it;
the wait for a turn is part of it, and at most %v here. The KMS counts its signatures.

| Callers | precertificate_signer | Certificates a second | of what the quota allows | Refused a second | Latency over the KMS's own, median / p99 | Wait for a turn, mean | KMS signatures a certificate |
|---|---|---|---|---|---|---|---|
`, kmsLatency, kmsQuota, quotaWait)
	for _, f := range r.direct {
		most := kmsQuota / max(f.signatures, 1)
		fmt.Fprintf(&b, "| %d | %s | %.1f | %.0f %% | %.0f | %s / %s | %s | %.2f |\n", f.callers, f.form, f.perSecond, 100*f.perSecond/most,
			f.refused, micros(f.overKMS(f.p50)), micros(f.overKMS(f.p99)), micros(f.waited), f.signatures)
	}
	fmt.Fprintf(&b, `
CPU time of one P-256 signature in this process, by each backend and by what it is
made over alone, against a stand-in for the vendor's service in another process. A
backend that reaches its key over a network verifies each signature (%s of it).

| Backend | Over | Alone | Backend | Ratio | without the verification |
|---|---|---|---|---|---|
`, micros(r.bare[p256Verify]))
	for _, f := range r.adapters {
		verify := r.bare[p256Verify]
		if f.vendor == "file" {
			verify = 0
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", f.vendor, f.over, micros(f.bare), micros(f.adapter),
			ratio(f.adapter, f.bare), ratio(f.adapter-verify, f.bare))
	}
	b.WriteString(r.modesTable())
	return b.String()
}

func ratio(a, b time.Duration) string {
	if b == 0 {
		return "not measured"
	}
	return fmt.Sprintf("%.2f", float64(a)/float64(b))
}

// kilobytes is a number of bytes; none is what a disk of memory counts.
func kilobytes(n int64) string {
	if n == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f kB", float64(n)/1e3)
}

// more is what the second time has over the first, and both of them.
func more(t [2]time.Duration) string {
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	return fmt.Sprintf("%+.2f µs (%.2f → %.2f µs)", us(t[1]-t[0]), us(t[0]), us(t[1]))
}

func micros(d time.Duration) string {
	if d >= 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.0f µs", d.Seconds()*1e6)
}

// describeMachine names what the figures depend on.
func describeMachine() string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	return fmt.Sprintf("%d cores of %s, %s, %s/%s", runtime.NumCPU(), model, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
