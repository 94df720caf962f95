package main

import (
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
)

// newMonitor makes the monitor that reads all logs until they hold what they
// promised; nil without logs. Its state is beside the audit trail.
func (s *service) newMonitor() (*inclusion.Monitor, error) {
	logs := s.watched()
	if len(logs) == 0 {
		return nil, nil //nolint:nilnil // without logs there is nothing to check
	}
	trail := string(s.config.Audit.Path)
	return inclusion.New(inclusion.Options{
		Trail: trail, State: inclusionState(trail),
		Logs: logs, Now: s.now, Logger: s.logger, Metrics: s.registry,
	})
}

// watchedLog is an external log as it is read.
func watchedLog(l *external.Log, c ctlog.ExternalConfig) inclusion.Log {
	return inclusion.Log{About: l.Description(), URL: readURL(c), Client: l.Reader(), MMD: c.MMD}
}

// readURL is where an external log is read.
func readURL(c ctlog.ExternalConfig) string {
	if c.MonitoringURL != "" {
		return c.MonitoringURL
	}
	return c.URL
}

// eachLog says how every log stands that needs a word, for anybody to read.
func (s *service) eachLog() []string {
	var lines []string
	for _, l := range s.external {
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
