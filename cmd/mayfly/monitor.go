package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
)

func newMonitorCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "monitor", Short: "Follow any Fulcio's log into a store that can be searched",
		Long: `Follows a Certificate Transparency log of any Fulcio or Mayfly, through the static-ct
API or that of RFC 6962, and keeps every certificate in a store, where
mayfly search --store finds it. Everything is verified under the log's key: what
contradicts what the log signed is written to --evidence and named in the log's
lines, and nothing beyond it is kept. It goes on where it ended; without the store's
file it begins anew.

With --once it follows to the log's present end and exits: 5 where the log contradicts
what it signed, 4 where it can't be read.`,
		Example: "  mayfly monitor --log https://ctfe.example.com/2026 --key ctfe.pub.pem --store fulcio.db",
	}
	f := cmd.Flags()
	f.SortFlags = false
	log := f.String("log", "", "the log's URL, as the trusted root has it (required)")
	key := f.String("key", "", "file with the log's public key, in PEM (required)")
	store := f.String("store", "", "a SQLite file, which is made where there is none, or a postgres:// URL (required)")
	read := f.String("read", "", "where the log is read, if not at its URL")
	evidence := f.String("evidence", "evidence", "folder for what contradicts the log")
	interval := f.Duration("interval", 10*time.Second, "between two looks at the log")
	once := f.Bool("once", false, "follow to the log's present end, and exit")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		spki, err := external.ReadKey(*key)
		if err != nil {
			return fail("give the log's public key in PEM; a trusted_root.json has it in base64 under ctlogs", "the log's key: %w", err)
		}
		i, done, err := openIndex(cmd.Context(), *store)
		if err != nil {
			return err
		}
		defer done()
		logger := openLog(config.Logging{Level: "info", Format: "text"}, streams.Err)
		defer logger.Close()
		about := ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: strings.TrimSuffix(*log, "/")}
		follower, err := follow.New([]remote.Log{{Description: about, URL: *read}},
			follow.Options{Keeper: i, Evidence: *evidence, Interval: *interval, Logger: logger.Logger})
		if err != nil {
			return err
		}
		if !*once {
			return follower.Run(cmd.Context())
		}
		err = follower.Look(cmd.Context())
		for errors.Is(err, context.DeadlineExceeded) && cmd.Context().Err() == nil { // one look has a bound in time
			err = follower.Look(cmd.Context())
		}
		if errors.As(err, new(*follow.Contradiction)) {
			return &failure{code: exitUnverified, fix: "show the evidence in " + *evidence + " to whoever runs the log, and to others who follow it", err: err}
		}
		if err != nil {
			return &failure{code: exitUnavailable, err: err}
		}
		s := follower.Status()[0]
		fmt.Fprintf(streams.Out, "%s: all of its %d entries are in the store\n", s.URL, s.Followed)
		return nil
	}
	return cmd
}
