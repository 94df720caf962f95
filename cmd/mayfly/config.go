package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/ca/authority"
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
		Use: "import-fulcio FILE|-", Short: "Turn a Fulcio identity configuration into the issuers of a Mayfly one",
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
	cmd := &cobra.Command{
		Use: "export-states", Short: "Move the states of authorities and logs into state files",
		Long: `Makes the state files in which the commands authority and log keep what they decide,
of what the configuration says itself: the states of ca.authorities, and ctlog.shards,
ctlog.frozen and the first log's end. It prints which lines of the configuration to
put and which to delete, and writes nothing into it. The files are those that
ca.state_file and ctlog.state_file name, or else ` + authoritiesName + ` and ` + logsName + `
beside the configuration. A state file that is there already is never touched.
Restart the service once the lines are changed.`,
		Example: `  mayfly config export-states --config /etc/mayfly/mayfly.yaml`,
	}
	load := func(file string) (*config.Config, error) { return loadWith(config.LoadDefinitions, file) }
	return withConfig(cmd, load, func(_ *cobra.Command, file string, c *config.Config, _ []string) error {
		var all []exported
		if len(c.CA.Authorities) > 0 {
			if c.Lost() {
				return fail("restore the file from a copy, or write the state and its times beside each of ca.authorities first",
					"%s states no authority that ever signed, and this CA has issued: the states were kept in a file that is gone", file)
			}
			all = append(all, exported{"ca", c.CA.StateFile, authoritiesName, statesIn(c),
				func(path string) error { return authority.ExportStates(c.CA.Section, path) }})
		}
		if name, folder := c.LostLogs(); name != "" && !exists(string(c.CTLog.StateFile)) {
			return fail(config.RestoreLogs,
				"%s doesn't name the log %s, which is in %s: logs were rotated, and the file that kept it is gone", file, name, folder)
		}
		if c.CTLog.Mode == ctlog.ModeEmbedded {
			all = append(all, exported{"ctlog", c.CTLog.StateFile, logsName, logsIn(c.CTLog),
				func(path string) error { return rotation.Export(c.CTLog, path) }})
		}
		return writeExported(streams.Out, file, all)
	})
}

// exported is a state file to be made, and what it changes in the configuration.
type exported struct {
	section string
	named   setting.Path // what the section names already
	usual   string       // its name beside the configuration, where the section names none
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
	beside := func(e exported) string { return filepath.Join(filepath.Dir(file), e.usual) }
	for _, e := range all {
		if e.named == "" && exists(beside(e)) {
			return fail("move it away, or name another as ca.state_file or ctlog.state_file", "%s is there already", beside(e))
		}
	}
	var put, deletes []string
	made := 0
	for _, e := range all {
		path := cmp.Or(string(e.named), beside(e))
		if exists(path) {
			continue
		}
		if err := e.write(path); err != nil {
			return err
		}
		made++
		fmt.Fprintf(w, "made %s\n", terminal.Line(path))
		deletes = append(deletes, e.deletes...)
		if e.named == "" {
			put = append(put, fmt.Sprintf("%s:\n    state_file: %s", e.section, e.usual))
		}
	}
	if made == 0 {
		return fail("", "%s has no states to move: it names state files that are there, or one authority, which is always active, and no embedded log", file)
	}
	if len(put)+len(deletes) > 0 {
		fmt.Fprintf(w, "\nChange these lines of %s, run mayfly check, and restart the service.\n", terminal.Line(file))
	}
	if len(put) > 0 {
		fmt.Fprintf(w, "\nPut:\n  %s\n", strings.Join(put, "\n  "))
	}
	if len(deletes) > 0 {
		fmt.Fprintf(w, "\nDelete:\n  %s\n", strings.Join(deletes, "\n  "))
	}
	return nil
}
