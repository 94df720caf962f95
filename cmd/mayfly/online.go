package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// onlineTimeout bounds all that `mayfly check --online` asks others.
const onlineTimeout = time.Minute

// checkOnline tries what a service would ask others: discovery and keys of each
// exact issuer, whether the store of used tokens can be written, and whether each external log takes the authority's
// certificates. It prints every step; the error says how many failed.
func checkOnline(ctx context.Context, p *parts, w io.Writer) error {
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
	for _, l := range p.external {
		line(l.Description().URL, "get-roots", "", l.CheckRoots(ctx, p.authority.Chain()))
	}
	if failed == 0 {
		return nil
	}
	return &failure{
		code: exitFailed, mend: "each step above says what failed; the service starts without an issuer that is down or the store of used tokens, but not without its logs",
		err: fmt.Errorf("%d of %d steps failed", failed, all),
	}
}
