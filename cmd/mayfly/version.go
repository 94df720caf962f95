package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// Set by the Makefile with -ldflags "-X main.version=… -X main.commit=… -X
// main.date=…"; otherwise what the Go tool recorded is used. commit ends in
// "-dirty" when it was built from a changed tree.
var version, commit, date string

// buildInfo is the answer of `mayfly version --json`.
type buildInfo struct {
	Version      string       `json:"version"`
	Commit       string       `json:"commit,omitempty"`
	Date         string       `json:"date,omitempty"` // of the commit, RFC 3339
	Dirty        bool         `json:"dirty"`          // built from a tree with uncommitted changes
	Go           string       `json:"go"`
	Platform     string       `json:"platform"`
	Dependencies []dependency `json:"dependencies"`
}

// dependency is one module that is linked in.
type dependency struct {
	Path    string `json:"path"`
	Version string `json:"version"`
}

func newVersionCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version of this build and of what it is made of",
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		b := thisBuild()
		return show(streams.Out, *asJSON, b, b.print)
	}
	return cmd
}

// thisBuild describes the running binary.
func thisBuild() buildInfo {
	info, _ := debug.ReadBuildInfo()
	return describeBuild(info, version, commit, date)
}

// labels are those of the metric mayfly_build_info.
func (b buildInfo) labels() map[string]string {
	return map[string]string{"version": b.Version, "commit": b.Commit, "dirty": strconv.FormatBool(b.Dirty), "go": b.Go}
}

// describeBuild joins what the linker was told with what the Go tool recorded;
// the former wins. info may be nil.
func describeBuild(info *debug.BuildInfo, version, commit, date string) buildInfo {
	b := buildInfo{
		Version: version, Commit: commit, Date: date,
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Dependencies: []dependency{},
	}
	if clean, found := strings.CutSuffix(b.Commit, "-dirty"); found {
		b.Commit, b.Dirty = clean, true
	}
	if info != nil {
		if b.Version == "" && info.Main.Version != "(devel)" {
			b.Version = info.Main.Version
		}
		recorded := make(map[string]string)
		for _, s := range info.Settings {
			recorded[s.Key] = s.Value
		}
		b.Commit, b.Date = cmp.Or(b.Commit, recorded["vcs.revision"]), cmp.Or(b.Date, recorded["vcs.time"])
		b.Dirty = b.Dirty || recorded["vcs.modified"] == "true"
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			b.Dependencies = append(b.Dependencies, dependency{m.Path, m.Version})
		}
	}
	b.Version = cmp.Or(b.Version, "devel")
	return b
}

func (b buildInfo) print(w io.Writer) {
	fmt.Fprintf(w, "mayfly %s\n", b.Version)
	if b.Commit != "" {
		dirty := ""
		if b.Dirty {
			dirty = " with uncommitted changes"
		}
		fmt.Fprintf(w, "commit   %s%s\n", b.Commit, dirty)
	}
	if b.Date != "" {
		fmt.Fprintf(w, "date     %s\n", b.Date)
	}
	fmt.Fprintf(w, "go       %s\nplatform %s\n", b.Go, b.Platform)
	if len(b.Dependencies) > 0 {
		fmt.Fprintln(w, "\ndependencies:")
	}
	for _, d := range b.Dependencies {
		fmt.Fprintf(w, "  %s %s\n", d.Path, d.Version)
	}
}
