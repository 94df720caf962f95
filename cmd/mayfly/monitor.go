package main

import (
	"path/filepath"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
)

// newMonitor makes the monitor that reads all logs until they hold what they
// promised; nil without logs. Its state is beside the audit trail.
func (s *service) newMonitor() (*inclusion.Monitor, error) {
	var logs []inclusion.Log
	if s.log != nil {
		logs = append(logs, inclusion.Log{
			About: s.log.Description(), URL: "http://embedded", Client: inclusion.Local(s.log.Handler()), MMD: embedded.MMD,
		})
	}
	for i, l := range s.external {
		c := s.config.CTLog.Logs[i]
		logs = append(logs, inclusion.Log{About: l.Description(), URL: readURL(c), Client: l.Reader(), MMD: c.MMD})
	}
	if len(logs) == 0 {
		return nil, nil //nolint:nilnil // without logs there is nothing to check
	}
	trail := string(s.config.Audit.Path)
	return inclusion.New(inclusion.Options{
		Trail: trail, State: strings.TrimSuffix(trail, filepath.Ext(trail)) + ".inclusion.json",
		Logs: logs, Now: s.now, Logger: s.logger, Metrics: s.registry,
	})
}

// readURL is where an external log is read.
func readURL(c ctlog.ExternalConfig) string {
	if c.MonitoringURL != "" {
		return c.MonitoringURL
	}
	return c.URL
}
