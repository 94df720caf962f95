package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/identity/oidc"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/wait"
	"github.com/mayfly-ca/mayfly/server"
)

// readiness is what must work for a certificate to be issued, and what only informs.
func (s *Service) readiness() []server.Dependency {
	all := []server.Dependency{
		{Name: "authority", Check: s.issuer.Ready, Detail: s.authorityStatus},
		{Name: "audit", Check: s.audit.Ready},
		{Name: "issuers", Check: s.anyIssuer, Detail: s.issuerStatus},
		{Name: "configuration", Check: s.lastReload, Detail: s.configurationStatus, Informational: true},
		{Name: "timestamps", Check: s.timestamps.Ready, Detail: s.timestamps.Detail, Informational: true},
	}
	for _, one := range s.sinks {
		all = append(all, server.Dependency{Name: "audit sink " + one.Name, Check: one.Check, Informational: true})
	}
	if s.loaded.replay != nil {
		all = append(all, server.Dependency{Name: "replay", Check: s.replayReady})
	}
	if s.ephemeral != nil {
		all = append(all, server.Dependency{Name: "renewal", Check: s.ephemeral.Ready, Detail: s.ephemeral.Detail, Informational: true})
	}
	if s.policy != nil {
		all = append(all, server.Dependency{Name: "log", Check: s.policy.Ready, Detail: s.rootsStatus},
			server.Dependency{Name: "next log", Check: s.nextLog, Detail: s.logStatus, Informational: true})
	}
	if s.index != nil {
		all = append(all, server.Dependency{Name: "index", Check: s.indexReady, Detail: s.indexStatus, Informational: true},
			server.Dependency{Name: "alerts", Check: s.alerts.Ready, Informational: true})
	}
	if s.revoker != nil {
		all = append(all, server.Dependency{Name: "revocation", Check: s.revoker.Lists.Ready, Informational: true})
	}
	if s.tuf != nil {
		all = append(all, server.Dependency{Name: "tuf", Check: s.tuf.Check, Detail: s.tuf.Detail, Informational: true})
	}
	return all
}

