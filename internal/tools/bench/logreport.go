package main

import (
	"fmt"
	"strings"
	"time"
)

// logReport collects the figures of one run of `-log`.
type logReport struct {
	machine string
	window  time.Duration
	all     []throughput
	long    []longLog
}

// markdown is the document.
func (r *logReport) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Performance of the embedded log

Written by %s, all figures from one run.

Machine: %s.

## The log alone

Each for %v, in one process with its callers, each of whom waits for an SCT before
asking for the next. An SCT is there when its entry is durable, so the disk decides: the time
of one bare write with fsync on the same disk, just before, stands beside it.

| Callers | SCTs a second | median | p99 | bare fsync |
|---|---|---|---|---|
`, "`make bench-log`", r.machine, r.window)
	for _, t := range r.all {
		fmt.Fprintf(&b, "| %d | %.0f | %s | %s | %s |\n", t.callers, t.perSecond(), micros(t.p50), micros(t.p99), micros(t.bareFsync))
	}
	if len(r.long) > 0 {
		b.WriteString(r.longTable())
	}
	return b.String()
}

// longTable has a column for each size.
func (r *logReport) longTable() string {
	var b strings.Builder
	fmt.Fprintf(&b, `
## As it grows

A whole CA over REST with its log on a disk in memory, at each size: with 64 callers, with one, killed
under load, started again, and its log verified. Between the sizes the log is filled by
itself. On disk are also the write-ahead file's two segments, 16 MB however long the log is.

| | Target |%s
|---|---|%s
`, r.columns(func(f longLog) string { return fmt.Sprintf("%d entries", f.entries) }), strings.Repeat("---|", len(r.long)))
	for _, row := range []struct {
		what, target string
		value        func(longLog) string
	}{
		{"CPU a certificate, 64 callers", "flat", func(f longLog) string { return micros(f.full.cpu) }},
		{"Latency, 64 callers, median / p99", "flat", func(f longLog) string { return micros(f.full.p50) + " / " + micros(f.full.p99) }},
		{"Written to disk a certificate, 64 callers", "flat", func(f longLog) string { return kilobytes(f.full.written) }},
		{"CPU a certificate, 1 caller", "flat", func(f longLog) string { return micros(f.solo.cpu) }},
		{"Latency, 1 caller, median / p99", "flat", func(f longLog) string { return micros(f.solo.p50) + " / " + micros(f.solo.p99) }},
		{"Written to disk a certificate, 1 caller", "flat", func(f longLog) string { return kilobytes(f.solo.written) }},
		{"Log on disk an entry", "≤ 1.4 kB from a million on", func(f longLog) string { return kilobytes(f.disk / int64(max(f.entries, 1))) }},
		{"Start until ready", "< 2 s", func(f longLog) string { return f.open.Round(time.Millisecond).String() }},
		{"Start until ready, after a kill under load", "< 2 s", func(f longLog) string { return f.recovery.Round(time.Millisecond).String() }},
		{"`mayfly log verify`", "–", func(f longLog) string { return f.verify.Round(10 * time.Millisecond).String() }},
		{"Resident memory of the CA", "–", func(f longLog) string { return fmt.Sprintf("%.1f MB", float64(f.resident)/1e6) }},
		{"Entries a second while it was filled, 512 callers", "–", func(f longLog) string { return fmt.Sprintf("%.0f", f.fill.perSecond()) }},
	} {
		fmt.Fprintf(&b, "| %s | %s |%s\n", row.what, row.target, r.columns(row.value))
	}
	return b.String()
}

func (r *logReport) columns(of func(longLog) string) string {
	var b strings.Builder
	for _, f := range r.long {
		fmt.Fprintf(&b, " %s |", of(f))
	}
	return b.String()
}
