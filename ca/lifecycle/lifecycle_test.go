package lifecycle

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// faultsOf are the faults that a check adds.
func faultsOf(check func(*setting.Faults)) []string {
	var f setting.Faults
	check(&f)
	if err, ok := errors.AsType[*setting.FaultError](f.Err()); ok {
		return err.Faults
	}
	return nil
}

// entries are an active authority, first of all, and one in each other state.
func entries() []Entry {
	return []Entry{
		{"new", Record{}},
		{"prepared", Record{State: Prepared, Prepared: noon}},
		{"published", Record{State: Published, Prepared: noon, Published: noon}},
		{"active", Record{State: Active, Prepared: noon.Add(-3 * day), Published: noon.Add(-3 * day), Activated: noon.Add(-day)}},
		{"retired", Record{State: Retired, Prepared: noon, Published: noon, Activated: noon.Add(-2 * day), Retired: noon.Add(-day)}},
		{"distrusted", Record{State: Distrusted, Prepared: noon, Distrusted: noon}},
	}
}

// TestEveryActionInEveryState holds every action in every state against what may be.
func TestEveryActionInEveryState(t *testing.T) {
	t.Parallel()
	legal := map[string]State{
		"new prepare": Prepared, "prepared publish": Published, "published activate": Active, "retired publish": Published,
		"published retire":  Retired,
		"prepared distrust": Distrusted, "published distrust": Distrusted, "retired distrust": Distrusted,
	}
	for _, e := range entries() {
		for _, action := range []Action{Prepare, Publish, Activate, Retire, Distrust} {
			name := e.Name + " " + string(action)
			before := entries()
			next, err := Do(before, e.Name, action, Terms{Now: noon.Add(2 * day), Propagation: day})
			want, may := legal[name]
			if may != (err == nil) {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if !slices.Equal(before, entries()) {
				t.Errorf("%s: changed what it was given", name)
			}
			if err != nil {
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			after := next[Find(next, e.Name)]
			if after.State != want || !after.Since().Equal(noon.Add(2*day)) {
				t.Errorf("%s: %+v", name, after)
			}
			old := next[Find(next, "active")]
			if retired := action == Activate; retired != (old.State == Retired) || retired && !old.WindowEnd().Equal(noon.Add(2*day+Handover)) {
				t.Errorf("%s: the active one is %+v", name, old)
			}
			if faults := faultsOf(func(f *setting.Faults) { Check("", next, day, f) }); len(faults) > 0 {
				t.Errorf("%s leads to what can't be: %v", name, faults)
			}
		}
	}
	again, err := Do(entries(), "retired", Retire, Terms{Now: noon.Add(2 * day), Propagation: day, Again: true})
	if err != nil || !again[4].WindowEnd().Equal(noon.Add(2*day+Handover)) {
		t.Errorf("retired again, as asked: %+v, %v", again, err)
	}
	if _, err := Do(entries(), "unknown", Publish, Terms{Now: noon}); err == nil {
		t.Error("a step of an unknown authority")
	}
}

// TestPropagationGuard: by command, the time that the trusted root listed an
// authority counts, unless it is the first of all; force is recorded.
func TestPropagationGuard(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		after   time.Duration
		force   bool
		alone   bool
		refused bool
		forced  bool
	}{
		"at once":             {refused: true},
		"a second too soon":   {after: day - time.Second, refused: true},
		"in time":             {after: day},
		"forced":              {after: time.Hour, force: true, forced: true},
		"forced without need": {after: day, force: true},
		"the first of all":    {alone: true},
	} {
		all := []Entry{{"old", Record{State: Active}}, {"next", Record{State: Published, Prepared: noon, Published: noon}}}
		if tt.alone {
			all[0].Record = Record{State: Prepared, Prepared: noon}
		}
		next, err := Do(all, "next", Activate, Terms{Now: noon.Add(tt.after), Propagation: day, Force: tt.force})
		if tt.refused != errors.Is(err, ErrTooSoon) || tt.refused != (err != nil) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err == nil && (next[1].Forced != "") != tt.forced {
			t.Errorf("%s: forced %q", name, next[1].Forced)
		}
	}
}

// TestRollback: a retired authority signs again only after clients were told anew.
func TestRollback(t *testing.T) {
	t.Parallel()
	terms := func(after time.Duration) Terms { return Terms{Now: noon.Add(after), Propagation: day} }
	all := []Entry{{"old", Record{State: Active}}, {"next", Record{State: Published, Prepared: noon, Published: noon}}}
	var err error
	for _, s := range []struct {
		name    string
		action  Action
		after   time.Duration
		refused bool
	}{
		{"next", Activate, day, false},
		{"old", Activate, day + time.Minute, true},
		{"old", Publish, day + time.Minute, false},
		{"old", Activate, day + time.Hour, true},
		{"old", Activate, 2*day + time.Minute, false},
	} {
		was := all
		if all, err = Do(all, s.name, s.action, terms(s.after)); s.refused != (err != nil) {
			t.Fatalf("%s %s after %v: %v", s.action, s.name, s.after, err)
		}
		if err != nil {
			all = was
		}
	}
	if all[0].State != Active || all[1].State != Retired || !all[0].WindowEnd().IsZero() {
		t.Errorf("%+v", all)
	}
}

// TestCheck: what no command can have written, a person may have.
func TestCheck(t *testing.T) {
	t.Parallel()
	active := Entry{"a", Record{State: Active, Prepared: noon, Published: noon, Activated: noon.Add(day)}}
	retired := Entry{"b", Record{State: Retired, Activated: noon, Retired: noon.Add(day)}}
	with := func(e Entry, change func(*Record)) Entry {
		change(&e.Record)
		return e
	}
	for name, tt := range map[string]struct {
		all  []Entry
		want []string
	}{
		"good":                   {[]Entry{active, retired}, nil},
		"the first has no times": {[]Entry{{"a", Record{State: Active}}, {"b", Record{State: Prepared}}}, nil},
		"no state":               {[]Entry{{"a", Record{}}}, []string{"0 authorities are active"}},
		"two active":             {[]Entry{active, with(active, func(r *Record) {}), retired}, []string{"2 authorities are active"}},
		"another state":          {[]Entry{active, {"b", Record{State: "on"}}}, []string{`state: "on" is none of`}},
		"too soon":               {[]Entry{with(active, func(r *Record) { r.Activated = noon.Add(time.Hour) }), retired}, []string{"activated: 2026-03-01T13:00:00Z is 1h0m0s after it was published"}},
		"never published":        {[]Entry{with(active, func(r *Record) { r.Published = time.Time{} }), retired}, []string{"published: required of an active"}},
		"never activated":        {[]Entry{with(active, func(r *Record) { r.Activated = time.Time{} }), retired}, []string{"activated: required"}},
		"forced":                 {[]Entry{with(active, func(r *Record) { r.Activated, r.Forced = noon, "yes" }), retired}, nil},
		"retired when":           {[]Entry{active, with(retired, func(r *Record) { r.Retired = time.Time{} })}, []string{"retired: required"}},
		"retired before":         {[]Entry{active, with(retired, func(r *Record) { r.Retired = noon.Add(-day) })}, []string{"retired: 2026-02-28T12:00:00Z is before"}},
		"published when":         {[]Entry{active, {"b", Record{State: Published}}}, []string{"published: required of a published"}},
		"distrusted when":        {[]Entry{active, {"b", Record{State: Distrusted, Prepared: noon}}}, []string{"distrusted: required"}},
		"all at once":            {[]Entry{{"a", Record{State: "x"}}, {"b", Record{State: Published}}}, []string{"state:", "published:", "0 authorities"}},
	} {
		got := faultsOf(func(f *setting.Faults) { Check("", tt.all, day, f) })
		if len(got) != len(tt.want) {
			t.Errorf("%s: %q; want %q", name, got, tt.want)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], tt.want[i]) {
				t.Errorf("%s: %q; want %q", name, got[i], tt.want[i])
			}
		}
	}
	if faults := faultsOf(func(f *setting.Faults) { CheckTimes("", []Entry{active}, noon, f) }); len(faults) != 1 || !strings.HasPrefix(faults[0], "[0].activated: ") {
		t.Errorf("a state of tomorrow: %v", faults)
	}
	if faults := faultsOf(func(f *setting.Faults) { CheckTimes("", []Entry{active}, noon.Add(day-time.Minute), f) }); len(faults) != 0 {
		t.Errorf("a clock a minute behind: %v", faults)
	}
}
