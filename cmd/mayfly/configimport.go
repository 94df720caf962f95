package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/mayfly-ca/mayfly/config/fulcio"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newConfigCommand(io streams) *cobra.Command {
	return group("config", "Work on configuration files", "", newImportFulcioCommand(io), newExportStatesCommand(io))
}

func newImportFulcioCommand(streams streams) *cobra.Command {
	return &cobra.Command{
		Use:   "import-fulcio FILE|-",
		Short: "Turn a Fulcio identity configuration into the issuers of a Mayfly one",
		Long: `Reads a Fulcio identity configuration, in YAML or in its older JSON form, and
prints the section issuers of a Mayfly configuration that names the same
identities in the same way. What had to be decided is listed on standard error:
look at each line, and narrow every allow.`,
		Example: "  mayfly config import-fulcio fulcio-config.yaml > issuers.yaml",
		Args:    cobra.ExactArgs(1),
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
