package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// peerFigures is a CA that Mayfly is compared with, under the same load.
type peerFigures struct {
	name   string
	absent string // why it wasn't measured
	runs   []peerRun
}

// peerRun is one run of it.
type peerRun struct {
	run
	figure        // whose CPU is the CA's alone
	log, database time.Duration
}

// all is the CPU time of all parts, a certificate.
func (p peerRun) all() time.Duration { return p.cpu + p.log + p.database }

// peerRuns are its loads, and how many certificates each is of: it takes longer for them.
var peerRuns = []struct {
	run
	part int // of ours
}{{run{64, "REST", logged}, 4}, {run{8, "REST", logged}, 10}, {run{1, "REST", logged}, 10}, {run{64, "gRPC", logged}, 4}}

// programs are the peer's parts, by the beginning of their names in the kernel.
var programs = []struct {
	name string
	part func(*peerRun) *time.Duration
}{
	{"fulcio", func(p *peerRun) *time.Duration { return &p.cpu }},
	{"ct_server", func(p *peerRun) *time.Duration { return &p.log }},
	{"trillian_log", func(p *peerRun) *time.Duration { return &p.log }},
	{"mariadbd", func(p *peerRun) *time.Duration { return &p.database }},
}

// measurePeer runs the peer with the keys of the CA in from.
func measurePeer(ctx context.Context, r *report, dir, from string) error {
	if r.plan.peer == "" {
		r.peer.absent = "it was left out."
		return nil
	}
	r.step("the peer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"root.pem", "chain.pem", "issuing.key.pem"} {
		text, err := os.ReadFile(filepath.Join(from, "authority", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, r.plan.peer, append([]string{dir, r.plan.issuer.URL}, ports...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Cancel, cmd.WaitDelay = in.Close, 20*time.Second // it ends what it has started
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		r.peer.name = strings.TrimSpace(line)
		err = r.peerRuns(ctx, process(cmd.Process.Pid), endpoints{HTTP: "http://127.0.0.1:" + ports[0], GRPC: "127.0.0.1:" + ports[1]})
	}
	_ = in.Close()
	ended := cmd.Wait()
	const absent = 3 // peer.sh's own
	if cmd.ProcessState.ExitCode() == absent {
		r.peer.absent = strings.TrimSpace(line) + "."
		return nil
	}
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(dir, "fulcio.log"))
		return fmt.Errorf("the peer: %w: %s", errors.Join(err, ended), text[max(0, len(text)-2000):])
	}
	return nil
}

func (r *report) peerRuns(ctx context.Context, parent process, at endpoints) error {
	p := r.plan
	l, err := p.awaitLoad(ctx, at)
	if err != nil {
		return err
	}
	defer l.close()
	calls := map[string]call{"REST": l.rest, "gRPC": l.grpc}
	if _, err := l.measure(ctx, parent, l.rest, p.callers, p.each/20); err != nil { // warm-up
		return err
	}
	for _, one := range peerRuns {
		callers := min(one.callers, p.callers)
		r.step("the peer, %d callers over %s", callers, one.over)
		before, err := partsCPU(parent)
		if err != nil {
			return err
		}
		n := p.certificates(one.callers) / one.part
		f, err := l.measure(ctx, parent, calls[one.over], callers, n)
		if err != nil {
			return err
		}
		got, err := partsCPU(parent)
		if err != nil {
			return err
		}
		got.run, got.certificates, got.wall, got.p50, got.p99 = one.run, n, f.wall, f.p50, f.p99
		for part, was := range map[*time.Duration]time.Duration{&got.cpu: before.cpu, &got.log: before.log, &got.database: before.database} {
			*part = (*part - was) / time.Duration(max(n, 1))
		}
		r.peer.runs = append(r.peer.runs, got)
	}
	return nil
}

// awaitLoad is newLoad for a CA that is still starting.
func (p plan) awaitLoad(ctx context.Context, at endpoints) (*load, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		l, err := p.newLoad(ctx, at, p.callers, usual)
		if err == nil {
			return l, nil
		}
		select {
		case <-deadline:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// partsCPU is the CPU time of each part so far.
func partsCPU(parent process) (sum peerRun, err error) {
	found := make(map[string]bool)
	for _, p := range parent.below() {
		name, err := p.file("comm")
		if err != nil {
			continue // it has ended
		}
		for _, program := range programs {
			if strings.HasPrefix(name, program.name) {
				used, err := p.cpu()
				if err != nil {
					return sum, err
				}
				*program.part(&sum) += used
				found[program.name] = true
			}
		}
	}
	if len(found) < len(programs) {
		return sum, errors.New("not all parts of it run")
	}
	return sum, nil
}

// freePorts are ports on loopback that nothing listens on now.
func freePorts(n int) ([]string, error) {
	ports := make([]string, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // nothing waits
		if err != nil {
			return nil, err
		}
		defer l.Close()
		_, ports[i], _ = net.SplitHostPort(l.Addr().String())
	}
	return ports, nil
}

// times is the peer's CPU over ours in the same run.
func (p peerRun) times(r *report, cpu time.Duration) string { return ratio(cpu, r.runs[p.run].cpu) }

// peerRatio is the first row's, for the table of aims: without its database and with it.
func (r *report) peerRatio() string {
	if len(r.peer.runs) == 0 {
		return "not measured: " + r.peer.absent
	}
	first := r.peer.runs[0]
	return first.times(r, first.all()-first.database) + "; with its database " + first.times(r, first.all())
}

// peerTable is the comparison.
func (r *report) peerTable() string {
	var b strings.Builder
	b.WriteString("\n## Beside a peer\n\n")
	if r.peer.absent != "" {
		return b.String() + "Not measured: " + r.peer.absent + "\n"
	}
	fmt.Fprintf(&b, `%s, in the same run: the same issuing key, tokens, keys of callers and load generator, both logs on
the same disk.

| Callers | Over | Certificates a second, ours / the peer's | Latency, median / p99, ours | the peer's | CPU a certificate, ours | the peer's CA + log + database | CA and log over ours | with the database |
|---|---|---|---|---|---|---|---|---|
`, r.peer.name)
	for _, f := range r.peer.runs {
		ours := r.runs[f.run]
		fmt.Fprintf(&b, "| %d | %s | %.0f / %.0f | %s / %s | %s / %s | %s | %s + %s + %s | %s | %s |\n", f.callers, f.over, ours.perSecond(), f.perSecond(),
			micros(ours.p50), micros(ours.p99), micros(f.p50), micros(f.p99), micros(ours.cpu),
			micros(f.cpu), micros(f.log), micros(f.database), f.times(r, f.all()-f.database), f.times(r, f.all()))
	}
	return b.String()
}
