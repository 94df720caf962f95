package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/spf13/cobra"
)

const logVerifyLong = `Reads an embedded log from the first entry to the last: the checkpoint's
signature, every entry's form, index and issuers, every tile, and the root. It
writes nothing, so the log may be in use.

With --mark it also compares the log with its high-water mark, which shows that
this copy is not an old one.`

const logLong = `Works on the logs of a configuration (--config): list, create, rotate, freeze; and
on the directory of an embedded log (--dir): show, proof, verify, backup, restore.
All but restore may run beside the service. docs/ctlog.md goes through them.`

// newLogCommand groups what there is to do with an embedded log.
func newLogCommand(streams streams) *cobra.Command {
	return group("log", "Work on an embedded log, and on the logs that follow each other", logLong,
		newLogVerifyCommand(streams), newLogShowCommand(streams), newLogProofCommand(streams),
		newLogBackupCommand(streams), newLogRestoreCommand(streams), newLogCreateCommand(streams),
		newLogListCommand(streams), newLogRotateCommand(streams), newLogFreezeCommand(streams))
}

func newLogVerifyCommand(streams streams) *cobra.Command {
	var dir, mark string
	var backup bool
	cmd := &cobra.Command{
		Use:     "verify",
		Short:   "Check an embedded log from the first entry to the last",
		Long:    logVerifyLong,
		Example: "  mayfly log verify --dir my-ca/ctlog --mark my-ca/ctlog.mark",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := holdsLog(dir); err != nil {
				return err
			}
			if mark != "" && !exists(mark) {
				return fail("name the log's mark: mark_file of the configuration. Where it is lost, docs/ctlog.md says what follows",
					"there is no mark %s", mark)
			}
			progress := newProgress(streams.Err)
			report, err := maintain.Verify(cmd.Context(), dir, maintain.VerifyOptions{MarkFile: mark, Backup: backup, Progress: progress.show})
			progress.done()
			if errors.Is(err, fs.ErrPermission) { // which says nothing about the log
				return &failure{code: exitFailed, fix: "run it as the user of the service", err: err}
			}
			if err != nil {
				fix := "stop the CA, keep the directory as it is, and restore the log from a copy that verifies"
				if !backup && !exists(filepath.Join(dir, ".state")) { // which no backup has
					fix = "add --backup if `mayfly log backup` wrote this directory; else " + fix
				}
				return &failure{code: exitUnverified, fix: fix, err: fmt.Errorf("the log in %s is damaged: %w", dir, err)}
			}
			printReport(streams.Out, report, mark != "")
			return nil
		},
	}
	logDirFlag(cmd, &dir)
	cmd.Flags().StringVar(&mark, "mark", "", "the log's high-water mark, to compare with")
	cmd.Flags().BoolVar(&backup, "backup", false, "the directory is one that mayfly log backup wrote")
	return cmd
}

// holdsLog is an error where nothing in dir is of a log, so that another folder
// isn't taken for a damaged one.
func holdsLog(dir string) error {
	const fix = "name the log's own directory: ctlog.embedded.directory of the configuration"
	if _, err := os.Stat(dir); err != nil {
		return &failure{code: exitFailed, fix: fix, err: err}
	}
	for _, part := range []string{"log.v3.json", "checkpoint", "tile", ".state"} {
		if exists(filepath.Join(dir, part)) {
			return nil
		}
	}
	return fail(fix, "there is no log in %s", dir)
}

// exists says whether something is at path, or may be.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func printReport(w io.Writer, r maintain.Report, marked bool) {
	fmt.Fprintf(w, "The log is whole.\n\n  %-12s %s\n  %-12s %x\n  %-12s %d (%d precertificates, %d certificates, %d issuers)\n  %-12s %x\n",
		"origin", r.Origin, "log id", r.LogID, "entries", r.Size, r.Precerts, r.Certs, r.Issuers, "root", r.Root)
	if r.Size > 0 {
		fmt.Fprintf(w, "  %-12s %s to %s\n", "logged", millis(r.FirstEntry), millis(r.LastEntry))
	}
	if r.Unpublished > 0 {
		fmt.Fprintf(w, "  %-12s %d, in no checkpoint yet\n", "stored", r.Unpublished)
	}
	if marked {
		fmt.Fprintf(w, "  %-12s %d entries, part of this log\n", "mark", r.MarkSize)
	}
}

func millis(ms uint64) string {
	return time.UnixMilli(int64(ms)).UTC().Format(time.RFC3339)
}

// progress shows on a terminal how far a long piece of work has come, on one
// line that it writes over; elsewhere it is silent.
type progress struct {
	w     io.Writer
	last  time.Time
	shown bool
}

func newProgress(w io.Writer) *progress {
	if atTerminal(w) {
		return &progress{w: w}
	}
	return &progress{}
}

func (p *progress) show(done, total uint64) {
	if p.w == nil || total == 0 || time.Since(p.last) < 100*time.Millisecond {
		return
	}
	p.last, p.shown = time.Now(), true
	fmt.Fprintf(p.w, "\r%d of %d entries (%d %%)\x1b[K", done, total, 100*done/total)
}

// done clears the line.
func (p *progress) done() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
