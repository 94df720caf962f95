package trustroot

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLost: what was signed before is verified after, or it is named.
func TestLost(t *testing.T) {
	t.Parallel()
	before := sample(t)
	change := epoch.AddDate(0, 1, 0) // when the second of each starts
	now := epoch.AddDate(1, 0, 0)
	for name, tt := range map[string]struct {
		edit func(*History)
		now  time.Time
		want []string // parts of each
	}{
		"nothing changes": {func(*History) {}, now, nil},
		"more is listed":  {func(h *History) { h.CTLogs = append(h.CTLogs, newLog(t)) }, now, nil},
		"an authority is gone": {
			func(h *History) { h.Authorities = h.Authorities[1:] }, now,
			[]string{"the certificate authority CN=intermediate,O=Example (serial number "},
		},
		"one that ended is gone": {
			func(h *History) { h.Authorities = h.Authorities[:1] }, now,
			[]string{"isn't listed any more: nothing signed under it can be verified"},
		},
		"a timestamp authority is gone": {
			func(h *History) { h.TimestampAuthorities = h.TimestampAuthorities[1:] }, now,
			[]string{"the timestamp authority CN=leaf,O=Stamps (serial number "},
		},
		"its other certificate by the same key is another": {
			func(h *History) { h.TimestampAuthorities[0].Chain = newStamping(t, asIs) }, now,
			[]string{"the timestamp authority CN=leaf"},
		},
		"all logs are gone": {
			func(h *History) { h.CTLogs, h.TransparencyLogs = nil, nil }, now,
			[]string{"the CT log https://log.example (log id ", "the CT log ", "the Rekor log https://rekor.example (log id ", "the Rekor log "},
		},
		"a log that is one of both is still the other": {
			func(h *History) {
				h.CTLogs = append(h.CTLogs, h.TransparencyLogs[0].Description)
				h.TransparencyLogs = h.TransparencyLogs[1:]
			}, now,
			[]string{"the Rekor log "},
		},
		"one that hadn't begun is gone": {func(h *History) { h.Authorities = h.Authorities[1:] }, change.Add(-1), nil},
		"one that has just begun is gone": {
			func(h *History) { h.Authorities = h.Authorities[1:] }, change, []string{"the certificate authority "},
		},
		"an end ahead": {func(h *History) { h.CTLogs[1].End = now }, now, nil},
		"an end that is behind": {
			func(h *History) { h.CTLogs[1].End = now.Add(-time.Second) }, now,
			[]string{"is listed from 2026-01-02T03:04:05Z to 2027-01-02T03:04:04Z and was from 2026-01-02T03:04:05Z: nothing signed in between can be verified"},
		},
		"an end that was behind moves back": {
			func(h *History) { h.TimestampAuthorities[1].End = change.Add(-time.Second) }, now,
			[]string{"to 2026-02-02T03:04:04Z and was from 2026-01-02T03:04:05Z to 2026-02-02T03:04:05Z"},
		},
		"an end that was behind opens": {func(h *History) { h.TimestampAuthorities[1].End = time.Time{} }, now, nil},
		"a later start": {
			func(h *History) { h.TransparencyLogs[1].Start = epoch.Add(time.Second) }, now, []string{"the Rekor log "},
		},
		"an earlier start": {func(h *History) { h.TransparencyLogs[1].Start = epoch.Add(-time.Second) }, now, nil},
		"two windows, one of which suffices": {
			func(h *History) {
				narrow := h.TimestampAuthorities[1]
				narrow.Start = narrow.Start.Add(time.Hour)
				h.TimestampAuthorities = append([]Authority{narrow}, h.TimestampAuthorities...)
			}, now, nil,
		},
		"another place and operator": {func(h *History) { h.CTLogs[1].URL, h.CTLogs[1].Operator = "https://moved.example", "them" }, now, nil},
	} {
		after := before
		after.Authorities, after.TimestampAuthorities = slices.Clone(before.Authorities), slices.Clone(before.TimestampAuthorities)
		after.CTLogs, after.TransparencyLogs = slices.Clone(before.CTLogs), slices.Clone(before.TransparencyLogs)
		tt.edit(&after)
		got := before.Lost(after, tt.now)
		if len(got) != len(tt.want) {
			t.Errorf("%s: %q; want %d", name, got, len(tt.want))
			continue
		}
		for i, want := range tt.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: %s; want %s", name, got[i], want)
			}
		}
	}
}

// TestLostOfWhatIsPublished: what clients read agrees with what it was rendered
// from, a log without a start included.
func TestLostOfWhatIsPublished(t *testing.T) {
	t.Parallel()
	h := sample(t)
	h.CTLogs[1].Start, h.TransparencyLogs[1].Start = time.Time{}, time.Time{}
	published, err := Parse(render(t, h).TrustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	if lost := slices.Concat(published.Lost(h, epoch.AddDate(9, 0, 0)), h.Lost(*published, epoch.AddDate(9, 0, 0))); len(lost) > 0 {
		t.Errorf("%q", lost)
	}
}

func TestRemarks(t *testing.T) {
	t.Parallel()
	h := sample(t)
	now := epoch.AddDate(1, 0, 0)
	if got := h.Remarks("logs", now); len(got) > 0 {
		t.Errorf("%q", got)
	}
	h.TransparencyLogs = append(h.TransparencyLogs, newRekor(t, 1, edKey(t)))
	h.TimestampAuthorities[0].URL = "" // only verified; the other has ended
	got := h.Remarks("logs", now)
	if len(got) != 2 || !strings.HasPrefix(got[0], "logs[0]: it gives no times") || !strings.HasPrefix(got[1], "logs[2]: its key isn't ECDSA") {
		t.Errorf("%q", got)
	}
	h.TransparencyLogs[0].End = now
	if got := h.Remarks("logs", now); len(got) != 1 {
		t.Errorf("a Rekor that has ended: %q", got)
	}
}
