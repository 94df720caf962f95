package main

import "github.com/spf13/cobra"

func newVersionCommand(streams) *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version of this build and of what it is made of"}
}
