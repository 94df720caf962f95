package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// authorityRow is one line of `mayfly authority list`, its columns apart by tabs.
func authorityRow(a authority.NamedConfig, next string) string {
	state, since, window, end := cmp.Or(string(a.State), "-"), "-", "-", "unreadable"
	if t := a.Since(); !t.IsZero() {
		since = t.UTC().Format(time.RFC3339)
	}
	if certs, err := chainOf(a); err == nil {
		start, stop := certs[0].NotBefore, certs[0].NotAfter
		end = stop.UTC().Format(time.DateOnly)
		if closed := a.WindowEnd(); !closed.IsZero() && closed.Before(stop) {
			stop = closed
		}
		if a.Listed() {
			window = start.UTC().Format(time.DateOnly) + " to " + stop.UTC().Format(time.DateOnly)
		}
	}
	columns := []string{a.Name, state, since, window, end, string(a.Key), next}
	for i := range columns {
		columns[i] = terminal.Line(columns[i])
	}
	return strings.Join(columns, "\t")
}

// chainOf reads an authority's chain, issuing certificate first.
func chainOf(a authority.NamedConfig) ([]*x509.Certificate, error) {
	file := string(a.Chain)
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	certs, err := cachain.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return certs, nil
}

// nextSteps says what can follow the state of records[i], and from when.
func nextSteps(records []lifecycle.Entry, i int, t lifecycle.Terms) string {
	e := records[i]
	var words []string
	for _, a := range lifecycle.Next(e.Record) {
		word := string(a)
		if a == lifecycle.Activate {
			if wait := lifecycle.Wait(records, i, t); wait > 0 {
				word += " after " + t.Now.Add(wait).UTC().Format(time.RFC3339)
			}
		}
		words = append(words, word)
	}
	if e.State == lifecycle.Active {
		words = append(words, "activate another")
	}
	text := cmp.Or(strings.Join(words, ", "), "-")
	if e.Forced != "" {
		text += " (forced " + e.Forced + ")"
	}
	return text
}

// publishedTimeout bounds the look at what clients are given.
const publishedTimeout = 10 * time.Second

// published is nil when the trusted root at url lists the authority at the time now.
func published(ctx context.Context, c authority.Section, url, name string, now time.Time) error {
	all := c.All()
	i := slices.IndexFunc(all, func(a authority.NamedConfig) bool { return a.Name == name })
	if i < 0 {
		return nil // the step says so
	}
	certs, err := chainOf(all[i])
	if err != nil {
		return err
	}
	root, err := fetchTrustedRoot(ctx, url)
	if err != nil {
		return &failure{code: exitUnavailable, fix: "give --url as clients reach this CA, or leave it out", err: err}
	}
	for _, a := range root.Authorities {
		if bytes.Equal(a.Chain[0].Raw, certs[0].Raw) && a.Holds(now) {
			return nil
		}
	}
	return fail("see in the service's log and at /readyz?verbose that it took the change up, and wait for ca.propagation from then",
		"the trusted root at %s doesn't list %s: %w", url, name, lifecycle.ErrTooSoon)
}

// fetchTrustedRoot reads what clients of the CA at url read.
func fetchTrustedRoot(ctx context.Context, url string) (*trustroot.History, error) {
	ctx, cancel := context.WithTimeout(ctx, publishedTimeout)
	defer cancel()
	hc := client.NewHTTPClient()
	defer hc.CloseIdleConnections()
	b, err := client.Fetch(ctx, hc, client.Retry{Attempts: 1}, "the CA", strings.TrimSuffix(url, "/")+"/trusted_root.json")
	if err != nil {
		return nil, err
	}
	return trustroot.Parse(b)
}
