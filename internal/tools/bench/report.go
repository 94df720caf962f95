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

	bare                        bareFigures
	identity                    identityFigures
	fsync                       time.Duration
	rest, grpc, solo, restNoLog figure
	resident, binarySize        int64
	soaked                      int
	start                       time.Duration
	adapters                    []adapterFigures
	direct                      []directFigures
	modes                       []modeFigures
}

// step says on standard error what is being measured.
func (r *report) step(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

// markdown is the document. Targets stand beside what was measured, met or not.
func (r *report) markdown() string {
	bare := r.bare.perCertificate()
	rows := []struct{ what, target, value string }{
		{"CPU a certificate ÷ bare cryptography, REST, embedded log", "≤ 2.0", ratio(r.rest.cpu, bare)},
		{"CPU of REST ÷ CPU of gRPC", "≤ 1.25", ratio(r.rest.cpu, r.grpc.cpu)},
		{"CPU with the log ÷ without, REST", "–", ratio(r.rest.cpu, r.restNoLog.cpu)},
		{"CPU of authentication ÷ its RS256 verification alone, type email", "≤ 1.5", ratio(r.identity.email.all, r.identity.email.signature)},
		{"The same with the GitHub preset", "≤ 1.5", ratio(r.identity.github.all, r.identity.github.signature)},
		{fmt.Sprintf("Finding one of %d issuers and %d patterns rather than of a few", manyIssuers, manyPatterns), "+ 1 or 2 µs", more(r.identity.exact)},
		{"The same, an issuer that only a pattern matches", "+ 1 or 2 µs", more(r.identity.pattern)},
		{fmt.Sprintf("Certificates a second, %d callers, REST", r.plan.callers), "≥ 1,000", fmt.Sprintf("%.0f", r.rest.perSecond())},
		{"The same over gRPC", "–", fmt.Sprintf("%.0f", r.grpc.perSecond())},
		{"The same over REST without the log", "–", fmt.Sprintf("%.0f", r.restNoLog.perSecond())},
		{fmt.Sprintf("Latency at %d callers, median / p99", r.plan.callers), "–", micros(r.rest.p50) + " / " + micros(r.rest.p99)},
		{"Latency of one caller, median / p99", "median < 25 ms", micros(r.solo.p50) + " / " + micros(r.solo.p99)},
		{"One write of 1 kB with fsync on the same disk, median", "–", micros(r.fsync)},
		{"Start to first certificate, existing CA", "< 1 s", r.start.Round(time.Millisecond).String()},
		{fmt.Sprintf("Resident memory after %d certificates", r.soaked), "< 80 MB", fmt.Sprintf("%.1f MB", float64(r.resident)/1e6)},
		{"Binary", "< 60 MB", fmt.Sprintf("%.1f MB", float64(r.binarySize)/1e6)},
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Performance

Written by %s, all figures from one run. CPU is what the operating system
charged to the server's process, user and system, divided by the certificates
issued; the load generator runs beside it on the same cores. Compare ratios, not
absolute times: they survive a change of machine.

Machine: %s.

| Figure | Target | Measured |
|---|---|---|
`, "`make bench`", r.machine)
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", row.what, row.target, row.value)
	}
	fmt.Fprintf(&b, `
| CPU time | |
|---|---|
| RS256 (2048 bits) verification | %s |
| Authentication of a token, type email, with a condition in CEL; its signature alone | %s; %s |
| The same, GitHub preset | %s; %s |
| P-256 verification | %s |
| P-256 signature | %s |
| Bare cryptography of one issuance (1 RS256 and 2 P-256 verifications, 3 P-256 signatures) | %s |
| One certificate, REST, embedded log | %s |
| One certificate, gRPC, embedded log | %s |
| One certificate, REST, no log (and so one signature less of the log, and no SCT verification) | %s |
`, micros(r.bare.rs256Verify), micros(r.identity.email.all), micros(r.identity.email.signature),
		micros(r.identity.github.all), micros(r.identity.github.signature), micros(r.bare.p256Verify), micros(r.bare.p256Sign), micros(bare),
		micros(r.rest.cpu), micros(r.grpc.cpu), micros(r.restNoLog.cpu))
	b.WriteString(r.keys())
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
`, micros(r.bare.p256Verify))
	for _, f := range r.adapters {
		verify := r.bare.p256Verify
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
