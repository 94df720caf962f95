package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// excision is a time in which nothing is to count that was signed, as flags say it.
type excision struct {
	times string
	hits  int
}

// agreed puts the time into c, once the number of certificates is repeated that it hits.
func (e excision) agreed(w io.Writer, c *config.Config) ([]trustroot.Gap, error) {
	if e.times == "" {
		return nil, nil
	}
	gap, err := trustroot.ParseGap(e.times)
	if err != nil {
		return nil, usage("give --excise FROM/TO", "--excise: %w", err)
	}
	by, count, err := issuedIn(string(c.Audit.Path), gap)
	if err != nil {
		return nil, fail("run it where the audit trail is", "what it hits can't be counted: %w", err)
	}
	fmt.Fprintf(w, "Certificates that could sign in %s: %d\n", gap, count)
	for _, who := range slices.SortedFunc(maps.Keys(by), func(a, b string) int { return by[b] - by[a] }) {
		fmt.Fprintf(w, "  %6d %s\n", by[who], terminal.Escape(who))
	}
	if e.hits != count {
		return nil, fail(fmt.Sprintf("if no signature of these is to count any more, say --excise %s --hits %d", gap, count),
			"nothing is drafted: all of these are hit, and --hits doesn't say so many")
	}
	if !slices.ContainsFunc(c.Trust.Excised, func(g trustroot.Gap) bool { return g.String() == gap.String() }) {
		c.Trust.Excised = append(c.Trust.Excised, gap)
		fmt.Fprintf(w, "Put it into the configuration too (trust.excised), or the next draft is refused: %s\n", gap)
	}
	return []trustroot.Gap{gap}, nil
}

// issuedIn counts the certificates on record whose validity meets the gap, by identity.
func issuedIn(trail string, gap trustroot.Gap) (by map[string]int, count int, err error) {
	if audit.Begun(trail) == "" {
		return nil, 0, fmt.Errorf("%s has no records", trail)
	}
	f := audit.Follow(trail, gap.From.Add(-authority.MaxLeafLifetime-time.Minute), audit.Issued)
	defer f.Close()
	by = make(map[string]int)
	for event, err := range f.Unread() {
		if line := (*audit.LineError)(nil); errors.As(err, &line) {
			event.SAN = "a record that can't be read: " + line.Error()
		} else if err != nil {
			return nil, 0, err
		}
		if err != nil || event.Purpose == "" && !event.NotBefore.After(gap.To) && !event.NotAfter.Before(gap.From) {
			by[event.SAN]++
			count++
		}
	}
	return by, count, nil
}
