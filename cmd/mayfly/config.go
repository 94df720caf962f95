package main

import (
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
		Use:   "import-fulcio FILE|-",
		Short: "Turn a Fulcio identity configuration into the issuers of a Mayfly one",
		Long: `Reads a Fulcio identity configuration, in YAML or in its older JSON form, and
prints the section issuers of a Mayfly configuration that names the same
identities in the same way. What had to be decided is listed on standard error:
look at each line, and narrow every allow.`,
		Example: "  mayfly config import-fulcio fulcio-config.yaml > issuers.yaml",
		RunE: func(_ *cobra.Command, args []string) error {
			data, err := readInput(streams.In, args[0])
			if err != nil {
				return err
			}
			got, err := fulcio.Convert(data)
			if err != nil {
				return &failure{code: exitFailed, err: fmt.Errorf("%s: %w", inputName(args[0]), err)}
			}
			for _, d := range got.Decisions {
				fmt.Fprintf(streams.Err, "decided: %s\n", terminal.Line(d))
			}
			e := yaml.NewEncoder(streams.Out)
			e.SetIndent(2)
			if err := e.Encode(map[string][]identity.IssuerConfig{"issuers": got.Issuers}); err != nil {
				return err
			}
			if err := e.Close(); err != nil {
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
			all = append(all, exportAuthorities(c.CA.Section, authorities, file))
		}
		if name, folder := c.LostLogs(); name != "" && !exists(string(c.CTLog.StateFile)) {
			return fail(config.RestoreLogs,
				"%s doesn't name the log %s, which is in %s: logs were rotated, and the file that kept it is gone", file, name, folder)
		}
		if c.CTLog.Mode == ctlog.ModeEmbedded {
			all = append(all, exportLogs(c.CTLog, logs, file))
		}
		return writeExported(streams.Out, file, all)
	})
}

// exported is a state file to be made, and what it changes in the configuration.
type exported struct {
	path    string
	put     string // the section that names it; empty where it does already
	deletes []string
	write   func(path string) error
}

func newExported(flag string, named setting.Path, name, file, section string) exported {
	e := exported{path: flag, put: section}
	switch {
	case named != "":
		e.path, e.put = string(named), ""
	case flag == "":
		e.path = filepath.Join(filepath.Dir(file), name)
	}
	return e
}

func exportAuthorities(c authority.Section, flag, file string) exported {
	e := newExported(flag, c.StateFile, authoritiesName, file, "ca")
	e.write = func(path string) error { return authority.ExportStates(c, path) }
	for i, a := range c.Authorities {
		for name, field := range strict.Fields(reflect.ValueOf(a.Record)) {
			if !field.IsZero() {
				e.deletes = append(e.deletes, fmt.Sprintf("%s.%s (of %s)", setting.Index("ca.authorities", i), name, a.Name))
			}
		}
	}
	return e
}

func exportLogs(c ctlog.Config, flag, file string) exported {
	e := newExported(flag, c.StateFile, logsName, file, "ctlog")
	e.write = func(path string) error { return rotation.Export(c, path) }
	for _, s := range []struct {
		path  string
		there bool
	}{
		{"ctlog.embedded.end", !c.Embedded.End.IsZero()}, {"ctlog.shards", len(c.Shards) > 0}, {"ctlog.frozen", len(c.Frozen) > 0},
	} {
		if s.there {
			e.deletes = append(e.deletes, s.path)
		}
	}
	return e
}

// writeExported makes the state files that aren't there, and says what to change.
func writeExported(w io.Writer, file string, all []exported) error {
	for _, e := range all {
		if e.put != "" && exists(e.path) {
			return fail("move it away, or name another with --authorities or --logs", "%s is there already", e.path)
		}
	}
	var put, deletes []string
	made := 0
	for _, e := range all {
		if exists(e.path) {
			continue
		}
		if err := e.write(e.path); err != nil {
			return err
		}
		made++
		fmt.Fprintf(w, "made %s\n", terminal.Line(e.path))
		deletes = append(deletes, e.deletes...)
		if e.put == "" {
			continue
		}
		path, err := filepath.Abs(e.path)
		if filepath.Dir(e.path) == filepath.Dir(file) {
			path = filepath.Base(e.path)
		} else if err != nil {
			return err
		}
		put = append(put, fmt.Sprintf("%s:\n    state_file: %s", e.put, terminal.Line(path)))
	}
	if made == 0 {
		return &failure{code: exitFailed, err: fmt.Errorf("%s has no states to move: it names state files that are there, or one authority, which is always active, and no embedded log", file)}
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
