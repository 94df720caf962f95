package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// longLog is what a log of many entries costs.
type longLog struct {
	memory  []memoryAt
	wall    time.Duration
	start   time.Duration // to open it again
	first   time.Duration // the first get-proof-by-hash, which makes the index
	second  time.Duration
	indexed memoryAt // after it
	disk    int64    // bytes of all files
}

// memoryAt is the memory of the process when the log had so many entries. The load
// is made in the same process.
type memoryAt struct {
	entries        uint64
	heap, resident int64 // live bytes after a collection; what the kernel counts
}

// longCallers keep batches full: the long log is about size.
const longCallers = 512

func measureLong(ctx context.Context, p logPlan, source *chainSource) (*longLog, error) {
	dir, err := os.MkdirTemp(p.memory, "mayfly-bench-log-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	l, err := openLog(ctx, dir, true)
	if err != nil {
		return nil, err
	}
	var result longLog
	var last ctlog.Chain
	var lastSCT ctlog.SCT
	do := func(ctx context.Context, chain ctlog.Chain) error {
		_, err := l.Submit(ctx, chain)
		return err
	}
	for step := uint64(1); step <= 10; step++ {
		fmt.Fprintf(os.Stderr, "bench: the long log, %d of %d entries\n", step*p.entries/10, p.entries)
		t, err := closedLoop(ctx, do, source, longCallers, func(_ time.Time, n uint64) bool { return n > p.entries/10 })
		if err != nil {
			return nil, errors.Join(err, l.Close(context.WithoutCancel(ctx)))
		}
		result.wall += t.wall
		m, err := memoryNow(step * p.entries / 10)
		if err != nil {
			return nil, err
		}
		result.memory = append(result.memory, m)
	}
	last = source.next()
	if lastSCT, err = l.Submit(ctx, last); err != nil {
		return nil, err
	}
	if err := l.Close(ctx); err != nil {
		return nil, err
	}
	begin := time.Now()
	if l, err = openLog(ctx, dir, false); err != nil {
		return nil, err
	}
	result.start = time.Since(begin)
	if err := result.proofs(ctx, l, p.entries+1, last, lastSCT); err != nil {
		return nil, errors.Join(err, l.Close(context.WithoutCancel(ctx)))
	}
	if result.disk, err = sizeOf(dir); err != nil {
		return nil, err
	}
	return &result, l.Close(ctx)
}

// proofs asks twice for the proof of the last entry.
func (r *longLog) proofs(ctx context.Context, l *embedded.Log, size uint64, last ctlog.Chain, sct ctlog.SCT) error {
	signed, err := last.SignedBytes(sct.Timestamp, sct.Extensions)
	if err != nil {
		return err
	}
	hash := sha256.Sum256(append([]byte{0}, signed...)) // RFC 6962 §2.1: a leaf
	path := "/ct/v1/get-proof-by-hash?hash=" + strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(base64.StdEncoding.EncodeToString(hash[:])) +
		"&tree_size=" + strconv.FormatUint(size, 10)
	for _, took := range []*time.Duration{&r.first, &r.second} {
		begin := time.Now()
		answer := httptest.NewRecorder()
		l.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil))
		if *took = time.Since(begin); answer.Code != http.StatusOK {
			return fmt.Errorf("get-proof-by-hash answered %d: %s", answer.Code, answer.Body)
		}
	}
	r.indexed, err = memoryNow(size)
	return err
}

func memoryNow(entries uint64) (memoryAt, error) {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	raw, err := os.ReadFile("/proc/self/statm") // proc(5): pages; the second field is resident
	if err != nil {
		return memoryAt{}, err
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	return memoryAt{entries, int64(stats.HeapAlloc), pages * int64(os.Getpagesize())}, err
}

// sizeOf is how many bytes the files below dir have.
func sizeOf(dir string) (int64, error) {
	var all int64
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			all += info.Size()
		}
		return err
	})
	return all, err
}

func pathOf(dir, name string) setting.Path { return setting.Path(filepath.Join(dir, name)) }
