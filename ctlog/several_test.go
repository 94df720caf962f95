package ctlog_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// run makes a log of an operator.
func run(t *testing.T, operator string, i int, ca *ctlogtest.CA, f Fault) *Faulty {
	t.Helper()
	log := faulty(t, fmt.Sprintf("https://log%d", i), ca, f)
	log.Log.(*ctlogtest.Honest).About.Operator = operator //nolint:forcetypeassert // see faulty
	return log
}

// TestSeveralSCTs: which logs are asked, in which order and how long it takes, and
// whose SCTs come out, where a policy wants several.
func TestSeveralSCTs(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	const (
		good, down, slow = None, Down, Slow
		stagger          = 2 * time.Second
	)
	for name, tt := range map[string]struct {
		scts, operators int
		operator        string // a letter a log
		faults          []Fault
		want            []int // whose SCTs
		calls           []int64
		took            time.Duration
	}{
		"two of three":              {2, 1, "aaa", []Fault{good, good, good}, []int{0, 1}, []int64{1, 1, 0}, 0},
		"the first is down":         {2, 1, "aaa", []Fault{down, good, good}, []int{1, 2}, []int64{1, 1, 1}, 0},
		"the second is silent":      {2, 1, "aaa", []Fault{good, slow, good}, []int{0, 2}, []int64{1, 1, 1}, stagger},
		"both are silent":           {2, 1, "aaaa", []Fault{slow, slow, good, good}, []int{2, 3}, []int64{1, 1, 1, 1}, stagger},
		"silent, then down":         {2, 1, "aaaa", []Fault{slow, good, down, good}, []int{1, 3}, []int64{1, 1, 1, 1}, stagger},
		"two operators":             {2, 2, "aab", []Fault{good, good, good}, []int{0, 2}, []int64{1, 0, 1}, 0},
		"the other one is down":     {2, 2, "abac", []Fault{good, down, good, good}, []int{0, 3}, []int64{1, 1, 0, 1}, 0},
		"the first operator's":      {2, 2, "aab", []Fault{down, good, good}, []int{1, 2}, []int64{1, 1, 1}, 0},
		"three of two operators":    {3, 2, "aaab", []Fault{good, good, good, good}, []int{0, 1, 3}, []int64{1, 1, 0, 1}, 0},
		"only one operator is left": {2, 2, "aab", []Fault{good, good, down}, nil, []int64{1, 0, 1}, 0},
		"one is too few":            {2, 1, "ab", []Fault{good, down}, nil, []int64{1, 1}, 0},
		"one is silent for ever":    {2, 1, "ab", []Fault{good, slow}, nil, []int64{1, 1}, 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var logs []*Faulty
				var members []ctlog.Log
				for i, f := range tt.faults {
					logs = append(logs, run(t, tt.operator[i:i+1], i, ca, f))
					members = append(members, logs[i])
				}
				p := newPolicy(t, ctlog.Options{SCTs: tt.scts, Operators: tt.operators, Stagger: stagger, Timeout: 8 * time.Second}, members...)
				begin := time.Now()
				scts, err := p.Submit(t.Context(), ca.Chain(t))
				if took := time.Since(begin); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				var got []int
				for _, sct := range scts {
					got = append(got, slices.IndexFunc(logs, func(l *Faulty) bool { return l.Description().ID == sct.LogID }))
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("SCTs of %v, want %v; %v", got, tt.want, err)
				}
				if tt.want == nil && fault.From(err).Reason != fault.LogUnavailable {
					t.Errorf("got %v, want LOG_UNAVAILABLE", err)
				}
				synctest.Wait() // those that were not waited for
				for i, want := range tt.calls {
					if got := logs[i].Calls.Load(); got != want {
						t.Errorf("log %d was asked %d times, want %d", i, got, want)
					}
				}
			})
		})
	}
}

// TestSeveralFaults holds outages and lies where two SCTs are wanted: an outage of one log
// is a 503 without a third, and nothing with it; a lie is never among the SCTs, and
// is an internal error when nobody makes up for it.
func TestSeveralFaults(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	for _, f := range slices.Concat(Outages(), Lies()) {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				bad := run(t, "b", 1, ca, f)
				honest := []*Faulty{run(t, "a", 0, ca, None), run(t, "c", 2, ca, None)}
				o := ctlog.Options{SCTs: 2, Operators: 2}
				_, err := newPolicy(t, o, honest[0], bad).Submit(t.Context(), ca.Chain(t))
				want := fault.ReasonInternal
				if slices.Contains(Outages(), f) {
					want = fault.LogUnavailable
				}
				if err == nil || fault.From(err).Reason != want {
					t.Errorf("got %v, want %s", err, want)
				}
				scts, err := newPolicy(t, o, honest[0], bad, honest[1]).Submit(t.Context(), ca.Chain(t))
				if err != nil || len(scts) != 2 || scts[0].LogID != honest[0].Description().ID || scts[1].LogID != honest[1].Description().ID {
					t.Errorf("with a third log: %d SCTs, %v", len(scts), err)
				}
				synctest.Wait()
			})
		})
	}
}

