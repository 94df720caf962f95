package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/rotation"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func newLogBackupCommand(streams streams) *cobra.Command {
	var to string
	cmd := withLogDir(&cobra.Command{
		Use: "backup", Short: "Copy an embedded log while it runs",
		Long: `Copies what an embedded log has published into another folder and checks the
copy from the first entry to the last. The log may be in use. A second backup into
the same folder copies what is new.

A backup can be served by any web server, but no log opens on it, so it can't
become a fork: mayfly log restore makes a log of it, where that is safe.`,
		Example: "  mayfly log backup --dir my-ca/ctlog --to /backup/ctlog-2027",
	}, func(ctx context.Context, dir string, _ []string) error {
		show, done := progress(streams.Err)
		report, err := maintain.Backup(ctx, dir, to, maintain.VerifyOptions{Progress: show})
		done()
		if err != nil {
			return err
		}
		fmt.Fprintf(streams.Out, "The backup in %s is whole.\n\n  %-12s %s\n  %-12s %d\n  %-12s %x\n",
			to, "origin", report.Origin, "entries", report.Size, "root", report.Root)
		return nil
	})
	cmd.Flags().StringVar(&to, "to", "", "the folder to copy into (required)")
	return cmd
}

func newLogRestoreCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore", Short: "Make an embedded log of its backup, where that can't fork it",
		Long: `Makes a log of a backup again, in a directory that is empty or missing. The
backup is checked from the first entry to the last, and against the log's
high-water mark. Stop the service of the old log first, and never start it again
on the old directory: two logs that grow with one key contradict each other.

A backup that is behind the mark is refused: certificates hold SCTs for entries
that it lacks, and a log that went on from it would contradict them. So is one
without a mark. Serve such a backup as it is, and begin a new log with a new key.`,
		Example: "  mayfly log restore --from /backup/ctlog-2027 --dir my-ca/ctlog --mark my-ca/ctlog.mark",
	}
	flags := cmd.Flags()
	dir := flags.String("dir", "", "the log's directory (required)")
	from := flags.String("from", "", "the backup (required)")
	mark := flags.String("mark", "", "the log's high-water mark (required)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		show, done := progress(streams.Err)
		report, err := maintain.Restore(cmd.Context(), *from, *dir, *mark, maintain.VerifyOptions{Progress: show})
		done()
		switch {
		case errors.Is(err, maintain.ErrBehind):
			return &failure{code: exitUnverified, fix: "serve the backup as it is, and begin a new log with a new key and URL", err: err}
		case errors.Is(err, fs.ErrNotExist):
			return &failure{code: exitFailed, fix: "name the backup and the log's own mark file; without the mark, begin a new log", err: err}
		case err != nil:
			return err
		}
		fmt.Fprintf(streams.Out, "The log of %d entries is in %s and goes on from there.\n", report.Size, *dir)
		return nil
	}
	return cmd
}

func newLogRotateCommand(streams streams) *cobra.Command {
	var r rotation.Request
	cmd := &cobra.Command{
		Use: "rotate", Short: "Make the log that follows the last one of a configuration",
		Long: `Makes the log that follows the last one of a configuration: a key, an empty log
and its mark beside those of the log before, and its entry in ctlog.state_file; it
begins when the log before ends. The configuration isn't written, and nothing is
ever overwritten. A running service takes the log up by itself: it lists it in the
trusted root at once, and goes over to it by the clock.

Clients refuse certificates from a log that they don't know. So the new log
begins no sooner than ctlog.propagation (24h) from now; --force allows less, and
then clients with an older trusted root refuse what is signed until they fetch it.`,
		Example: "  mayfly log rotate --config /etc/mayfly/mayfly.yaml --yearly",
	}
	flags := cmd.Flags()
	timeFlag(cmd, &r.At, "at", "when the new log begins, such as 2028-01-01 or 2028-01-01T00:00:00Z; else when the last one ends, or as soon as clients can know it")
	flags.BoolVar(&r.Yearly, "yearly", false, "begin with the next year (UTC)")
	flags.StringVar(&r.URL, "url", "", "the new log's URL; else the last one's with another year")
	flags.StringVar((*string)(&r.Key), "key", "", "a key of the new log that is there already: file:PATH or the URI of a P-256 key in a KMS")
	flags.BoolVar(&r.Force, "force", false, "begin before clients can know the log: they refuse its certificates until they fetch the trusted root")
	cmd.MarkFlagsMutuallyExclusive("at", "yearly")
	return withLogs(cmd, func(ctx context.Context, _ string, c *config.Config, _ []string) error {
		store, err := openLogs(c)
		if err != nil {
			return err
		}
		defer store.Close()
		p, err := store.Plan(r, time.Now())
		if err != nil {
			return err
		}
		if err := store.Create(ctx, p, logKeys{}); err != nil {
			return err
		}
		fmt.Fprintf(streams.Out, "The log %s follows %s at %s.\n\n  %-10s %s\n  %-10s %s\n  %-10s %s\n\n"+
			"A running service lists it in the trusted root within seconds; see mayfly log list.\nBack up the key.\n",
			p.Next.URL, p.Before.URL, p.Next.Start.Format(time.RFC3339),
			"directory", p.Next.Directory, "mark", p.Next.MarkFile, "key", p.Next.Key)
		return nil
	})
}

