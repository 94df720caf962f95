package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/config/fulcio"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/rotation"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/strict"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newImportFulcioCommand(streams streams) *cobra.Command {
	return &cobra.Command{
		Use:   "import-fulcio FILE|-",
		Short: "Turn a Fulcio identity configuration into the issuers of a Mayfly one",
		Long: `Reads a Fulcio identity configuration, in YAML or in its older JSON form, and
prints the section issuers of a Mayfly configuration that names the same
identities in the same way. What had to be decided is listed on standard error:
look at each line, and narrow every allow.`,
		Example: "  mayfly config import-fulcio fulcio-config.yaml > issuers.yaml",
		RunE: func(_ *cobra.Command, args []string) error {
			got, err := readAs(streams.In, args[0], "", fulcio.Convert)
			if err != nil {
				return err
			}
			for _, d := range got.Decisions {
				fmt.Fprintf(streams.Err, "decided: %s\n", terminal.Line(d))
			}
			e := yaml.NewEncoder(streams.Out)
			e.SetIndent(2)
			if err := errors.Join(e.Encode(map[string][]identity.IssuerConfig{"issuers": got.Issuers}), e.Close()); err != nil {
				return err
			}
			var f setting.Faults
			if identity.CheckIssuers("issuers", got.Issuers, &f); f.Len() > 0 {
				return &failure{code: exitFailed, fix: "fix these lines in the result", err: f.Err()}
			}
			return nil
		},
	}
}

// inlineStates remarks on what a configuration says itself that commands could keep.
func inlineStates(file string, c *config.Config) []string {
	var all []string
	if len(c.CA.Authorities) > 0 && c.CA.StateFile == "" {
		all = append(all, "ca.authorities has its states itself, which no command changes there; to move them, "+exportStates(file))
	}
	if logs := c.CTLog; logs.StateFile == "" && (len(logs.Shards)+len(logs.Frozen) > 0 && logs.Mode == ctlog.ModeEmbedded || !logs.Embedded.End.IsZero()) {
		all = append(all, "ctlog has shards, ends or frozen logs itself, which no command changes there; to move them, "+exportStates(file))
	}
	return all
}

func newExportStatesCommand(streams streams) *cobra.Command {
	var authorities, logs string
	cmd := &cobra.Command{
		Use:   "export-states",
		Short: "Move the states of authorities and logs into state files",
		Long: `Makes the state files in which the commands authority and log keep what they decide,
of what the configuration says itself: the states of ca.authorities, and ctlog.shards,
ctlog.frozen and the first log's end. It prints which lines of the configuration to
put and which to delete, and writes nothing into it. A state file that is there
already is never touched. Restart the service once the lines are changed.`,
		Example: `  mayfly config export-states --config /etc/mayfly/mayfly.yaml
  mayfly config export-states --config /etc/mayfly/mayfly.yaml --authorities /var/lib/mayfly/authorities.json --logs /var/lib/mayfly/logs.json`,
	}
	cmd.Flags().StringVar(&authorities, "authorities", "", "the new state file of authorities; else "+authoritiesName+" beside the configuration")
	cmd.Flags().StringVar(&logs, "logs", "", "the new state file of logs; else "+logsName+" beside the configuration")
	load := func(file string) (*config.Config, error) { return loadWith(config.LoadDefinitions, file) }
	return withConfig(cmd, load, func(_ *cobra.Command, file string, c *config.Config, _ []string) error {
		var all []exported
		if len(c.CA.Authorities) > 0 {
			if c.Lost() {
				return fail("restore the file from a copy, or write the state and its times beside each of ca.authorities first",
					"%s states no authority that ever signed, and this CA has issued: the states were kept in a file that is gone", file)
			}
			all = append(all, exported{"ca", c.CA.StateFile, cmp.Or(authorities, filepath.Join(filepath.Dir(file), authoritiesName)), statesIn(c),
				func(path string) error { return authority.ExportStates(c.CA.Section, path) }})
		}
		if name, folder := c.LostLogs(); name != "" && !exists(string(c.CTLog.StateFile)) {
			return fail(config.RestoreLogs,
				"%s doesn't name the log %s, which is in %s: logs were rotated, and the file that kept it is gone", file, name, folder)
		}
		if c.CTLog.Mode == ctlog.ModeEmbedded {
			all = append(all, exported{"ctlog", c.CTLog.StateFile, cmp.Or(logs, filepath.Join(filepath.Dir(file), logsName)), logsIn(c.CTLog),
				func(path string) error { return rotation.Export(c.CTLog, path) }})
		}
		return writeExported(streams.Out, file, all)
	})
}

// exported is a state file to be made, and what it changes in the configuration.
type exported struct {
	section string
	named   setting.Path // what the section names already
	made    string       // where it is made if it names none
	deletes []string
	write   func(path string) error
}

// statesIn are what c says itself of the states of authorities.
func statesIn(c *config.Config) (all []string) {
	for i, a := range c.CA.Authorities {
		for name, field := range strict.Fields(reflect.ValueOf(a.Record)) {
			if !field.IsZero() {
				all = append(all, fmt.Sprintf("%s.%s (of %s)", setting.Index("ca.authorities", i), name, a.Name))
			}
		}
	}
	return all
}

// logsIn are what c says itself of logs that follow each other.
func logsIn(c ctlog.Config) (all []string) {
	if !c.Embedded.End.IsZero() {
		all = append(all, "ctlog.embedded.end")
	}
	if len(c.Shards) > 0 {
		all = append(all, "ctlog.shards")
	}
	if len(c.Frozen) > 0 {
		all = append(all, "ctlog.frozen")
	}
	return all
}

