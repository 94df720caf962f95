package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newLogListCommand(streams streams) *cobra.Command {
	return withConfig(&cobra.Command{
		Use:   "list",
		Short: "Print the logs of a configuration and how they stand",
		Long: `Prints every log of a configuration in the order in which they follow each other:
frozen ones, those of this CA, and those of others. A log is next before its
start, active until its end, then ended, and frozen once mayfly log freeze has
moved it. Of logs in a directory it prints how many entries the published
checkpoint covers, and how old that is. It only reads, so a service may run.`,
		Example: "  mayfly log list --config /etc/mayfly/mayfly.yaml",
	}, loadConfig, func(cmd *cobra.Command, _ string, c *config.Config, _ []string) error {
		return printLogs(cmd.Context(), streams.Out, c, time.Now())
	})
}

// listed is one log as it is printed.
type listed struct {
	state string
	about ctlog.Description
	dir   string
	err   error // why the key isn't known
}

// listLogs are all logs of a configuration.
func listLogs(c *config.Config, now time.Time) []listed {
	var all []listed
	add := func(state, url string, start, end time.Time, dir setting.Path, spki []byte, err error) {
		d := ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: strings.TrimSuffix(url, "/"), Start: start, End: end}
		if state == "" {
			state = service.LogPhase(d, now)
		}
		all = append(all, listed{state, d, string(dir), err})
	}
	for _, log := range c.CTLog.FrozenLogs() {
		d, err := external.Describe(log)
		add("frozen", log.URL, log.Start, log.End, log.Directory, d.SPKI, err)
	}
	for _, log := range c.CTLog.Own() {
		spki, err := maintain.KeyOf(string(log.Directory))
		add("", log.URL, log.Start, log.End, log.Directory, spki, err)
	}
	for _, log := range c.CTLog.Logs {
		spki, err := external.ReadKey(string(log.KeyFile))
		add("", log.URL, log.Start, log.End, "", spki, err)
	}
	return all
}

func printLogs(ctx context.Context, w io.Writer, c *config.Config, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "STATE\tLOG\tSTART\tEND\tENTRIES\tCHECKPOINT\tKEY ID\tDIRECTORY")
	for _, l := range listLogs(c, now) {
		id, entries, age := "unknown", "-", "-"
		if l.err == nil {
			id = fmt.Sprintf("%x", l.about.ID)
		}
		if l.dir != "" && l.err == nil {
			size, signed, err := l.published(ctx)
			if entries, age = fmt.Sprint(size), now.Sub(signed).Truncate(time.Second).String(); err != nil {
				entries, age = "?", "unreadable"
			}
		}
		fmt.Fprintln(table, strings.Join([]string{
			l.state, terminal.Line(l.about.URL), moment(l.about.Start), moment(l.about.End), entries, age, id, terminal.Line(cmp.Or(l.dir, "-")),
		}, "\t"))
	}
	return table.Flush()
}

// published reads the checkpoint in the log's directory.
func (l listed) published(ctx context.Context) (uint64, time.Time, error) {
	key, err := x509.ParsePKIXPublicKey(l.about.SPKI)
	if err != nil {
		return 0, time.Time{}, err
	}
	return read.Published(ctx, ctlog.EmbeddedConfig{Directory: setting.Path(l.dir), URL: l.about.URL}, key)
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// maxIndexDigits tells an index from a serial number: a log has fewer than 10^13
// entries, and a serial number has 16 hexadecimal digits and more.
const maxIndexDigits = 13

func newLogShowCommand(streams streams) *cobra.Command {
	var dir string
	var withPEM bool
	cmd := &cobra.Command{
		Use:   "show INDEX|SERIAL",
		Short: "Print an entry of an embedded log",
		Long: `Prints an entry of an embedded log, by its index or by the serial number of its
certificate in hexadecimal, and checks that the published checkpoint holds it. It
writes nothing, so the log may be in use.`,
		Example: "  mayfly log show 42 --dir my-ca/ctlog",
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := findEntry(cmd.Context(), dir, args[0])
			if err != nil {
				return err
			}
			return printEntry(streams.Out, e, withPEM)
		},
	}
	logDirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&withPEM, "pem", false, "print what was logged in PEM as well")
	return cmd
}