// standing is a log whose Ready answers as it stands.
type standing struct {
	ctlog.Log
	err error
}

func (s standing) Ready(context.Context) error { return s.err }

// TestReadyWarns: where enough logs are ready, what is wrong with one that was asked is a
// warning, and what it answers with beside a warning isn't shown.
func TestReadyWarns(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	warns, fails := fault.Warning("its disk fills"), errors.New("/secret")
	for name, c := range map[string]struct {
		first, second error
		scts          int
		want          string // of a warning
		fails         bool
	}{
		"well":               {nil, nil, 2, "", false},
		"the first warns":    {warns, nil, 1, "https://log0: its disk fills", false},
		"the second, unused": {nil, warns, 1, "", false},
		"both warn":          {warns, warns, 2, "https://log0: its disk fills; https://log1: its disk fills", false},
		"a substitute":       {fails, nil, 1, "https://log0: it takes no entries now, and others take its place", false},
		"too few":            {fails, warns, 2, "", true},
		"a warning, wrapped": {fmt.Errorf("x: %w", warns), warns, 2, "", true},
	} {
		p := newPolicy(t, ctlog.Options{SCTs: c.scts}, standing{run(t, "a", 0, ca, None), c.first}, standing{run(t, "b", 1, ca, None), c.second})
		err := p.Ready(t.Context())
		switch {
		case c.fails != (err != nil && !fault.Warns(err)):
			t.Errorf("%s: %v", name, err)
		case !c.fails && (err == nil) != (c.want == ""), c.want != "" && err.Error() != c.want:
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestSeveralReady: ready is what can issue.
func TestSeveralReady(t *testing.T) {
	t.Parallel()
	ca := ctlogtest.NewCA(t)
	a, b := run(t, "a", 0, ca, None), run(t, "b", 1, ca, None)
	p := newPolicy(t, ctlog.Options{SCTs: 2}, a, b)
	if err := p.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	b.Log.(*ctlogtest.Honest).About.End = time.Now().Add(-time.Hour) //nolint:forcetypeassert // see faulty
	p = newPolicy(t, ctlog.Options{SCTs: 2}, a, b)
	if err := p.Ready(t.Context()); err == nil {
		t.Error("ready with one of two logs")
	}
	if _, err := p.Submit(t.Context(), ca.Chain(t)); fault.From(err).Reason != fault.LogUnavailable || a.Calls.Load() != 0 {
		t.Errorf("with one of two logs: %v, %d submissions", err, a.Calls.Load())
	}
	for name, o := range map[string]ctlog.Options{"three of two": {SCTs: 3}, "two operators of one": {SCTs: 2, Operators: 2}} {
		if _, err := ctlog.NewPolicy([]ctlog.Log{a, run(t, "a", 2, ca, None)}, o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestSeveralConfig: what can't be kept is refused at start.
func TestSeveralConfig(t *testing.T) {
	t.Parallel()
	logs := func(operators ...string) (all []ctlog.ExternalConfig) {
		for i, o := range operators {
			all = append(all, ctlog.ExternalConfig{URL: fmt.Sprintf("https://log%d", i), KeyFile: "k", Operator: o})
		}
		return all
	}
	for name, tt := range map[string]struct {
		c    ctlog.Config
		want int
	}{
		"two":                {ctlog.Config{SCTs: 2, Logs: logs("", "")}, 0},
		"two operators":      {ctlog.Config{SCTs: 2, Operators: 2, Logs: logs("a", "a", "b")}, 0},
		"more than logs":     {ctlog.Config{SCTs: 3, Logs: logs("", "")}, 1},
		"more than SCTs":     {ctlog.Config{Operators: 2, Logs: logs("a", "b")}, 1},
		"nameless operators": {ctlog.Config{SCTs: 2, Operators: 2, Logs: logs("a", "")}, 1},
		"one operator":       {ctlog.Config{SCTs: 2, Operators: 2, Logs: logs("a", "a")}, 1},
		"negative":           {ctlog.Config{SCTs: -1, Logs: logs("a")}, 1},
		"too many":           {ctlog.Config{SCTs: 9, Logs: logs("a", "b", "c", "d", "e", "f", "g", "h", "i")}, 1},
	} {
		tt.c.Mode = ctlog.ModeExternal
		var f setting.Faults
		tt.c.Check("ctlog", &f)
		if f.Len() != tt.want {
			t.Errorf("%s: %v, want %d faults", name, f.Err(), tt.want)
		}
	}
}
