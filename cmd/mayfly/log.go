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
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/promises"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/ctlog/rotation"
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
		if *asJSON {
			return writeJSON(streams.Out, map[string]any{"logs": all})
		}
		return printLogs(streams.Out, all, now)
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

func printLogs(w io.Writer, all []listedLog, now time.Time) error {
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
	return t.Flush()
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
	}, func(e loggedEntry) error { return e.print(streams.Out, withPEM) })
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
	}, func(e loggedEntry) error {
		_, err := io.WriteString(streams.Out, e.Proof)
		return err
	})
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
func entryCommand(streams streams, cmd *cobra.Command, text func(loggedEntry) error) *cobra.Command {
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
		if *asJSON {
			return writeJSON(streams.Out, l)
		}
		return text(l)
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

func (l loggedEntry) print(w io.Writer, withPEM bool) error {
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
	if !withPEM {
		return nil
	}
	_, err := io.WriteString(w, l.PEM)
	return err
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
