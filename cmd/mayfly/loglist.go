package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

const logListLong = `Prints every log of a configuration in the order in which they follow each other:
frozen ones, those of this CA, and those of others. A log is next before its
start, active until its end, then ended, and frozen once mayfly log freeze has
moved it. Of logs in a directory it prints how many entries the published
checkpoint covers, and how old that is. It only reads, so a service may run.`

func newLogListCommand(streams streams) *cobra.Command {
	return withConfig(&cobra.Command{
		Use:     "list",
		Short:   "Print the logs of a configuration and how they stand",
		Long:    logListLong,
		Example: "  mayfly log list --config /etc/mayfly/mayfly.yaml",
		Args:    cobra.NoArgs,
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
