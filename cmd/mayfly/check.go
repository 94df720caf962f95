package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
)

func newCheckCommand(streams streams) *cobra.Command {
	var file string
	var online bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Report every fault of a configuration",
		Long: `Reads a configuration and all that it names, as serve would: keys, certificates,
issuers, presets, logs' keys, TLS. It changes nothing and sends nothing, so it
may run beside a service. The exit status is 1 when there is any fault.

--online also asks the others: each issuer that has a URL for its discovery
document and its keys, the store of used tokens for a write, and each external
log for the roots that it accepts and a tree head under the configured key. Nothing
is submitted. The embedded log's checkpoint is verified in its directory.`,
		Example: "  mayfly check --config /etc/mayfly/mayfly.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(file)
			if err != nil {
				return err
			}
			e := environment{now: time.Now, logger: slog.New(slog.DiscardHandler)}
			p, err := loadParts(cmd.Context(), c, e)
			if err != nil {
				return startFailure(err, "")
			}
			_, end := p.authorities.Active.Validity()
			fmt.Fprintf(streams.Out, "%s: no faults\n  authority  %s, until %s\n  issuers    %d\n  log        %s\n",
				file, p.authorities.Active.Name(), end.Format(time.DateOnly), len(c.Issuers), c.CTLog.Mode)
			if online {
				return checkOnline(cmd.Context(), c, p, streams.Out)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&online, "online", false, "also try to reach the issuers, the store of used tokens and the logs")
	configFlag(cmd, &file)
	return cmd
}
