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
)

// monitor is the command line of `mayfly monitor`.
type monitor struct {
	log, read, key, store, evidence string
	interval                        time.Duration
	once                            bool
}

func newMonitorCommand(streams streams) *cobra.Command {
	var o monitor
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Follow any Fulcio's log into a store that can be searched",
		Long: `Follows a Certificate Transparency log of any Fulcio or Mayfly, through the static-ct
API or that of RFC 6962, and keeps every certificate in a store, where
mayfly search --store finds it. Everything is verified under the log's key: what
contradicts what the log signed is written to --evidence and named in the log's
lines, and nothing beyond it is kept. It goes on where it ended; without the store's
file it begins anew.

With --once it follows to the log's present end and exits: 5 where the log contradicts
what it signed, 4 where it can't be read.`,
		Example: "  mayfly monitor --log https://ctfe.example.com/2026 --key ctfe.pub.pem --store fulcio.db",
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), streams) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.log, "log", "", "the log's URL, as the trusted root has it (required)")
	f.StringVar(&o.key, "key", "", "file with the log's public key, in PEM (required)")
	f.StringVar(&o.store, "store", "", "a SQLite file, which is made where there is none, or a postgres:// URL (required)")
	f.StringVar(&o.read, "read", "", "where the log is read, if not at its URL")
	f.StringVar(&o.evidence, "evidence", "evidence", "folder for what contradicts the log")
	f.DurationVar(&o.interval, "interval", 10*time.Second, "between two looks at the log")
	f.BoolVar(&o.once, "once", false, "follow to the log's present end, and exit")
	return cmd
}

func (o monitor) run(ctx context.Context, streams streams) error {
	spki, err := external.ReadKey(o.key)
	if err != nil {
		return fail("give the log's public key in PEM; a trusted_root.json has it in base64 under ctlogs", "the log's key: %w", err)
	}
	i, done, err := openIndex(ctx, o.store)
	if err != nil {
		return err
	}
	defer done()
	logger := openLog(config.Logging{Level: "info", Format: "text"}, streams.Err)
	defer logger.Close()
	about := ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: strings.TrimSuffix(o.log, "/")}
	follower, err := follow.New([]follow.Log{{Description: about, URL: o.read}},
		follow.Options{Keeper: i, Evidence: o.evidence, Interval: o.interval, Logger: logger.Logger})
	if err != nil {
		return err
	}
	if !o.once {
		return follower.Run(ctx)
	}
	for { // one look has a bound in time
		err = follower.Look(ctx)
		if c := (*follow.Contradiction)(nil); errors.As(err, &c) {
			return &failure{code: exitUnverified, fix: "show the evidence in " + o.evidence + " to whoever runs the log, and to others who follow it", err: err}
		}
		if s := follower.Status()[0]; err == nil {
			fmt.Fprintf(streams.Out, "%s: all of its %d entries are in the store\n", s.URL, s.Followed)
			return nil
		}
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return &failure{code: exitUnavailable, err: err}
		}
	}
}