// writeExported makes the state files that aren't there, and says what to change.
func writeExported(w io.Writer, file string, all []exported) error {
	for _, e := range all {
		if e.named == "" && exists(e.made) {
			return fail("move it away, or name another with --authorities or --logs", "%s is there already", e.made)
		}
	}
	var put, deletes []string
	made := 0
	for _, e := range all {
		path := cmp.Or(string(e.named), e.made)
		if exists(path) {
			continue
		}
		if err := e.write(path); err != nil {
			return err
		}
		made++
		fmt.Fprintf(w, "made %s\n", terminal.Line(path))
		deletes = append(deletes, e.deletes...)
		if e.named != "" {
			continue
		}
		if filepath.Dir(path) == filepath.Dir(file) {
			path = filepath.Base(path)
		} else if err := absolute(&path); err != nil {
			return err
		}
		put = append(put, fmt.Sprintf("%s:\n    state_file: %s", e.section, terminal.Line(path)))
	}
	if made == 0 {
		return fail("", "%s has no states to move: it names state files that are there, or one authority, which is always active, and no embedded log", file)
	}
	if len(put)+len(deletes) > 0 {
		fmt.Fprintf(w, "\nChange these lines of %s, run mayfly check, and restart the service.\n", terminal.Line(file))
	}
	for _, part := range []struct {
		verb  string
		lines []string
	}{{"Put", put}, {"Delete", deletes}} {
		if len(part.lines) > 0 {
			fmt.Fprintf(w, "\n%s:\n  %s\n", part.verb, strings.Join(part.lines, "\n  "))
		}
	}
	return nil
}

func newCheckCommand(streams streams) *cobra.Command {
	var online bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Report every fault of a configuration",
		Long: `Reads a configuration and all that it names, as serve would: keys, certificates,
issuers, presets, TLS, and what a start would lock and write: the logs with their
keys, names and marks, frozen logs, the audit trail, and who may write them. A sample
certificate is verified through each chain, as a client would. It changes nothing and
sends nothing, so it may run beside a service. The exit status is 1 when there is any
fault. A remark is no fault: somebody holds a log or the trail, clients put up with a
chain, plain text goes beyond loopback, a condition reads a claim that the issuer isn't
known to send, or a Rekor is listed that clients can't use well.

--online also asks the others: each issuer that has a URL for its discovery
document and its keys, the store of used tokens for a write, and each external
log for the roots that it accepts and a tree head under the configured key. Nothing
is submitted. The embedded log's checkpoint is verified in its directory. What is in
force at server.public_url is compared: whatever clients are told to trust there
has to be in the configuration still, or what was signed can't be verified any more.`,
		Example: "  mayfly check --config /etc/mayfly/mayfly.yaml",
	}
	cmd.Flags().BoolVar(&online, "online", false, "also try to reach the issuers, the store of used tokens, the logs and what clients are told")
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, file string, c *config.Config, _ []string) error {
		loaded, err := service.Check(cmd.Context(), c, quiet())
		if err != nil {
			return startFailure(err, "")
		}
		_, end := loaded.Authorities.Active.Validity()
		fmt.Fprintf(streams.Out, "%s: no faults\n  authority  %s, until %s\n  issuers    %d\n  log        %s\n",
			file, loaded.Authorities.Active.Subject, end.Format(time.DateOnly), len(c.Issuers), c.CTLog.Mode)
		for _, remark := range slices.Concat(inlineStates(file, c), loaded.Remarks, identity.Remarks("issuers", c.Issuers),
			identity.ConditionRemarks("issuers", c.Issuers, "deny", c.Deny)) {
			fmt.Fprintf(streams.Out, "  remark     %s\n", terminal.Line(remark))
		}
		if err := asOwner(c, os.Geteuid()); err != nil {
			fmt.Fprintf(streams.Out, "  remark     serve would be refused: %s; and root may read more than that user, so run check as that user too\n", terminal.Line(err.Error()))
		}
		if online {
			return checkOnline(cmd.Context(), c, loaded, streams.Out)
		}
		return nil
	})
}

// checkOnline prints what a service would be told by others, step by step; the
// error says how many steps failed.
func checkOnline(ctx context.Context, c *config.Config, loaded *service.Components, w io.Writer) error {
	all, failed, whose := 0, 0, ""
	tell := func(p service.Probed) {
		if p.Whose != whose {
			fmt.Fprintf(w, "  %s\n", terminal.Escape(p.Whose))
			whose = p.Whose
		}
		all++
		result := strings.TrimSuffix("ok, "+p.Detail, ", ")
		if p.Err != nil {
			failed++
			result = "failed: " + p.Err.Error()
		}
		fmt.Fprintf(w, "    %-10s %s\n", p.Name, terminal.Line(result))
	}
	loaded.Probe(ctx, c, tell)
	if c.Server.PublicURL != "" {
		tell(probePublished(ctx, c.Server.PublicURL, loaded.History))
	}
	if failed == 0 {
		return nil
	}
	return fail("each step above says what failed; the service starts without an issuer that is down or the store of used tokens, but not without its logs",
		"%d of %d steps failed", failed, all)
}

// probePublished compares what clients would be told with what they are told now.
// Where they aren't told anything yet, nothing is lost.
func probePublished(ctx context.Context, url string, next trustroot.History) service.Probed {
	p := service.Probed{Whose: url, Name: "trust"}
	published, err := fetchTrustedRoot(ctx, url)
	if err != nil {
		p.Detail = "not compared: " + err.Error()
		return p
	}
	if lost := published.Lost(next, time.Now()); len(lost) > 0 {
		p.Err = errors.New(strings.Join(lost, "; "))
	}
	return p
}
