package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	cachain "github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newLogListCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "Print the logs of a configuration and how they stand",
		Long: `Prints every log of a configuration in the order in which they follow each other:
frozen ones, those of this CA, and those of others. A log is next before its
start, active until its end, then ended, and frozen once mayfly log freeze has
moved it. Of logs in a directory it prints how many entries the published
checkpoint covers, and how old that is. It only reads, so a service may run.`,
	}
	asJSON := jsonFlag(cmd)
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, _ string, c *config.Config, _ []string) error {
		now := time.Now()
		all := listLogs(c, now)
		return show(streams.Out, *asJSON, map[string]any{"logs": all}, func(w io.Writer) { printLogs(w, all, now) })
	})
}

// listedLog is a log as `mayfly log list` has it.
type listedLog struct {
	State      string       `json:"state"`
	URL        string       `json:"url"`
	ID         string       `json:"log,omitempty"` // absent where its key can't be read
	Start      time.Time    `json:"start,omitzero"`
	End        time.Time    `json:"end,omitzero"`
	Directory  setting.Path `json:"directory,omitempty"`
	Entries    *uint64      `json:"entries,omitempty"`   // that the checkpoint covers, where that can be read
	Checkpoint time.Time    `json:"checkpoint,omitzero"` // when it was signed
}

// listLogs are frozen logs, those of this CA, and those of others.
func listLogs(c *config.Config, now time.Time) []listedLog {
	all := []listedLog{}
	add := func(state, url string, start, end time.Time, dir setting.Path, spki []byte, err error) {
		l := listedLog{URL: strings.TrimSuffix(url, "/"), Start: start, End: end, Directory: dir}
		l.State = cmp.Or(state, service.LogPhase(ctlog.Description{Start: start, End: end}, now))
		if err == nil {
			l.ID = fmt.Sprintf("%x", sha256.Sum256(spki))
		}
		if key, err := x509.ParsePKIXPublicKey(spki); err == nil && dir != "" && l.ID != "" {
			if head, err := read.Published(ctlog.EmbeddedConfig{Directory: dir, URL: l.URL}, key); err == nil {
				l.Entries, l.Checkpoint = &head.Size, head.Signed().UTC()
			}
		}
		all = append(all, l)
	}
	for _, log := range c.CTLog.FrozenLogs() {
		d, err := external.Describe(log)
		add("frozen", log.URL, log.Start, log.End, log.Directory, d.SPKI, err)
	}
	for _, log := range c.CTLog.Own() {
		owner, err := logdir.Dir(log.Directory).Owner()
		add("", log.URL, log.Start, log.End, log.Directory, owner.Key, err)
	}
	for _, log := range c.CTLog.Logs {
		spki, err := external.ReadKey(string(log.KeyFile))
		add("", log.URL, log.Start, log.End, "", spki, err)
	}
	return all
}

func printLogs(w io.Writer, all []listedLog, now time.Time) {
	t := newTable(w, "STATE", "LOG", "START", "END", "ENTRIES", "CHECKPOINT", "KEY ID", "DIRECTORY")
	for _, l := range all {
		entries, age := "-", "-"
		switch {
		case l.Entries != nil:
			entries, age = fmt.Sprint(*l.Entries), now.Sub(l.Checkpoint).Truncate(time.Second).String()
		case l.Directory != "" && l.ID != "":
			entries, age = "?", "unreadable"
		}
		t.row(l.State, l.URL, moment(l.Start), moment(l.End), entries, age, cmp.Or(l.ID, "unknown"), cmp.Or(string(l.Directory), "-"))
	}
	_ = t.Flush() // which show buffers
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
	var withPEM bool
	cmd := entryCommand(streams, &cobra.Command{
		Use: "show INDEX|SERIAL", Short: "Print an entry of an embedded log",
		Long: `Prints an entry of an embedded log, by its index or by the serial number of its
certificate in hexadecimal, and checks that the published checkpoint holds it. It
writes nothing, so the log may be in use.`,
		Example: "  mayfly log show 42 --dir my-ca/ctlog",
	}, func(w io.Writer, e loggedEntry) { e.print(w, withPEM) })
	cmd.Flags().BoolVar(&withPEM, "pem", false, "print what was logged in PEM as well")
	return cmd
}

func newLogProofCommand(streams streams) *cobra.Command {
	return entryCommand(streams, &cobra.Command{
		Use: "proof INDEX|SERIAL", Short: "Print the proof that an entry is in an embedded log",
		Long: `Prints the proof that an entry is in an embedded log: its index, the hashes from
its leaf to the root, and the checkpoint that the log signed over the root
(c2sp.org/tlog-proof). Whoever has the log's key can verify it offline.`,
		Example: "  mayfly log proof 42 --dir my-ca/ctlog",
	}, func(w io.Writer, e loggedEntry) { fmt.Fprint(w, e.Proof) })
}

// loggedEntry is an entry of a log, for machines.
type loggedEntry struct {
	Index    uint64    `json:"index"`
	Entries  uint64    `json:"entries"` // of the checkpoint
	Kind     string    `json:"kind"`
	Logged   time.Time `json:"logged"`
	LeafHash string    `json:"leaf_hash"`
	Proof    string    `json:"proof"` // c2sp.org/tlog-proof
	PEM      string    `json:"pem"`
	inspect.Description
}

