package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// onlineTimeout bounds all that `mayfly check --online` asks others.
const onlineTimeout = time.Minute

// checkOnline tries what a service would ask others: discovery and keys of each
// exact issuer, whether the store of used tokens can be written, and of each log
// whether it can be read, signs with the configured key and takes the authority's
// certificates. It submits nothing, prints every step, and the error says how many failed.
func checkOnline(ctx context.Context, c *config.Config, p *parts, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, onlineTimeout)
	defer cancel()
	all, failed, at := 0, 0, ""
	line := func(whose, step, detail string, err error) {
		if whose != at {
			fmt.Fprintf(w, "  %s\n", terminal.Escape(whose))
			at = whose
		}
		all++
		result := strings.TrimSuffix("ok, "+detail, ", ")
		if err != nil {
			failed++
			result = "failed: " + err.Error()
		}
		fmt.Fprintf(w, "    %-10s %s\n", step, terminal.Line(result))
	}
	for _, s := range p.verifier.Probe(ctx) {
		line(s.Issuer, s.Name, s.Detail, s.Err)
	}
	if p.replay != nil {
		line("replay", "write", "", p.replay.Ready(ctx))
	}
	for i, l := range p.external {
		at := l.Description().URL
		line(at, "get-roots", "", l.CheckRoots(ctx, p.authorities.Active.Chain()))
		head, err := inclusion.ReadHead(ctx, watchedLog(l, c.CTLog.Logs[i]))
		line(at, "tree head", describeHead(head), err)
	}
	for i, log := range c.CTLog.Own() {
		size, signed, err := embedded.Published(ctx, log, p.logKeys[i].Public())
		line(log.URL, "tree head", describeHead(inclusion.Head{Size: size, Signed: signed, Static: true}), err)
	}
	if failed == 0 {
		return nil
	}
	return &failure{
		code: exitFailed, mend: "each step above says what failed; the service starts without an issuer that is down or the store of used tokens, but not without its logs",
		err: fmt.Errorf("%d of %d steps failed", failed, all),
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