// withLogs has cmd change a configuration's logs.
func withLogs(cmd *cobra.Command, run func(ctx context.Context, file string, c *config.Config, args []string) error) *cobra.Command {
	return withConfig(cmd, changeableLogs, func(cmd *cobra.Command, file string, c *config.Config, args []string) error {
		err := run(cmd.Context(), file, c, args)
		if r, refused := errors.AsType[*rotation.Refusal](err); refused {
			codes := map[rotation.Kind]int{rotation.NotNow: exitFailed, rotation.Misasked: exitUsage, rotation.Unverified: exitUnverified}
			return &failure{code: codes[r.Kind], fix: r.Fix, err: err}
		}
		return err
	})
}

// changeableLogs reads a configuration that has logs of its own and a state file for them.
func changeableLogs(file string) (*config.Config, error) {
	c, err := loadConfig(file)
	switch {
	case err != nil:
		return nil, err
	case len(c.CTLog.Own()) == 0:
		return nil, usage("an external log is added under ctlog.logs, with start and end", "%s names no embedded log", file)
	case c.CTLog.StateFile == "":
		return nil, fail(exportStates(file), "%s has no ctlog.state_file, and no command writes a configuration", file)
	}
	return c, nil
}

// openLogs opens the store of a configuration's logs, to change them.
func openLogs(c *config.Config) (*rotation.Store, error) {
	return rotation.Open(c.CTLog, func(logs ctlog.Config) error {
		next := *c
		next.CTLog = logs
		return next.Check()
	})
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
	cmd := &cobra.Command{
		Use: "create", Short: "Make the empty log that a configuration names",
		Long: `Makes the empty logs that a configuration names under ctlog.embedded and
ctlog.shards and that aren't there yet: mayfly serve makes none, because there an
empty folder means that a disk isn't mounted. A directory that holds a log, and a
mark of one, are never touched. mayfly log rotate makes the log that follows.`,
	}
	missing := cmd.Flags().Bool("missing", false, "succeed where all are there already, as before each start of a container")
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, file string, c *config.Config, _ []string) error {
		if c.CTLog.Mode != ctlog.ModeEmbedded {
			return usage("set ctlog.mode to embedded", "%s names no embedded log", file)
		}
		p, err := service.Load(cmd.Context(), c, quiet())
		if err != nil {
			return startFailure(err, "")
		}
		logs, made := c.CTLog.Own(), 0
		for i, log := range logs {
			if (*missing || len(logs) > 1) && (exists(string(log.MarkFile)) || holdsLog(string(log.Directory)) == nil) {
				continue
			}
			if err := embedded.Create(cmd.Context(), log, embedded.Options{Signer: p.LogKeys[i], Roots: p.Authorities.Roots()}); err != nil {
				return err
			}
			fmt.Fprintf(streams.Out, "The empty log %s is in %s, its mark in %s.\n", log.Origin(), log.Directory, log.MarkFile)
			made++
		}
		if made == 0 && !*missing {
			return fail("make the log that follows with `mayfly log rotate`; with --missing there is nothing to do", "every log that the configuration names is there already")
		}
		return nil
	})
}

func newLogFreezeCommand(streams streams) *cobra.Command {
	return withLogs(&cobra.Command{
		Use: "freeze [URL]", Short: "Close a log for good whose end is past, once it is complete",
		Long: `Moves a log whose end is past to the frozen ones, where it is served and stays in
the trusted root, and nothing can be added to it any more. Before that it checks the
log from the first entry to the last and against its mark, that the last
checkpoint covers everything, and that every certificate which the audit trail
says is in it is in it. It writes the log's public key beside its directory, and
that it is frozen into ctlog.state_file. A running service takes the change up by
itself.`,
		Example: `  mayfly log freeze --config /etc/mayfly/mayfly.yaml
  mayfly log freeze --config /etc/mayfly/mayfly.yaml https://ca.example.com/ctlog/2027`,
	}, func(ctx context.Context, file string, c *config.Config, args []string) error {
		now := time.Now()
		log, err := rotation.Ended(c.CTLog, strings.Join(args, ""), now)
		if err != nil {
			return err
		}
		show, done := progress(streams.Err)
		complete, err := rotation.VerifyComplete(ctx, log, promises.Follow(string(c.Audit.Path), nil), show)
		done()
		if err != nil {
			return err
		}
		if c, err = changeableLogs(file); err != nil { // it may be another by now: that took a while
			return err
		}
		store, err := openLogs(c)
		if err != nil {
			return err
		}
		defer store.Close()
		keyFile, err := store.Freeze(complete, now)
		if err != nil {
			return err
		}
		fmt.Fprintf(streams.Out, "The log %s is frozen: %d entries, all that it promised. Its public key is in %s.\n"+
			"Take its private key offline; nothing needs it any more.\n", complete.Log.URL, complete.Report.Size, keyFile)
		return nil
	})
}
