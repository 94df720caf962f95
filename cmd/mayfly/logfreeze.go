package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/promises"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/rotation"
)

const logFreezeLong = `Moves a log whose end is past to the frozen ones, where it is served and stays in
the trusted root, and nothing can be added to it any more. Before that it checks the
log from the first entry to the last and against its mark, that the last
checkpoint covers everything, and that every certificate which the audit trail
says is in it is in it. It writes the log's public key beside its directory, and
that it is frozen into ctlog.state_file. A running service takes the change up by
itself.`

func newLogFreezeCommand(streams streams) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "freeze [URL]",
		Short: "Close a log for good whose end is past, once it is complete",
		Long:  logFreezeLong,
		Example: `  mayfly log freeze --config /etc/mayfly/mayfly.yaml
  mayfly log freeze --config /etc/mayfly/mayfly.yaml https://ca.example.com/ctlog/2027`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			embedded.RedirectStorageLog(slog.New(slog.DiscardHandler))
			now := time.Now()
			complete, err := proveLog(cmd.Context(), file, strings.Join(args, ""), now, streams)
			if err != nil {
				return logFailure(err)
			}
			keyFile, err := freezeLog(file, complete, now)
			if err != nil {
				return logFailure(err)
			}
			fmt.Fprintf(streams.Out, "The log %s is frozen: %d entries, all that it promised. Its public key is in %s.\n"+
				"Take its private key offline; nothing needs it any more.\n", complete.Log.URL, complete.Report.Size, keyFile)
			return nil
		},
	}
	configFlag(cmd, &file)
	return cmd
}

// proveLog finds the log to freeze and proves that it is complete, for as long as it takes.
func proveLog(ctx context.Context, file, url string, now time.Time, streams streams) (rotation.Complete, error) {
	c, err := loadConfig(file)
	if err != nil {
		return rotation.Complete{}, err
	}
	if err := changeableLogs(file, c); err != nil {
		return rotation.Complete{}, err
	}
	log, err := rotation.Ended(c.CTLog, url, now)
	if err != nil {
		return rotation.Complete{}, err
	}
	progress := newProgress(streams.Err)
	defer progress.done()
	trail := string(c.Audit.Path)
	return rotation.VerifyComplete(ctx, log, promises.Follow(trail, nil), progress.show)
}

// freezeLog writes down that a log is frozen.
func freezeLog(file string, complete rotation.Complete, now time.Time) (keyFile string, err error) {
	store, err := openLogs(file)
	if err != nil {
		return "", err
	}
	defer store.Close()
	return store.Freeze(complete, now)
}
