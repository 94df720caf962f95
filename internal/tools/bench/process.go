package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is a running program, by the number that the kernel knows it by (proc(5)).
type process int

func (p process) file(name string) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", int(p), name))
	return string(text), err
}

// cpu is the CPU time of the process so far, user and system.
func (p process) cpu() (time.Duration, error) {
	text, err := p.file("stat")
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(text, ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("unexpected /proc/pid/stat")
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on Linux
	var total time.Duration
	for _, f := range fields[11:13] { // utime and stime are fields 14 and 15
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(n) * tick
	}
	return total, nil
}

// resident is its resident memory in bytes.
func (p process) resident() (int64, error) {
	kB, err := p.number("status", "VmRSS:")
	return kB << 10, err
}

// written is how many bytes it caused to be written to a disk, in whole pages.
// Those of a disk of memory don't count.
func (p process) written() (int64, error) { return p.number("io", "write_bytes:") }

func (p process) number(file, name string) (int64, error) {
	text, err := p.file(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s in /proc/pid/%s", name, file)
}

// below are the processes that p has started, and those that they have.
func (p process) below() []process {
	var all []process
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", int(p))) // the pattern is a good one
	for _, file := range files {
		text, _ := os.ReadFile(file) // one that has ended has none
		for _, field := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(field); err == nil {
				all = append(append(all, process(n)), process(n).below()...)
			}
		}
	}
	return all
}
