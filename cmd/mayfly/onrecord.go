package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/config"
)

// recordedActs are the commands that change who signs, what certificates are logged in,
// and what clients trust. Each has --config.
var recordedActs = []string{
	"authority prepare", "authority publish", "authority activate", "authority retire", "authority distrust",
	"log create", "log rotate", "log freeze", "tuf publish", "config export-states",
}

// putOnRecord has every recorded act of the tree recorded in the audit trail before it
// begins, and once more where it fails. Without the record nothing is done.
func putOnRecord(root *cobra.Command) {
	for _, act := range recordedActs {
		cmd, _, err := root.Find(strings.Fields(act))
		cobra.CheckErr(err)
		run := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			c, err := config.LoadDefinitions(cmd.Flag("config").Value.String())
			if err != nil {
				return run(cmd, args) // which says what is wrong with the configuration
			}
			e := audit.Event{Act: act, By: administrator(), What: what(cmd, args)}
			if err := audit.Append(cmd.Context(), c.Audit, e); err != nil {
				return fail("run it as the user of the service, where the folder of audit.path is: what administrators do is on record there",
					"nothing was done, since it can't be recorded: %w", err)
			}
			if err = run(cmd, args); err == nil {
				return nil
			}
			e.Message = "the command failed"
			return errors.Join(err, audit.Append(context.WithoutCancel(cmd.Context()), c.Audit, e))
		}
	}
}

// administrator is who runs the command, as far as this machine knows.
func administrator() string {
	host, _ := os.Hostname() // #nosec G104 -- a machine without a name has administrators too
	return fmt.Sprintf("uid %d (%s) on %s", os.Getuid(), cmp.Or(os.Getenv("SUDO_USER"), os.Getenv("USER")), host)
}

// what is the object of an act, and the switches that change what the act means.
func what(cmd *cobra.Command, args []string) string {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Value.Type() == "bool" {
			args = append(args, "--"+f.Name)
		}
	})
	return strings.Join(args, " ")
}