// AwaitReady returns when a certificate could be issued, or ctx has ended.
func (s *Service) AwaitReady(ctx context.Context) error {
	for !s.server.Ready(ctx) {
		if err := wait.For(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// maxStatusLines bounds what /readyz?verbose says of issuers, and of authorities.
const maxStatusLines = 200

// statusLines are the lines of the first of all.
func statusLines[T any](all []T, line func(T) string) []string {
	var lines []string
	for n, one := range all {
		if n == maxStatusLines {
			return append(lines, fmt.Sprintf("and %d more", len(all)-n))
		}
		lines = append(lines, line(one))
	}
	return lines
}

// authorityStatus says how every authority stands, in words that anybody may read.
func (s *Service) authorityStatus() []string {
	all, now := s.issuer.Authorities(), s.Now()
	return append([]string{"signatures a certificate: " + s.issuer.SigningForm()}, statusLines(all.Trusted, func(l authority.Trusted) string {
		state := lifecycle.Active
		if i := lifecycle.Find(all.Records, l.Name); i >= 0 {
			state = all.Records[i].State
		}
		line := fmt.Sprintf("%s: %s, valid to %s", l.Name, state, l.NotAfter.UTC().Format(time.RFC3339))
		if w := l.Expiry(now); w != "" {
			line += "; " + w
		}
		return line
	})...)
}

// errNotFetched is how an issuer stands before the first answer.
var errNotFetched = errors.New("its keys have not been fetched yet")

// maxWarned bounds how many issuers a warning names.
const maxWarned = 5

// anyIssuer fails when not one issuer's keys could be fetched: then nobody can
// get a certificate. One issuer of several that is down is no reason to send
// everybody else away, and a warning, as is one whose keys are used while they can't
// be fetched anew.
func (s *Service) anyIssuer(context.Context) error {
	var errs []error
	var warnings []string
	all := s.loaded.verifier.Status()
	for _, i := range all {
		why := cmp.Or(i.Category(), "not fetched yet")
		switch {
		case !i.Ready:
			errs = append(errs, fmt.Errorf("%s: %w", i.Name, cmp.Or(i.Err, errNotFetched)))
			warnings = append(warnings, fmt.Sprintf("%s: its tokens can't be verified, for want of its keys (%s)", i.Name, why))
		case i.Err != nil:
			warnings = append(warnings, fmt.Sprintf("%s: its keys can't be fetched (%s); those from before are used", i.Name, why))
		}
	}
	if len(all) > 0 && len(errs) == len(all) {
		return errors.Join(errs...)
	}
	if more := len(warnings) - maxWarned; more > 0 {
		warnings = append(warnings[:maxWarned], fmt.Sprintf("and %d more", more))
	}
	return fault.Warn(warnings...)
}

// issuerStatus says how every issuer stands, in words that anybody may read: their
// URLs are public anyway.
func (s *Service) issuerStatus() []string {
	return statusLines(s.loaded.verifier.Status(), func(i oidc.Status) string {
		line := i.Name + ": no keys yet"
		switch {
		case i.Ready:
			line = fmt.Sprintf("%s: keys are %s old", i.Name, i.KeysAge.Truncate(time.Second))
		case i.KeysAge > 0:
			line = fmt.Sprintf("%s: keys are %s old, which is too old", i.Name, i.KeysAge.Truncate(time.Second))
		}
		if c := i.Category(); c != "" {
			line += "; the last attempt failed: " + c
		}
		if len(i.PassedOver) > 0 {
			line += "; keys that can't be used: " + oidc.DescribePassedOver(i.PassedOver)
		}
		return line
	})
}

// lastReload fails while the configuration that was read last is refused.
func (s *Service) lastReload(context.Context) error {
	if r := s.reloads.refused.Load(); r != nil {
		return r.err
	}
	return nil
}

// configurationStatus is what anybody may know of it.
func (s *Service) configurationStatus() []string {
	refused := s.reloads.refused.Load()
	lines := []string{"in force since " + s.state().since.UTC().Format(time.RFC3339)}
	if refused != nil {
		lines = append(lines, fmt.Sprintf("what came after it was refused at %s; faults: %d, which the log lists",
			refused.at.UTC().Format(time.RFC3339), len(faultsOf(refused.err))))
	}
	return lines
}

// replayReady fails when an issuer's tokens are accepted once and the store that
// the replicas share can't tell which were used.
func (s *Service) replayReady(ctx context.Context) error {
	if !s.loaded.verifier.AcceptsOnce() {
		return nil
	}
	return s.loaded.replay.Ready(ctx)
}

// rootsStatus says which external log's accepted roots need a word, for anybody to read.
func (s *Service) rootsStatus() []string {
	var lines []string
	for _, l := range s.loaded.external {
		url, roots := l.Description().URL, l.Roots()
		switch {
		case roots.Refused:
			lines = append(lines, url+": accepts none of this CA's certificates any more")
		case roots.Err != nil:
			lines = append(lines, url+": which roots it accepts is known from "+roots.Checked.UTC().Format(time.RFC3339)+"; the last attempt to ask failed")
		}
	}
	return lines
}

// When the end of the last log is told of.
const (
	endIsNear     = 30 * 24 * time.Hour // before it
	endIsRepeated = 24 * time.Hour      // once in so long
)

// nextLog fails when the end of the last log is near, and no other is named.
func (s *Service) nextLog(context.Context) error {
	until := s.policy.CoveredUntil()
	if until.IsZero() || until.Sub(s.Now()) > endIsNear {
		return nil
	}
	return fmt.Errorf("no log takes certificates from %s on; add the next one: mayfly log rotate, or ctlog.logs", until.UTC().Format(time.RFC3339))
}

// warnBeforeLastLogEnds logs that the end of the last log is near, once a day.
func (s *Service) warnBeforeLastLogEnds(ctx context.Context) error {
	if s.policy == nil {
		return nil
	}
	for {
		if err := s.nextLog(ctx); err != nil {
			s.Logger.WarnContext(ctx, "the last log's time ends soon, and then nothing can be issued", "error", err)
		}
		if wait.For(ctx, endIsRepeated) != nil {
			return nil //nolint:nilerr // the service ends
		}
	}
}

// registerCoverageGauge tells when no log takes certificates any more. +Inf is never.
func (s *Service) registerCoverageGauge() error {
	if s.policy == nil {
		return nil
	}
	return s.Registry.Register(metric.Read("mayfly_ctlog_covered_until_timestamp_seconds",
		"From when on no transparency log takes certificates unless another is added, in seconds since 1970; +Inf is never.", nil, func() float64 {
			until := s.policy.CoveredUntil()
			if until.IsZero() {
				return math.Inf(1)
			}
			return float64(until.Unix())
		}))
}

// logStatus says which log takes certificates when, for anybody to read.
func (s *Service) logStatus() []string {
	now := s.Now()
	var lines []string
	for _, d := range s.policy.Descriptions() {
		line := fmt.Sprintf("%s: %s", d.URL, LogPhase(d, now))
		if !d.Start.IsZero() {
			line += ", from " + d.Start.UTC().Format(time.RFC3339)
		}
		if !d.End.IsZero() {
			line += ", until " + d.End.UTC().Format(time.RFC3339)
		}
		lines = append(lines, line)
	}
	return lines
}

// LogPhase is where a log is in its life: "next", "active" or "ended".
func LogPhase(d ctlog.Description, now time.Time) string {
	switch {
	case d.Holds(now):
		return "active"
	case now.Before(d.Start):
		return "next"
	default:
		return "ended"
	}
}
