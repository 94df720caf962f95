package service

import (
	"context"
	"fmt"
	"time"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
)

// probeTimeout bounds all that Probe asks others.
const probeTimeout = time.Minute

// Probed is one thing that [Components.Probe] tried, and what came of it.
type Probed struct {
	Whose  string // the issuer's or log's URL; "replay" is the store of used tokens
	Name   string
	Detail string
	Err    error
}

// Probe tries what a service would ask others: discovery and keys of each exact
// issuer, whether the store of used tokens can be written, and of each log whether
// it can be read, signs with the configured key and takes the authority's
// certificates. It submits nothing, and tells each result as it comes.
func (l *Components) Probe(ctx context.Context, c *config.Config, tell func(Probed)) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for _, s := range l.verifier.Probe(ctx) {
		tell(Probed{s.Issuer, s.Name, s.Detail, s.Err})
	}
	if l.replay != nil {
		tell(Probed{"replay", "write", "", l.replay.Ready(ctx)})
	}
	for i, log := range l.external {
		url := log.Description().URL
		tell(Probed{url, "get-roots", "", log.CheckRoots(ctx, l.Authorities.Active.Chain)})
		head, err := inclusion.ReadHead(ctx, monitoredElsewhere(log, c.CTLog.Logs[i]))
		tell(Probed{url, "tree head", describeHead(head), err})
	}
	for i, log := range c.CTLog.Own() {
		size, signed, err := read.Published(ctx, log, l.LogKeys[i].Public())
		tell(Probed{log.URL, "tree head", describeHead(inclusion.Head{Size: size, Signed: signed, Static: true}), err})
	}
}

// describeHead puts what a log signed into words.
func describeHead(h inclusion.Head) string {
	api := "static-ct"
	if !h.Static {
		api = "RFC 6962"
	}
	return fmt.Sprintf("%s, %d entries, signed %s", api, h.Size, h.Signed.UTC().Format(time.RFC3339))
}