func newLogProofCommand(streams streams) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "proof INDEX|SERIAL",
		Short: "Print the proof that an entry is in an embedded log",
		Long: `Prints the proof that an entry is in an embedded log: its index, the hashes from
its leaf to the root, and the checkpoint that the log signed over the root
(c2sp.org/tlog-proof). Whoever has the log's key can verify it offline.`,
		Example: "  mayfly log proof 42 --dir my-ca/ctlog",
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := findEntry(cmd.Context(), dir, args[0])
			if err != nil {
				return err
			}
			_, err = streams.Out.Write(e.Proof())
			return err
		},
	}
	logDirFlag(cmd, &dir)
	return cmd
}

// logDirFlag adds the required --dir.
func logDirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "", "the log's directory (required)")
}

// findEntry finds an entry by what a person knows of it.
func findEntry(ctx context.Context, dir, name string) (e read.Entry, err error) {
	if err := holdsLog(dir); err != nil {
		return e, err
	}
	if index, failed := strconv.ParseUint(name, 10, 64); failed == nil && len(name) <= maxIndexDigits {
		e, err = read.EntryAt(ctx, dir, index)
	} else {
		digits := strings.NewReplacer(":", "", " ", "").Replace(strings.TrimPrefix(strings.ToLower(name), "0x"))
		serial, ok := new(big.Int).SetString(digits, 16)
		if !ok || serial.Sign() < 0 {
			return e, usage("give an index, as in 42, or a serial number in hexadecimal", "%q is neither an index nor a serial number", name)
		}
		e, err = read.FindEntry(ctx, dir, serial)
	}
	if errors.Is(err, read.ErrNoEntry) {
		err = fail("an entry can be read when a checkpoint covers it, a second or two after its certificate was issued", "%w", err)
	}
	return e, err
}

func printEntry(w io.Writer, e read.Entry, withPEM bool) error {
	c, err := x509.ParseCertificate(e.Certificate)
	if err != nil {
		return fmt.Errorf("entry %d: %w", e.Index, err)
	}
	kind := "certificate"
	if e.Precert {
		kind = "precertificate"
	}
	names := append([]string{}, c.EmailAddresses...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	for _, line := range [][2]string{
		{"entry", fmt.Sprintf("%d, in the checkpoint of %d entries", e.Index, e.Size)},
		{"kind", kind},
		{"logged", time.UnixMilli(int64(e.Timestamp)).UTC().Format(time.RFC3339Nano)},
		{"leaf hash", fmt.Sprintf("%x", e.LeafHash)},
		{"serial", c.SerialNumber.Text(16)},
		{"issuer", c.Issuer.String()},
		{"names", strings.Join(names, " ")},
		{"valid", c.NotBefore.UTC().Format(time.RFC3339) + " to " + c.NotAfter.UTC().Format(time.RFC3339)},
	} {
		fmt.Fprintf(w, "  %-10s %s\n", line[0], terminal.Line(line[1]))
	}
	if withPEM {
		return pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate})
	}
	return nil
}

func newLogVerifyCommand(streams streams) *cobra.Command {
	var dir, mark string
	var backup bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check an embedded log from the first entry to the last",
		Long: `Reads an embedded log from the first entry to the last: the checkpoint's
signature, every entry's form, index and issuers, every tile, and the root. It
writes nothing, so the log may be in use.

With --mark it also compares the log with its high-water mark, which shows that
this copy is not an old one.`,
		Example: "  mayfly log verify --dir my-ca/ctlog --mark my-ca/ctlog.mark",
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

func newLogBackupCommand(streams streams) *cobra.Command {
	var dir, to string
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Copy an embedded log while it runs",
		Long: `Copies what an embedded log has published into another folder and checks the
copy from the first entry to the last. The log may be in use. A second backup into
the same folder copies what is new.

A backup can be served by any web server, but no log opens on it, so it can't
become a fork: mayfly log restore makes a log of it, where that is safe.`,
		Example: "  mayfly log backup --dir my-ca/ctlog --to /backup/ctlog-2027",
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
	return cmd
}

func newLogRestoreCommand(streams streams) *cobra.Command {
	var dir, from, mark string
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Make an embedded log of its backup, where that can't fork it",
		Long: `Makes a log of a backup again, in a directory that is empty or missing. The
backup is checked from the first entry to the last, and against the log's
high-water mark. Stop the service of the old log first, and never start it again
on the old directory: two logs that grow with one key contradict each other.

A backup that is behind the mark is refused: certificates hold SCTs for entries
that it lacks, and a log that went on from it would contradict them. So is one
without a mark. Serve such a backup as it is, and begin a new log with a new key.`,
		Example: "  mayfly log restore --from /backup/ctlog-2027 --dir my-ca/ctlog --mark my-ca/ctlog.mark",
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
	return cmd
}
