package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/promises"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/rotation"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func newLogRotateCommand(streams streams) *cobra.Command {
	var file string
	var r rotation.Request
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make the log that follows the last one of a configuration",
		Long: `Makes the log that follows the last one of a configuration: a key, an empty log
and its mark beside those of the log before, and its entry in ctlog.state_file; it
begins when the log before ends. The configuration isn't written, and nothing is
ever overwritten. A running service takes the log up by itself: it lists it in the
trusted root at once, and goes over to it by the clock.

Clients refuse certificates from a log that they don't know. So the new log
begins no sooner than ctlog.propagation (24h) from now; --force allows less, and
then clients with an older trusted root refuse what is signed until they fetch it.`,
		Example: "  mayfly log rotate --config /etc/mayfly/mayfly.yaml --yearly",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := rotateLog(cmd.Context(), file, r, time.Now())
			if err != nil {
				return logFailure(err)
			}
			fmt.Fprintf(streams.Out, "The log %s follows %s at %s.\n\n  %-10s %s\n  %-10s %s\n  %-10s %s\n\n"+
				"A running service lists it in the trusted root within seconds; see mayfly log list.\nBack up the key.\n",
				p.Next.URL, p.Before.URL, p.Next.Start.Format(time.RFC3339),
				"directory", p.Next.Directory, "mark", p.Next.MarkFile, "key", p.Next.Key)
			return nil
		},
	}
	configFlag(cmd, &file)
	flags := cmd.Flags()
	timeFlag(cmd, &r.At, "at", "when the new log begins, such as 2028-01-01 or 2028-01-01T00:00:00Z; else when the last one ends, or as soon as clients can know it")
	flags.BoolVar(&r.Yearly, "yearly", false, "begin with the next year (UTC)")
	flags.StringVar(&r.URL, "url", "", "the new log's URL; else the last one's with another year")
	flags.StringVar((*string)(&r.Key), "key", "", "a key of the new log that is there already: file:PATH or the URI of a P-256 key in a KMS")
	flags.BoolVar(&r.Force, "force", false, "begin before clients can know the log: they refuse its certificates until they fetch the trusted root")
	cmd.MarkFlagsMutuallyExclusive("at", "yearly")
	return cmd
}

// rotateLog plans the log that follows the last one, and makes it.
func rotateLog(ctx context.Context, file string, r rotation.Request, now time.Time) (rotation.Plan, error) {
	store, err := openLogs(file)
	if err != nil {
		return rotation.Plan{}, err
	}
	defer store.Close()
	p, err := store.Plan(r, now)
	if err != nil {
		return p, err
	}
	return p, store.Create(ctx, p, logKeys{})
}

// openLogs opens the store of a configuration's logs, to change them.
func openLogs(file string) (*rotation.Store, error) {
	c, err := loadConfig(file)
	if err != nil {
		return nil, err
	}
	if err := changeableLogs(file, c); err != nil {
		return nil, err
	}
	return rotation.Open(c.CTLog, func(logs ctlog.Config) error {
		next := *c
		next.CTLog = logs
		return next.Check()
	})
}

// changeableLogs is nil where c has logs of its own and a state file for them.
func changeableLogs(file string, c *config.Config) error {
	switch {
	case len(c.CTLog.Own()) == 0:
		return usage("an external log is added under ctlog.logs, with start and end", "%s names no embedded log", file)
	case c.CTLog.StateFile == "":
		return fail(exportStates(file), "%s has no ctlog.state_file, and no command writes a configuration", file)
	}
	return nil
}

// logFailure is err with its exit code.
func logFailure(err error) error {
	var r *rotation.Refusal
	if !errors.As(err, &r) {
		return err
	}
	codes := map[rotation.Kind]int{rotation.NotNow: exitFailed, rotation.Misasked: exitUsage, rotation.Unverified: exitUnverified}
	return &failure{code: codes[r.Kind], fix: r.Fix, err: err}
}

// logKeys makes the keys of new logs in files, and opens keys wherever they are.
type logKeys struct{}

// Make makes a key in a new file, encrypted where a passphrase is named.
func (logKeys) Make(file string, from setting.Secret) (err error) {
	var passphrase []byte
	if !from.IsZero() {
		if passphrase, err = from.Read(); err != nil {
			return fmt.Errorf("the passphrase: %w", err)
		}
	}
	_, err = keystore.GenerateFile(file, kms.ECDSAP256, passphrase)
	return err
}

// Open opens the key.
func (logKeys) Open(ctx context.Context, key setting.KeyRef, passphrase setting.Secret) (ctlog.Signer, error) {
	return keystore.Open(ctx, string(key), kms.Options{Passphrase: passphrase})
}

func newLogCreateCommand(streams streams) *cobra.Command {
	var missing bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make the empty log that a configuration names",
		Long: `Makes the empty logs that a configuration names under ctlog.embedded and
ctlog.shards and that aren't there yet: mayfly serve makes none, because there an
empty folder means that a disk isn't mounted. A directory that holds a log, and a
mark of one, are never touched. mayfly log rotate makes the log that follows.`,
		Example: "  mayfly log create --config /etc/mayfly/mayfly.yaml",
	}
	cmd.Flags().BoolVar(&missing, "missing", false, "succeed where all are there already, as before each start of a container")
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, file string, c *config.Config, _ []string) error {
		if c.CTLog.Mode != ctlog.ModeEmbedded {
			return usage("set ctlog.mode to embedded", "%s names no embedded log", file)
		}
		p, err := service.Load(cmd.Context(), c, quiet())
		if err != nil {
			return startFailure(err, "")
		}
		return createLogs(cmd.Context(), c.CTLog.Own(), missing, p, streams)
	})
}

// createLogs makes those of the logs of which nothing is there. It is an error when
// there is none to make, unless only missing ones are asked for.
func createLogs(ctx context.Context, logs []ctlog.EmbeddedConfig, missing bool, p *service.Components, streams streams) error {
	made := 0
	for i, log := range logs {
		if (missing || len(logs) > 1) && (exists(string(log.MarkFile)) || holdsLog(string(log.Directory)) == nil) {
			continue
		}
		if err := embedded.Create(ctx, log, embedded.Options{Signer: p.LogKeys[i], Roots: p.Authorities.Roots()}); err != nil {
			return err
		}
		fmt.Fprintf(streams.Out, "The empty log %s is in %s, its mark in %s.\n", log.Origin(), log.Directory, log.MarkFile)
		made++
	}
	if made == 0 && !missing {
		return fail("make the log that follows with `mayfly log rotate`; with --missing there is nothing to do", "every log that the configuration names is there already")
	}
	return nil
}

func newLogFreezeCommand(streams streams) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "freeze [URL]",
		Short: "Close a log for good whose end is past, once it is complete",
		Long: `Moves a log whose end is past to the frozen ones, where it is served and stays in
the trusted root, and nothing can be added to it any more. Before that it checks the
log from the first entry to the last and against its mark, that the last
checkpoint covers everything, and that every certificate which the audit trail
says is in it is in it. It writes the log's public key beside its directory, and
that it is frozen into ctlog.state_file. A running service takes the change up by
itself.`,
		Example: `  mayfly log freeze --config /etc/mayfly/mayfly.yaml
  mayfly log freeze --config /etc/mayfly/mayfly.yaml https://ca.example.com/ctlog/2027`,
		RunE: func(cmd *cobra.Command, args []string) error {
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
