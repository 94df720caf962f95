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
	long    *longLog
}

// markdown is the document.
func (r *logReport) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Performance of the embedded log

Written by %s, all figures from one run, each of %v: the log alone, in one process
with its callers, each of whom waits for an SCT before asking for the next. An SCT
is there when its entry is durable, so the disk decides: the time of one bare write
with fsync on the same disk, just before each figure, stands beside it.

Machine: %s.

| How entries become durable together | callers | SCTs a second | median | p99 | bare fsync |
|---|---|---|---|---|---|
`, "`make bench-log`", r.window, r.machine)
	for _, t := range r.all {
		fmt.Fprintf(&b, "| %s | %d | %.0f | %s | %s | %s |\n", t.setting, t.callers,
			float64(t.entries)/t.wall.Seconds(), micros(t.p50), micros(t.p99), micros(t.bareFsync))
	}
	if r.long == nil {
		return b.String()
	}
	last := r.long.memory[len(r.long.memory)-1]
	fmt.Fprintf(&b, `
## A log of %d entries

On a disk of memory, with %d callers in the same process: %.0f entries a second, %.1f GB of
files. The heap is what is live after a collection.

| Entries | heap | resident |
|---|---|---|
`, last.entries, longCallers, float64(last.entries)/r.long.wall.Seconds(), float64(r.long.disk)/1e9)
	for _, m := range r.long.memory {
		fmt.Fprintf(&b, "| %d | %s | %s |\n", m.entries, megabytes(m.heap), megabytes(m.resident))
	}
	fmt.Fprintf(&b, `
| Figure | Target | Measured |
|---|---|---|
| Opening it again, with all guards | < 2 s | %v |
| The first get-proof-by-hash, which makes the index | – | %v |
| The second | – | %v |
| Heap with that index | – | %s |
`, r.long.start.Round(time.Millisecond), r.long.first.Round(time.Millisecond), r.long.second.Round(10*time.Microsecond), megabytes(r.long.indexed.heap))
	return b.String()
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