// entryCommand has cmd print the entry that its argument names.
func entryCommand(streams streams, cmd *cobra.Command, text func(io.Writer, loggedEntry)) *cobra.Command {
	asJSON := jsonFlag(cmd)
	return withLogDir(cmd, func(ctx context.Context, dir string, args []string) error {
		e, err := findEntry(ctx, dir, args[0])
		if err != nil {
			return err
		}
		c, err := x509.ParseCertificate(e.Certificate)
		if err != nil {
			return fmt.Errorf("entry %d: %w", e.Index, err)
		}
		l := loggedEntry{
			Index: e.Index, Entries: e.Size, Kind: "certificate", Logged: logged(e.Timestamp), LeafHash: fmt.Sprintf("%x", e.LeafHash),
			Description: inspect.Describe([]*x509.Certificate{c}, nil), Proof: string(e.Proof()), PEM: string(cachain.PEM([]*x509.Certificate{c})),
		}
		if e.Precert {
			l.Kind, l.SHA256, l.SHA1 = "precertificate", "", "" // the certificate has others
		}
		return show(streams.Out, *asJSON, l, func(w io.Writer) { text(w, l) })
	})
}

// withLogDir gives cmd the required --dir, and has it run where a log is there.
func withLogDir(cmd *cobra.Command, run func(ctx context.Context, dir string, args []string) error) *cobra.Command {
	var dir string
	cmd.Flags().StringVar(&dir, "dir", "", "the log's directory (required)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := holdsLog(dir); err != nil {
			return err
		}
		return run(cmd.Context(), dir, args)
	}
	return cmd
}

// findEntry finds an entry by what a person knows of it.
func findEntry(ctx context.Context, dir, name string) (e read.Entry, err error) {
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

func (l loggedEntry) print(w io.Writer, withPEM bool) {
	var names []string
	for _, name := range l.Identity {
		names = append(names, name.Value)
	}
	for _, line := range [][2]string{
		{"entry", fmt.Sprintf("%d, in the checkpoint of %d entries", l.Index, l.Entries)},
		{"kind", l.Kind},
		{"logged", l.Logged.Format(time.RFC3339Nano)},
		{"leaf hash", l.LeafHash},
		{"serial", l.Serial},
		{"issuer", l.Issuer},
		{"names", strings.Join(names, " ")},
		{"valid", moment(l.NotBefore) + " to " + moment(l.NotAfter)},
	} {
		fmt.Fprintf(w, "  %-10s %s\n", line[0], terminal.Line(line[1]))
	}
	if withPEM {
		fmt.Fprint(w, l.PEM)
	}
}

func newLogVerifyCommand(streams streams) *cobra.Command {
	var mark string
	var backup bool
	var asJSON *bool
	cmd := withLogDir(&cobra.Command{
		Use: "verify", Short: "Check an embedded log from the first entry to the last",
		Long: `Reads an embedded log from the first entry to the last: the checkpoint's
signature, every entry's form, index and issuers, every tile, and the root. It
writes nothing, so the log may be in use.

With --mark it also compares the log with its high-water mark, which shows that
this copy is not an old one.`,
		Example: "  mayfly log verify --dir my-ca/ctlog --mark my-ca/ctlog.mark",
	}, func(ctx context.Context, dir string, _ []string) error {
		if mark != "" && !exists(mark) {
			return fail("name the log's mark: mark_file of the configuration. Where it is lost, docs/ctlog.md says what follows",
				"there is no mark %s", mark)
		}
		tell, done := progress(streams.Err)
		report, err := maintain.Verify(ctx, dir, maintain.VerifyOptions{MarkFile: mark, Backup: backup, Progress: tell})
		done()
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
		all := map[string]any{
			"origin": report.Origin, "log": hex.EncodeToString(report.LogID[:]), "entries": report.Size, "precertificates": report.Precerts,
			"certificates": report.Certs, "issuers": report.Issuers, "root_hash": hex.EncodeToString(report.Root), "unpublished": report.Unpublished,
		}
		if report.Size > 0 {
			all["first_logged"], all["last_logged"] = logged(report.FirstEntry), logged(report.LastEntry)
		}
		if mark != "" {
			all["mark_entries"] = report.MarkSize
		}
		return show(streams.Out, *asJSON, all, func(w io.Writer) { printReport(w, report, mark != "") })
	})
	asJSON = jsonFlag(cmd)
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
		fmt.Fprintf(w, "  %-12s %s to %s\n", "logged", moment(logged(r.FirstEntry)), moment(logged(r.LastEntry)))
	}
	if r.Unpublished > 0 {
		fmt.Fprintf(w, "  %-12s %d, in no checkpoint yet\n", "stored", r.Unpublished)
	}
	if marked {
		fmt.Fprintf(w, "  %-12s %d entries, part of this log\n", "mark", r.MarkSize)
	}
}

// logged is the time of an entry, in milliseconds.
func logged(ms uint64) time.Time { return time.UnixMilli(int64(ms)).UTC() }

// progress shows on a terminal how far a long piece of work has come, on one line that it
// writes over and done clears; elsewhere it is silent.
func progress(w io.Writer) (show func(finished, total uint64), done func()) {
	if !atTerminal(w) {
		return nil, func() {}
	}
	var last time.Time
	show = func(finished, total uint64) {
		if total > 0 && time.Since(last) >= 100*time.Millisecond {
			last = time.Now()
			fmt.Fprintf(w, "\r%d of %d entries (%d %%)\x1b[K", finished, total, 100*finished/total)
		}
	}
	return show, func() { fmt.Fprint(w, "\r\x1b[K") }
}
