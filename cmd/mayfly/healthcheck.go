package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/internal/terminal"
)

const (
	healthTimeout = 3 * time.Second
	maxHealth     = 8 << 10 // bytes of the answer that are read
)

func newHealthcheckCommand(streams) *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a running mayfly whether it is ready",
		Long: `Asks a running mayfly whether it is ready and exits with 0 when it is, with 1
otherwise, naming the dependency that fails. It gives up after three seconds.
Meant for the health check of a container, which has neither shell nor curl.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return checkHealth(cmd.Context(), cmd.OutOrStdout(), url)
		},
	}
	cmd.Flags().StringVar(&url, "url", "http://127.0.0.1:5555/readyz", "what to ask")
	return cmd
}

// checkHealth is nil when the URL answers 200 in time.
func checkHealth(ctx context.Context, out io.Writer, url string) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return usage("give --url http://host:port/readyz", "the URL can't be used: %w", err)
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy: it is this container
	resp, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("not ready: no answer from %s in %s", url, healthTimeout)
	case err != nil:
		return fmt.Errorf("not ready: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHealth))
	if err != nil {
		return fmt.Errorf("not ready: reading the answer: %w", err)
	}
	text := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s answered %d\n%s", url, resp.StatusCode, text)
	}
	for line := range strings.Lines("ready\n" + text) {
		if line = strings.TrimSpace(line); line != "" {
			if _, err := fmt.Fprintln(out, terminal.Line(line)); err != nil {
				return err
			}
		}
	}
	return nil
}
