package commandline_test

import (
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/internal/commandline"
)

// TestExplain has cobra itself find the mistakes: its texts may change with its version.
func TestExplain(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]struct{ said, fix string }{
		"":                              {"try needs --dir and --out", "add --dir (the folder) and --out (file to write); `try --help` has the flags"},
		"--dir d":                       {"try needs --out", "add --out (file to write); `try --help` has the flags"},
		"--dir d --out":                 {"try needs a value for --out", "give --out (file to write); `try --help` has the flags"},
		"--dir d --out o":               {"try needs --a, --b or --c", "add --a (letter a), --b (letter b) or --c (letter c); `try --help` has the flags"},
		"--dir d --out o --a x --c x":   {"try takes --a or --c, and only one of them", "keep --a (letter a) or --c (letter c); `try --help` has the flags"},
		"--dir d --out o --a x --key k": {"try needs --cert as well", "add --cert (its certificate); `try --help` has the flags"},
		"--dir d --out o --a x one two": {"try takes 1 argument, and 2 are given", "write `try FILE [flags]`"},
		"--dri d":                       {"unknown flag: --dri", ""},
	} {
		cmd := &cobra.Command{Use: "try FILE", Args: cobra.MaximumNArgs(1), RunE: func(*cobra.Command, []string) error { return nil }, SilenceErrors: true, SilenceUsage: true}
		if strings.HasSuffix(line, "two") {
			cmd.Args = cobra.ExactArgs(1)
		}
		for name, usage := range map[string]string{"dir": "the folder (required)", "out": "`file` to write (required)", "a": "letter a", "b": "letter b", "c": "letter c", "key": "a key", "cert": "its certificate"} {
			cmd.Flags().String(name, "", usage)
			if strings.HasSuffix(usage, "(required)") {
				cobra.CheckErr(cmd.MarkFlagRequired(name))
			}
		}
		cmd.MarkFlagsMutuallyExclusive("a", "b", "c")
		cmd.MarkFlagsOneRequired("a", "b", "c")
		cmd.MarkFlagsRequiredTogether("key", "cert")
		cmd.SetArgs(strings.Fields(line))
		cmd.SetOut(io.Discard)
		err := cmd.Execute()
		if err == nil {
			t.Errorf("%q: no error", line)
			continue
		}
		if fix, said := commandline.Explain(cmd, err); said.Error() != want.said || fix != want.fix {
			t.Errorf("%q: %q, fix %q; want %q, %q", line, said, fix, want.said, want.fix)
		}
	}
}
