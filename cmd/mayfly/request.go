package main

import "github.com/spf13/cobra"

func newRequestCommand(streams) *cobra.Command {
	return &cobra.Command{Use: "request", Short: "Obtain a certificate for a fresh key and verify it"}
}
