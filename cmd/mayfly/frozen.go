package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// frozenLogs are logs that are not submitted to.
type frozenLogs struct {
	about  []ctlog.Description
	mounts map[string]http.Handler // of those that are served here
}

// openFrozen reads the keys of the frozen logs, and the checkpoints of those
// that are served here.
func (s *service) openFrozen(ctx context.Context) (frozenLogs, error) {
	var f frozenLogs
	f.mounts = make(map[string]http.Handler)
	if s.log != nil {
		f.mounts[strings.TrimSuffix(s.log.Prefix(), "/")+"/"] = nil // taken
	}
	seen := make(map[[32]byte]bool)
	if s.policy != nil {
		for _, d := range s.policy.Descriptions() {
			seen[d.ID] = true
		}
	}
	for i, c := range s.config.CTLog.Frozen {
		at := setting.Index("ctlog.frozen", i)
		d, err := external.Describe(c)
		if err != nil {
			return f, fmt.Errorf("%s: %w", at, err)
		}
		if seen[d.ID] {
			return f, fmt.Errorf("%s: another log has the same key", at)
		}
		seen[d.ID] = true
		f.about = append(f.about, d)
		if c.Directory == "" {
			continue
		}
		archive, err := embedded.OpenArchive(ctx, string(c.Directory), d, embedded.Options{Roots: s.authorities.Roots(), Now: s.now, Logger: s.logger})
		if err != nil {
			return f, fmt.Errorf("%s: %w", at, err)
		}
		if _, taken := f.mounts[archive.Prefix()+"/"]; taken {
			return f, fmt.Errorf("%s: another log is served at %s", at, archive.Prefix())
		}
		f.mounts[archive.Prefix()+"/"] = http.StripPrefix(archive.Prefix(), archive.Handler())
	}
	return f, nil
}
