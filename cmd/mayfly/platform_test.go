package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestWhatRunsOnWindows: every command that isn't known to work there is refused, and none elsewhere.
func TestWhatRunsOnWindows(t *testing.T) {
	t.Parallel()
	root, _ := newRootCommand(streams{})
	for _, name := range onWindows {
		if cmd, rest, err := root.Find(strings.Fields(name)); err != nil || len(rest) > 0 || runsOn("windows", cmd) != nil {
			t.Errorf("mayfly %s: %v", name, err)
		}
	}
	var refused []string
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, system := range []string{"linux", "darwin"} {
			if err := runsOn(system, cmd); err != nil {
				t.Errorf("%s: %v", system, err)
			}
		}
		if err := runsOn("windows", cmd); err != nil {
			refused = append(refused, cmd.CommandPath())
			if report(new(strings.Builder), err, false) != exitFailed || !strings.HasPrefix(err.Error(), cmd.CommandPath()+" doesn't run on Windows: ") {
				t.Error(err)
			}
		}
		for _, below := range cmd.Commands() {
			visit(below)
		}
	}
	visit(root)
	for _, name := range []string{"dev", "serve", "init", "monitor", "backup", "restore", "authority activate", "log create", "kms keygen", "ca init", "tuf sign", "tuf status"} {
		if !slices.Contains(refused, "mayfly "+name) {
			t.Errorf("mayfly %s isn't refused", name)
		}
	}
	// There mayfly-verify is a child, which has said what is wrong.
	if said := new(strings.Builder); report(said, &failure{code: 3}, true) != 3 || said.Len() > 0 {
		t.Errorf("beside the verifier's own words it says %q", said)
	}
}
