package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
)

const logCreateLong = `Makes the empty logs that a configuration names under ctlog.embedded and
ctlog.shards and that aren't there yet: mayfly serve makes none, because there an
empty folder means that a disk isn't mounted. A directory that holds a log, and a
mark of one, are never touched. mayfly log rotate makes the log that follows.`

func newLogCreateCommand(streams streams) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "create",
		Short:   "Make the empty log that a configuration names",
		Long:    logCreateLong,
		Example: "  mayfly log create --config /etc/mayfly/mayfly.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(file)
			if err != nil {
				return err
			}
			if c.CTLog.Mode != ctlog.ModeEmbedded {
				return usage("set ctlog.mode to embedded", "%s names no embedded log", file)
			}
			embedded.RedirectStorageLog(slog.New(slog.DiscardHandler))
			p, err := service.Load(cmd.Context(), c, service.Dependencies{Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				return startFailure(err, "")
			}
			return createLogs(cmd.Context(), c.CTLog.Own(), p, streams)
		},
	}
	configFlag(cmd, &file)
	return cmd
}

// createLogs makes those of the logs of which nothing is there. It is an error when
// there is none to make.
func createLogs(ctx context.Context, logs []ctlog.EmbeddedConfig, p *service.Components, streams streams) error {
	made := 0
	for i, log := range logs {
		if len(logs) > 1 && (exists(string(log.MarkFile)) || holdsLog(string(log.Directory)) == nil) {
			continue
		}
		if err := embedded.Create(ctx, log, embedded.Options{Signer: p.LogKeys[i], Roots: p.Authorities.Roots()}); err != nil {
			return err
		}
		fmt.Fprintf(streams.Out, "The empty log %s is in %s, its mark in %s.\n", log.Origin(), log.Directory, log.MarkFile)
		made++
	}
	if made == 0 {
		return errors.New("every log that the configuration names is there already")
	}
	return nil
}
