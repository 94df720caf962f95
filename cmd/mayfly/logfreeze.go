package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/promises"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const logFreezeLong = `Moves a log whose end is past to ctlog.frozen, where it is served and stays in the
trusted root, and nothing can be added to it any more. Before that it checks the
log from the first entry to the last and against its mark, that the last
checkpoint covers everything, and that every certificate which the audit trail
says is in it is in it. It writes the log's public key beside the private one. A
running service takes the change up by itself.`

func newLogFreezeCommand(streams streams) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "freeze [URL]",
		Short: "Close a log for good whose end is past, once it is complete",
		Long:  logFreezeLong,
		Example: `  mayfly log freeze --config /etc/mayfly/mayfly.yaml
  mayfly log freeze --config /etc/mayfly/mayfly.yaml https://ca.example.com/ctlog/2027`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := loadConfig(file)
			if err != nil {
				return err
			}
			embedded.RedirectStorageLog(slog.New(slog.DiscardHandler))
			f := freezing{config: c, file: file, now: time.Now()}
			if err := f.find(args); err != nil {
				return err
			}
			if err := f.check(cmd.Context(), streams); err != nil {
				return err
			}
			if err := f.carryOut(); err != nil {
				return err
			}
			fmt.Fprintf(streams.Out, "The log %s is frozen: %d entries, all that it promised. Its public key is in %s.\n"+
				"Take its private key offline; nothing needs it any more.\n", f.log.URL, f.report.Size, f.keyFile)
			return nil
		},
	}
	configFlag(cmd, &file)
	return cmd
}

// freezing is a log on its way to the frozen ones.
type freezing struct {
	config  *config.Config
	file    string
	now     time.Time
	log     ctlog.EmbeddedConfig
	path    string // in the configuration
	report  maintain.Report
	spki    []byte
	keyFile string
}

// find chooses the log: the one named, else the first that has ended.
func (f *freezing) find(names []string) error {
	own := f.config.CTLog.Own()
	for i, log := range own {
		if len(names) > 0 && strings.TrimSuffix(names[0], "/") != strings.TrimSuffix(log.URL, "/") {
			continue
		}
		ended := !log.End.IsZero() && !log.End.After(f.now)
		switch {
		case len(names) == 0 && !ended:
			continue
		case !ended:
			return &failure{code: exitFailed, mend: "wait for its end; mayfly log rotate gives it one", err: fmt.Errorf("the log %s has not ended", log.URL)}
		case i == len(own)-1:
			return &failure{code: exitFailed, mend: "make the next one first: mayfly log rotate", err: fmt.Errorf("no log follows %s", log.URL)}
		}
		f.log, f.path = log, f.config.CTLog.OwnPath("ctlog", i)
		return nil
	}
	if len(names) > 0 {
		return &failure{code: exitFailed, mend: "`mayfly log list` shows the URLs; name one of this CA's that isn't frozen", err: fmt.Errorf("there is no log %s to freeze", names[0])}
	}
	return &failure{code: exitFailed, mend: "`mayfly log list` shows when each ends; `mayfly log rotate` gives the last one an end", err: errors.New("there is no such log that has ended and isn't frozen")}
}

// check finds out whether the log is complete.
func (f *freezing) check(ctx context.Context, streams streams) (err error) {
	dir := string(f.log.Directory)
	progress := newProgress(streams.Err)
	f.report, err = maintain.Verify(ctx, dir, maintain.VerifyOptions{MarkFile: string(f.log.MarkFile), Progress: progress.show})
	progress.done()
	switch {
	case err != nil:
		return &failure{code: exitUnverified, mend: "keep the directory as it is, and restore the log from a copy that verifies", err: fmt.Errorf("the log in %s is damaged: %w", dir, err)}
	case f.report.Unpublished > 0:
		return &failure{code: exitFailed, mend: "let the service run, which publishes them, and try again", err: fmt.Errorf("%d entries are in no checkpoint yet", f.report.Unpublished)}
	}
	if f.spki, err = maintain.KeyOf(dir); err != nil {
		return err
	}
	about := ctlog.Description{
		ID: sha256.Sum256(f.spki), SPKI: f.spki, URL: strings.TrimSuffix(f.log.URL, "/"), Start: f.log.Start, End: f.log.End,
	}
	archive, err := read.OpenArchive(ctx, dir, about, nil, nil)
	if err != nil {
		return err
	}
	trail := string(f.config.Audit.Path)
	owed, err := inclusion.Owed(ctx, inclusion.Options{
		Trail: promises.Follow(trail, nil), State: inclusion.StateFile(trail),
		Logs: []inclusion.Log{{Description: about, URL: "http://embedded", Client: inclusion.Local(archive.Handler())}},
	}, f.log.Start)
	if err != nil {
		return err
	}
	if len(owed) > 0 {
		return &failure{
			code: exitUnverified, mend: "keep the log as it is, and find out why: mayfly_ctlog_promises_overdue and the service's log tell more",
			err: fmt.Errorf("%d certificates that the log promised aren't in it; the first has the serial number %s", len(owed), owed[0]),
		}
	}
	return nil
}

// locate finds where the configuration has the log by now: the check takes hours in a
// large log, and meanwhile other commands move it.
func (f *freezing) locate() error {
	c, err := loadConfig(f.file)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(c.CTLog.Own(), func(l ctlog.EmbeddedConfig) bool { return l.URL == f.log.URL && l.End.Equal(f.log.End) })
	if at < 0 {
		return &failure{code: exitFailed, mend: "see mayfly log list, and run it again", err: fmt.Errorf("the log %s was changed in the configuration meanwhile", f.log.URL)}
	}
	f.path = c.CTLog.OwnPath("ctlog", at)
	return nil
}

// carryOut writes the key, the configuration and, last, the end into the directory.
func (f *freezing) carryOut() error {
	if err := f.locate(); err != nil {
		return err
	}
	f.keyFile = string(f.log.Directory) + ".pub.pem"
	if file, ok := strings.CutPrefix(string(f.log.Key), "file:"); ok {
		f.keyFile = strings.TrimSuffix(strings.TrimSuffix(file, ".pem"), ".key") + ".pub.pem"
	}
	changes := []config.Change{config.Remove(f.path), config.Append("ctlog.frozen", ctlog.FrozenConfig{
		URL: f.log.URL, KeyFile: below(setting.Path(f.keyFile), f.file), Directory: below(f.log.Directory, f.file),
		Operator: f.log.Operator, Start: f.log.Start, End: f.log.End,
	})}
	if err := config.TryEdit(f.file, changes...); err != nil {
		return err
	}
	if known, err := readPublicKey(f.keyFile); err != nil || !bytes.Equal(known, f.spki) {
		if err := writePublicKey(f.keyFile, f.spki); errors.Is(err, os.ErrExist) {
			return &failure{code: exitFailed, mend: "move that file away; nothing is overwritten", err: fmt.Errorf("%s is there already, and isn't the log's public key", f.keyFile)}
		} else if err != nil {
			return err
		}
	}
	if err := config.Edit(f.file, changes...); err != nil {
		return err
	}
	return maintain.Freeze(string(f.log.Directory), f.report, f.now)
}

// writePublicKey writes a log's key in PEM to a file that isn't there yet.
func writePublicKey(path string, spki []byte) error {
	return durable.WriteNew(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), 0o644)
}
