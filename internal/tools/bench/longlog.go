package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded"
)

// longLog is what a certificate and a start cost when the log has so many entries.
type longLog struct {
	entries    uint64
	fill       throughput // entries put into the log alone before that
	full, solo figure     // a whole CA over it, with many callers and with one
	open       time.Duration
	recovery   time.Duration // the start after a kill under load
	verify     time.Duration // mayfly log verify
	resident   int64
	disk       int64 // bytes that the log takes
}

// fillCallers keep batches full: filling is about size.
const fillCallers = 512

// measureLong has a whole CA work with its log at each size. Between them the log
// is filled by itself, in this process, which is faster.
func measureLong(ctx context.Context, p plan, lp logPlan, source *chainSource) ([]longLog, error) {
	dir, err := os.MkdirTemp(lp.folder, "mayfly-bench-log-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := p.prepare(ctx, dir, logged); err != nil {
		return nil, err
	}
	var all []longLog
	for text := range strings.SplitSeq(lp.sizes, ",") {
		size, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("-log-sizes: %w", err)
		}
		fmt.Fprintf(os.Stderr, "bench: the long log, %d entries\n", size)
		one, err := p.longAt(ctx, dir, size, source)
		if err != nil {
			return nil, fmt.Errorf("at %d entries: %w", size, err)
		}
		all = append(all, one)
	}
	return all, nil
}

func (p plan) longAt(ctx context.Context, dir string, size uint64, source *chainSource) (f longLog, err error) {
	if f.fill, err = fill(ctx, dir, size, source); err != nil {
		return f, err
	}
	if err := p.work(ctx, dir, &f); err != nil {
		return f, err
	}
	begin := time.Now()
	s, err := p.launch(ctx, dir)
	if err != nil {
		return f, err
	}
	f.recovery = time.Since(begin)
	s.stop()
	if f.disk, err = diskUse(filepath.Join(dir, "ctlog")); err != nil {
		return f, err
	}
	if f.entries, err = logSize(dir); err != nil {
		return f, err
	}
	begin = time.Now()
	verify := exec.CommandContext(ctx, p.binary, "log", "verify", "--dir", filepath.Join(dir, "ctlog"), "--mark", filepath.Join(dir, "ctlog.mark"))
	if out, err := verify.CombinedOutput(); err != nil {
		return f, fmt.Errorf("mayfly log verify: %w: %s", err, out)
	}
	f.verify = time.Since(begin)
	return f, nil
}

// fill puts entries into the log of the CA in dir until it has so many.
func fill(ctx context.Context, dir string, size uint64, source *chainSource) (t throughput, err error) {
	has, err := logSize(dir)
	if err != nil || has >= size {
		return t, err
	}
	c := embedded.Config{Directory: pathOf(dir, "ctlog"), MarkFile: pathOf(dir, "ctlog.mark")}
	err = edit(dir, func(doc document) error {
		log, err := section(doc, "ctlog")
		if err != nil {
			return err
		}
		if log, err = section(log, "embedded"); err != nil {
			return err
		}
		c.URL, _ = log["url"].(string)
		return nil
	})
	if err != nil {
		return t, err
	}
	l, err := openLog(ctx, c, filepath.Join(dir, "ctlog.key.pem"), false)
	if err != nil {
		return t, err
	}
	t, err = closedLoop(ctx, into(l), source, fillCallers, func(_ time.Time, n uint64) bool { return n > size-has })
	return t, errors.Join(err, l.Close(context.WithoutCancel(ctx)))
}

// work has a CA issue from the log in dir, and ends it by a kill while it does.
func (p plan) work(ctx context.Context, dir string, f *longLog) error {
	begin := time.Now()
	s, err := p.launch(ctx, dir)
	if err != nil {
		return err
	}
	f.open = time.Since(begin)
	defer s.kill()
	l, err := p.newLoad(ctx, s.endpoints, p.callers, usual)
	if err != nil {
		return err
	}
	defer l.close()
	if _, err := l.measure(ctx, s.process(), l.rest, p.callers, p.each/10); err != nil { // warm-up
		return err
	}
	if f.full, err = l.measure(ctx, s.process(), l.rest, p.callers, p.each); err != nil {
		return err
	}
	if f.solo, err = l.measure(ctx, s.process(), l.rest, 1, p.solo); err != nil {
		return err
	}
	if f.resident, err = s.process().resident(); err != nil {
		return err
	}
	crash := time.AfterFunc(time.Second, func() { _ = s.cmd.Process.Kill() })
	defer crash.Stop()
	const endless = 1 << 20
	if _, err := l.measure(ctx, s.process(), l.rest, p.callers, endless); err == nil {
		return errors.New("the server outlived its kill")
	}
	return ctx.Err()
}

// logSize is the size in the checkpoint of the log in dir (c2sp.org/tlog-checkpoint).
func logSize(dir string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "ctlog", "checkpoint"))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "\n")
	size, _, _ := strings.Cut(rest, "\n")
	return strconv.ParseUint(size, 10, 64)
}

// diskUse is how much of the disk the files below dir take.
func diskUse(dir string) (int64, error) {
	var all int64
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			all += stat.Blocks * 512 // stat(2): whatever the disk's own blocks are
		}
		return nil
	})
	return all, err
}
