package lifecycle

import (
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// TestCheckFollow: what a process has told its clients, and what it signed, bounds
// what may come next, whatever is written.
func TestCheckFollow(t *testing.T) {
	t.Parallel()
	now := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	old, next := ID([]byte("old")), ID([]byte("next"))
	entry := func(name string, r Record) Entry { return Entry{Name: name, Record: r} }
	retired := func(at time.Time) Entry { return entry("old", Record{State: Retired, Retired: at}) }
	active := entry("next", Record{State: Active, Published: now.Add(-30 * day), Activated: now})
	forced := active
	forced.Forced = "a person"
	stays := entry("old", Record{State: Active})
	both := []Listed{{"old", old}, {"next", next}}
	for name, c := range map[string]struct {
		listed []Listed
		first  time.Time // when the process began to list next; zero for at its start
		next   []Entry
		active [32]byte
		want   []string // "entry field text", in order
		// swapped are those whose chain file has another certificate in its place.
		swapped string
	}{
		"one authority":                          {both[:1], now, nil, old, nil, ""},
		"nothing changes":                        {both, time.Time{}, []Entry{stays, entry("next", Record{State: Published})}, old, nil, ""},
		"listed since before the start":          {both, time.Time{}, []Entry{retired(now), active}, next, nil, ""},
		"listed for a day":                       {both, now.Add(-day), []Entry{retired(now), active}, next, nil, ""},
		"listed for all but the tenth":           {both, now.Add(-day + day/10), []Entry{retired(now), active}, next, nil, ""},
		"listed for less":                        {both, now.Add(-day + day/10 + time.Second), []Entry{retired(now), active}, next, []string{"a[1].published: this service has listed next for 21h35m59s, whatever is written"}, ""},
		"listed for less, forced":                {both, now.Add(-time.Hour), []Entry{retired(now), forced}, next, nil, ""},
		"never listed":                           {both[:1], time.Time{}, []Entry{retired(now), active}, next, []string{"a[1].published: this service has listed next for 0s, "}, ""},
		"one that is listed is gone":             {both, time.Time{}, []Entry{stays}, old, []string{"a: next is gone, "}, ""},
		"one that is listed isn't any more":      {both, time.Time{}, []Entry{stays, entry("next", Record{State: Prepared})}, old, []string{"a[1].state: next is no more listed, "}, ""},
		"one that is listed is distrusted":       {both, time.Time{}, []Entry{stays, entry("next", Record{State: Distrusted})}, old, nil, ""},
		"the one that signs is distrusted":       {both, time.Time{}, []Entry{entry("old", Record{State: Distrusted}), active}, next, []string{"a[0].state: old signs in this service: "}, ""},
		"the window of the signer is closed":     {both, time.Time{}, []Entry{retired(now.Add(-Handover - time.Second)), active}, next, []string{"a[0].retired: old signed in this service until now, "}, ""},
		"the window of the signer is at its end": {both, time.Time{}, []Entry{retired(now.Add(-Handover)), active}, next, nil, ""},
		"two faults": {both, now, []Entry{entry("old", Record{}), active}, next, []string{
			"a[0].state: old is no more listed, ", "a[1].published: this service has listed next for 0s, "}, ""},
		"the signer's chain is swapped": {both, time.Time{}, []Entry{stays, entry("next", Record{State: Published})}, ID([]byte("other")), []string{
			"a[0].chain: begins with another certificate than the one of old", "a[0].published: "}, "old"},
		"both chains are swapped": {both, time.Time{}, []Entry{stays, entry("next", Record{State: Published})}, old, []string{
			"a[0].chain: begins with another", "a[1].chain: begins with another"}, "old next"},
		"the chain of a distrusted one is swapped": {both, time.Time{}, []Entry{stays, entry("next", Record{State: Distrusted})}, old, nil, "next"},
	} {
		before := InForce{Listed: c.listed, Active: old, FirstListed: map[[32]byte]time.Time{}, Chains: map[string][32]byte{"old": old, "next": next}}
		chains := map[string][32]byte{"old": old, "next": next}
		for swapped := range strings.SplitSeq(c.swapped, " ") {
			chains[swapped] = ID([]byte("other"))
		}
		if !c.first.IsZero() {
			before.FirstListed[next] = c.first
		}
		got := faultsOf(func(f *setting.Faults) {
			CheckFollow("a", before, c.next, c.active, chains, Terms{Now: now, Propagation: day}, f)
		})
		if len(got) != len(c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
			continue
		}
		for i, want := range c.want {
			if !strings.HasPrefix(got[i], want) {
				t.Errorf("%s: got %q, want %q", name, got[i], want)
			}
		}
	}
}
