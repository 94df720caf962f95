package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/spf13/cobra"
)

const logBackupLong = `Copies what an embedded log has published into another folder and checks the
copy from the first entry to the last. The log may be in use. A second backup into
the same folder copies what is new.

A backup can be served by any web server, but no log opens on it, so it can't
become a fork: mayfly log restore makes a log of it, where that is safe.`

func newLogBackupCommand(streams streams) *cobra.Command {
	var dir, to string
	cmd := &cobra.Command{
		Use:     "backup",
		Short:   "Copy an embedded log while it runs",
		Long:    logBackupLong,
		Example: "  mayfly log backup --dir my-ca/ctlog --to /backup/ctlog-2027",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := holdsLog(dir); err != nil {
				return err
			}
			progress := newProgress(streams.Err)
			report, err := maintain.Backup(cmd.Context(), dir, to, maintain.VerifyOptions{Progress: progress.show})
			progress.done()
			if err != nil {
				return err
			}
			fmt.Fprintf(streams.Out, "The backup in %s is whole.\n\n  %-12s %s\n  %-12s %d\n  %-12s %x\n",
				to, "origin", report.Origin, "entries", report.Size, "root", report.Root)
			return nil
		},
	}
	logDirFlag(cmd, &dir)
	cmd.Flags().StringVar(&to, "to", "", "the folder to copy into (required)")
	cobra.CheckErr(cmd.MarkFlagRequired("to"))
	return cmd
}

const logRestoreLong = `Makes a log of a backup again, in a directory that is empty or missing. The
backup is checked from the first entry to the last, and against the log's
high-water mark. Stop the service of the old log first, and never start it again
on the old directory: two logs that grow with one key contradict each other.

A backup that is behind the mark is refused: certificates hold SCTs for entries
that it lacks, and a log that went on from it would contradict them. So is one
without a mark. Serve such a backup as it is, and begin a new log with a new key.`

func newLogRestoreCommand(streams streams) *cobra.Command {
	var dir, from, mark string
	cmd := &cobra.Command{
		Use:     "restore",
		Short:   "Make an embedded log of its backup, where that can't fork it",
		Long:    logRestoreLong,
		Example: "  mayfly log restore --from /backup/ctlog-2027 --dir my-ca/ctlog --mark my-ca/ctlog.mark",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			progress := newProgress(streams.Err)
			report, err := maintain.Restore(cmd.Context(), from, dir, mark, maintain.VerifyOptions{Progress: progress.show})
			progress.done()
			switch {
			case errors.Is(err, maintain.ErrBehind):
				return &failure{code: exitUnverified, fix: "serve the backup as it is, and begin a new log with a new key and URL", err: err}
			case errors.Is(err, fs.ErrNotExist):
				return &failure{code: exitFailed, fix: "name the backup and the log's own mark file; without the mark, begin a new log", err: err}
			case err != nil:
				return err
			}
			fmt.Fprintf(streams.Out, "The log of %d entries is in %s and goes on from there.\n", report.Size, dir)
			return nil
		},
	}
	logDirFlag(cmd, &dir)
	flags := cmd.Flags()
	flags.StringVar(&from, "from", "", "the backup (required)")
	flags.StringVar(&mark, "mark", "", "the log's high-water mark (required)")
	cobra.CheckErr(cmd.MarkFlagRequired("from"))
	cobra.CheckErr(cmd.MarkFlagRequired("mark"))
	return cmd
}
