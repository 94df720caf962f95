package main

import "github.com/spf13/cobra"

func newHealthcheckCommand(streams) *cobra.Command {
	return &cobra.Command{Use: "healthcheck", Short: "Ask a running mayfly whether it is ready"}
}
