package lifecycle

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestSignedTrustRoot: where people sign what clients trust, the guard counts from when
// that began to list an authority, and one that it doesn't list waits for ever.
func TestSignedTrustRoot(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	for name, c := range map[string]struct {
		since       time.Time
		listed      bool
		now         time.Time
		propagation time.Duration
		force       bool
		wait        time.Duration
		refusal     string // of the activation
		fault       string // of a state that says so all the same
	}{
		"listed later than published": {noon.Add(10 * hour), true, noon.Add(25 * hour), day, false, 9 * hour, "was published at 2026-03-01T22:00:00Z", "is 15h0m0s after the signed trust root began to list published"},
		"listed for long enough":      {noon.Add(10 * hour), true, noon.Add(34 * hour), day, false, 0, "", ""},
		"known from the beginning":    {time.Time{}, true, noon.Add(day), day, false, 0, "", ""},
		"not listed":                  {time.Time{}, false, noon.Add(10 * day), day, false, day, "the signed trust root doesn't list published", "doesn't list published, so clients refuse what it signs"},
		"not listed, forced":          {time.Time{}, false, noon.Add(10 * day), day, true, day, "", ""},
		"not listed, without a guard": {time.Time{}, false, noon.Add(10 * day), 0, false, 0, "", ""},
	} {
		all := entries()
		i := Find(all, "published")
		terms := Terms{Now: c.now, Propagation: c.propagation, Force: c.force, SignedSince: func(string) (time.Time, bool) { return c.since, c.listed }}
		if wait := Wait(all, i, terms); wait != c.wait {
			t.Errorf("%s: waits %v", name, wait)
		}
		next, err := Do(all, "published", Activate, terms)
		if c.refusal == "" && err != nil || c.refusal != "" && (!errors.Is(err, ErrTooSoon) || !strings.Contains(err.Error(), c.refusal)) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && c.force != (next[i].Forced != "") {
			t.Errorf("%s: forced %q", name, next[i].Forced)
		}
		if next == nil { // as somebody could write it
			next = entries()
			next[Find(next, "active")].State = Retired
			next[i].State, next[i].Activated = Active, c.now
		}
		faults := faultsOf(func(f *setting.Faults) { CheckSigned("", next, terms, f) })
		if c.fault == "" && len(faults) > 0 || c.fault != "" && (len(faults) != 1 || !strings.Contains(faults[0], c.fault)) {
			t.Errorf("%s: %v", name, faults)
		}
	}
	first := []Entry{{"only", Record{State: Active}}}
	terms := Terms{Propagation: day, SignedSince: func(string) (time.Time, bool) { return time.Time{}, false }}
	if faults := faultsOf(func(f *setting.Faults) { CheckSigned("", first, terms, f) }); len(faults) > 0 {
		t.Errorf("the first authority of all: %v", faults)
	}
}
