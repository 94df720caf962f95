package trustroot

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestExcise: an authority counts before and after a gap, to the second, and nothing
// else of the history changes.
func TestExcise(t *testing.T) {
	t.Parallel()
	at := func(second int) time.Time { return time.Date(2026, 11, 29, 12, 0, second, 0, time.UTC) }
	window := func(start, end int) Authority {
		a := Authority{Start: at(start)}
		if end > 0 {
			a.End = at(end)
		}
		return a
	}
	for _, test := range []struct {
		authority Authority
		gap       [2]int
		want      string // windows, by their seconds
	}{
		{window(0, 0), [2]int{10, 20}, "0-9 21-"},
		{window(0, 50), [2]int{10, 20}, "0-9 21-50"},
		{window(0, 50), [2]int{10, 10}, "0-9 11-50"},
		{window(15, 50), [2]int{10, 20}, "21-50"},
		{window(0, 15), [2]int{10, 20}, "0-9"},
		{window(0, 10), [2]int{10, 20}, "0-9"},
		{window(20, 0), [2]int{10, 20}, "21-"},
		{window(12, 18), [2]int{10, 20}, ""},
		{window(21, 50), [2]int{10, 20}, "21-50"},
		{window(0, 9), [2]int{10, 20}, "0-9"},
	} {
		h := History{Authorities: []Authority{test.authority}, TimestampAuthorities: []Authority{test.authority}}
		got := h.Excise([]Gap{{From: at(test.gap[0]), To: at(test.gap[1])}})
		var words []string
		for _, a := range got.Authorities {
			word := fmt.Sprintf("%d-", a.Start.Second())
			if !a.End.IsZero() {
				word += fmt.Sprint(a.End.Second())
			}
			words = append(words, word)
		}
		if strings.Join(words, " ") != test.want || len(got.TimestampAuthorities) != 1 {
			t.Errorf("%d-%d without %v: %v, want %s", test.authority.Start.Second(), test.authority.End.Second(), test.gap, words, test.want)
		}
	}
}

// TestParseGap: two times, the earlier first.
func TestParseGap(t *testing.T) {
	t.Parallel()
	const good = "2026-11-29T10:00:00Z/2026-11-29T11:30:00Z"
	if g, err := ParseGap(good); err != nil || g.String() != good {
		t.Errorf("%v, %v", g, err)
	}
	for _, bad := range []string{"", "2026-11-29T10:00:00Z", "2026-11-29T11:30:00Z/2026-11-29T10:00:00Z", good + "/", "yesterday/today", "0001-01-01T00:00:00Z/2026-11-29T10:00:00Z"} {
		if _, err := ParseGap(bad); err == nil || !strings.Contains(err.Error(), "isn't two times") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
