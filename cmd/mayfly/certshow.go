package main

import "github.com/spf13/cobra"

func newCertCommand(streams) *cobra.Command {
	return &cobra.Command{Use: "cert", Short: "Look at certificates"}
}
