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
	"syscall"
	"time"
)

// plan says how much of each thing is measured.
type plan struct {
	binary  string
	peer    string        // script that runs the peer; empty leaves it out
	profile string        // folder that receives profiles of the server; empty takes none
	each    int           // certificates of each figure
	solo    int           // of those of one caller
	soak    int           // before resident memory is read
	callers int           // of the full load
	direct  time.Duration // of each figure of a CA whose key is in a KMS
	issuer  *issuer
}

func main() {
	var p plan
	out := flag.String("out", "", "file that the table is written to as well")
	flag.StringVar(&p.binary, "mayfly", "bin/mayfly", "the binary to measure")
	flag.StringVar(&p.peer, "peer", "", "script that runs the peer (internal/tools/bench/peer.sh); empty leaves it out")
	flag.StringVar(&p.profile, "profile", "", "folder that receives CPU profiles of the server under REST load")
	flag.IntVar(&p.each, "certificates", 10_000, "certificates for each figure")
	flag.IntVar(&p.solo, "solo", 2000, "certificates for each figure of one caller")
	flag.IntVar(&p.soak, "soak", 100_000, "certificates before resident memory is read")
	flag.IntVar(&p.callers, "callers", 64, "concurrent callers of the full load, 64 or more")
	flag.DurationVar(&p.direct, "direct", 10*time.Second, "time of each figure of a CA whose key is in a KMS")
	keys := flag.Bool("keys", false, "measure keys in a KMS alone, and write nothing")
	standIn := flag.String("stand-in", "", "be a vendor's service, for another of these programs")
	ofIndex := flag.Bool("index", false, "measure the index of what was issued alone, and print a table")
	var ip indexPlan
	flag.IntVar(&ip.entries, "index-entries", 1_000_000, "with -index: certificates")
	flag.StringVar(&ip.postgres, "index-postgres", "", "with -index: URL of an empty PostgreSQL database in place of SQLite")
	flag.IntVar(&ip.searches, "index-searches", 200, "with -index: searches of each kind")
	revoked := flag.Int("revoked", 0, "measure issuing beside lists of so many revoked certificates alone, 10 to 100000, and print a table")
	log := flag.Bool("log", false, "measure the embedded log alone instead")
	var lp logPlan
	flag.DurationVar(&lp.window, "log-window", 4*time.Second, "with -log: time of each figure")
	flag.StringVar(&lp.sizes, "log-sizes", "10000,1000000", "with -log: sizes at which the long log is measured")
	flag.StringVar(&lp.folder, "log-folder", "", "with -log: folder of the long log; empty leaves it out")
	flag.Parse()
	if p.callers < 64 {
		fatal(fmt.Errorf("-callers %d: the table has runs of 64, so it has to be 64 or more", p.callers))
	}

	var err error
	if p.issuer, err = newIssuer(); err != nil {
		fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	measure := func(dir string) (string, error) { return measureAll(ctx, p, dir) }
	switch {
	case *standIn != "":
		measure = func(dir string) (string, error) { return "", serveStandIn(*standIn, dir) }
	case *ofIndex:
		measure = func(dir string) (string, error) { return runIndex(ctx, ip, dir) }
	case *revoked > 0:
		measure = func(dir string) (string, error) { return runRevoked(ctx, p, *revoked, dir) }
	case *log:
		measure = func(dir string) (string, error) { return measureLog(ctx, p, lp, dir) }
	case *keys:
		*out = ""
		measure = func(dir string) (string, error) { return runKeys(ctx, p, dir) }
	}
	if err := inFolder(measure, *out); err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// inFolder has something measured with a folder of its own, and writes what it says.
func inFolder(measure func(dir string) (string, error), out string) error {
	dir, err := os.MkdirTemp("", "mayfly-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	text, err := measure(dir)
	if err != nil || text == "" {
		return err
	}
	fmt.Println(text)
	if out == "" {
		return nil
	}
	return os.WriteFile(out, []byte(text), 0o644)
}

// measureAll is the whole of docs/performance.md.
func measureAll(ctx context.Context, p plan, dir string) (string, error) {
	r := newReport(p)
	var err error
	r.step("bare cryptography")
	if r.bare, err = bareCryptography(time.Second); err != nil {
		return "", err
	}
	r.step("authentication")
	if r.identity, err = authentication(ctx, dir, 2*time.Second); err != nil {
		return "", err
	}
	if info, err := os.Stat(p.binary); err == nil {
		r.binarySize = info.Size()
	}
	folder := filepath.Join(dir, "logged")
	for _, part := range []func() error{
		func() error { return measureCallers(ctx, r, folder, logged) },
		func() error { return measurePeer(ctx, r, filepath.Join(dir, "peer"), folder) },
		func() error { return measureCallers(ctx, r, filepath.Join(dir, "indexed"), indexed) },
		func() error { return measureCallers(ctx, r, filepath.Join(dir, "unlogged"), unlogged) },
		func() error { return measureKinds(ctx, r, dir) },
		func() error { return measureKeys(ctx, r, dir) },
	} {
		if err := part(); err != nil {
			return "", err
		}
	}
	return r.markdown(), nil
}

// runKeys measures what costs what with the key in a KMS, and nothing else.
func runKeys(ctx context.Context, p plan, dir string) (string, error) {
	r := newReport(p)
	var err error
	if r.bare, err = bareCryptography(time.Second); err != nil {
		return "", err
	}
	err = measureKeys(ctx, r, dir)
	return r.keys(), err
}

// measureKeys fills in the figures of keys in a KMS.
func measureKeys(ctx context.Context, r *report, dir string) error {
	r.step("adapters")
	var err error
	if r.adapters, err = measureAdapters(ctx, dir, time.Second); err != nil {
		return err
	}
	if err := measureModes(ctx, r, dir); err != nil {
		return err
	}
	return measureDirect(ctx, r, dir, r.plan.direct)
}
