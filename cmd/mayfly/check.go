package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newCheckCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "check", Short: "Report every fault of a configuration",
		Long: `Reads a configuration and all that it names, as serve would: keys, certificates,
issuers, presets, TLS, and what a start would lock and write: the logs with their
keys, names and marks, frozen logs, the audit trail, and who may write them. A sample
certificate is verified through each chain, as a client would. It changes nothing and
sends nothing, so it may run beside a service. The exit status is 1 when there is any
fault. A remark is no fault: somebody holds a log or the trail, clients put up with a
chain, plain text goes beyond loopback, a condition reads a claim that the issuer isn't
known to send, or a Rekor is listed that clients can't use well.

--online also asks the others: each issuer that has a URL for its discovery
document and its keys, the store of used tokens for a write, and each external
log for the roots that it accepts and a tree head under the configured key. Nothing
is submitted. The embedded log's checkpoint is verified in its directory. What is in
force at server.public_url is compared: whatever clients are told to trust there
has to be in the configuration still, or what was signed can't be verified any more.`,
	}
	online := cmd.Flags().Bool("online", false, "also try to reach the issuers, the store of used tokens, the logs and what clients are told")
	asJSON := jsonFlag(cmd)
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, file string, c *config.Config, _ []string) error {
		loaded, err := service.Check(cmd.Context(), c, quiet())
		if err != nil {
			return startFailure(err, "")
		}
		_, end := loaded.Authorities.Active.Validity()
		remarks := slices.Concat([]string{}, inlineStates(file, c), loaded.Remarks, identity.Remarks("issuers", c.Issuers),
			identity.ConditionRemarks("issuers", c.Issuers, "deny", c.Deny))
		if err := asOwner(c, os.Geteuid()); err != nil {
			remarks = append(remarks, "serve would be refused: "+err.Error()+"; and root may read more than that user, so run check as that user too")
		}
		subject, said := loaded.Authorities.Active.Subject, telling(streams.Out, *asJSON)
		fmt.Fprintf(said, "%s: no faults\n  authority  %s, until %s\n  issuers    %d\n  log        %s\n",
			file, subject, end.Format(time.DateOnly), len(c.Issuers), c.CTLog.Mode)
		for _, remark := range remarks {
			fmt.Fprintf(said, "  remark     %s\n", terminal.Line(remark))
		}
		var steps []map[string]any
		if *online {
			steps, err = checkOnline(cmd.Context(), c, loaded, said)
		}
		return cmp.Or(err, show(streams.Out, *asJSON, map[string]any{
			"config": file, "subject": subject, "not_after": end.UTC(), "issuers": len(c.Issuers), "log_mode": c.CTLog.Mode, "remarks": remarks, "online": slices.Concat([]map[string]any{}, steps),
		}, nil))
	})
}

// checkOnline prints what a service would be told by others, step by step; the
// error says how many steps failed.
func checkOnline(ctx context.Context, c *config.Config, loaded *service.Components, w io.Writer) (all []map[string]any, err error) {
	failed, whose := 0, ""
	tell := func(p service.Probed) {
		if p.Whose != whose {
			fmt.Fprintf(w, "  %s\n", terminal.Escape(p.Whose))
			whose = p.Whose
		}
		result := strings.TrimSuffix("ok, "+p.Detail, ", ")
		if p.Err != nil {
			failed++
			result, p.Detail = "failed: "+p.Err.Error(), p.Err.Error()
		}
		all = append(all, map[string]any{"of": p.Whose, "step": p.Name, "ok": p.Err == nil, "detail": p.Detail})
		fmt.Fprintf(w, "    %-10s %s\n", p.Name, terminal.Line(result))
	}
	loaded.Probe(ctx, c, tell)
	if c.Server.PublicURL != "" {
		tell(probePublished(ctx, c.Server.PublicURL, loaded.History))
	}
	if failed == 0 {
		return all, nil
	}
	return all, fail("each step above says what failed; the service starts without an issuer that is down or the store of used tokens, but not without its logs",
		"%d of %d steps failed", failed, len(all))
}

// probePublished compares what clients would be told with what they are told now.
// Where they aren't told anything yet, nothing is lost.
func probePublished(ctx context.Context, url string, next trustroot.History) service.Probed {
	p := service.Probed{Whose: url, Name: "trust"}
	published, err := fetchTrustedRoot(ctx, url)
	if err != nil {
		p.Detail = "not compared: " + err.Error()
		return p
	}
	if lost := published.Lost(next, time.Now()); len(lost) > 0 {
		p.Err = errors.New(strings.Join(lost, "; "))
	}
	return p
}
