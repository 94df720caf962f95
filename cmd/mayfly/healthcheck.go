package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/internal/terminal"
	"github.com/mayfly-ca/mayfly/server"
)

const (
	healthTimeout = 3 * time.Second
	maxHealth     = 8 << 10 // bytes of the answer that are read
)

func newHealthcheckCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "healthcheck", Short: "Ask a running mayfly whether it is ready",
		Long: `Asks a running mayfly whether it is ready and exits with 0 when it is, with 1
otherwise, naming the dependency that fails. A warning is printed, and fails nothing.
It gives up after three seconds.
With --config it asks where the configuration says that REST is served: address,
port, TLS, Unix socket. A server's certificate has to be the one that is configured.
Meant for the health check of a container, which has neither shell nor curl.`,
	}
	url := cmd.Flags().String("url", "http://127.0.0.1:5555/readyz", "what to ask")
	file := cmd.Flags().String("config", "", "the configuration of the mayfly to ask, in place of --url")
	asJSON := jsonFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("url", "config")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		transport := &http.Transport{DisableKeepAlives: true} // and no proxy: it is this container
		if *file != "" {
			c, err := loadConfig(*file)
			if err != nil {
				return err
			}
			if *url, err = healthURL(c.Server, transport); err != nil {
				return fail("run `mayfly check --config FILE`", "not ready: %w", err)
			}
		}
		lines, err := checkHealth(cmd.Context(), *url, transport)
		if err != nil {
			return err
		}
		return show(streams.Out, *asJSON, map[string]any{"ready": true, "url": *url, "lines": lines}, func(w io.Writer) {
			for _, line := range append([]string{"ready"}, lines...) {
				fmt.Fprintln(w, terminal.Line(line))
			}
		})
	}
	return cmd
}

// healthURL is where a server with the configuration c is asked, on this machine,
// and prepares the way there.
func healthURL(c server.Config, transport *http.Transport) (string, error) {
	host, scheme := c.HTTPAddress, "http"
	if path, ok := strings.CutPrefix(c.HTTPAddress, "unix:"); ok {
		host = "localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	} else if name, port, err := net.SplitHostPort(c.HTTPAddress); err != nil {
		return "", err
	} else if ip := net.ParseIP(name); name == "" || ip.IsUnspecified() { // all of this machine's addresses
		loopback := "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			loopback = "::1"
		}
		host = net.JoinHostPort(loopback, port)
	}
	if c.TLS.Enabled() {
		chain, err := readCertificates(nil, string(c.TLS.CertFile))
		if err != nil {
			return "", err
		}
		scheme, transport.TLSClientConfig = "https", pinned(chain[0])
	}
	return scheme + "://" + host + "/readyz", nil
}

// pinned wants a server to have exactly this certificate, whatever name it is for.
func pinned(want *x509.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // #nosec G402 -- VerifyConnection does more: it knows the certificate
		VerifyConnection: func(s tls.ConnectionState) error {
			switch now := time.Now(); {
			case !s.PeerCertificates[0].Equal(want):
				return errors.New("the server has another certificate than server.tls.cert_file: it didn't take the new one, or something else listens there")
			case now.After(want.NotAfter) || now.Before(want.NotBefore):
				return fmt.Errorf("the server's certificate is valid from %s to %s, which isn't now", want.NotBefore.Format(time.RFC3339), want.NotAfter.Format(time.RFC3339))
			}
			return nil
		},
	}
}

// checkHealth gives the lines of the answer when the URL answers 200 in time.
func checkHealth(ctx context.Context, url string, transport *http.Transport) (lines []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, usage("give --url http://host:port/readyz", "the URL can't be used: %w", err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("not ready: no answer from %s in %s", url, healthTimeout)
	case err != nil:
		return nil, fmt.Errorf("not ready: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHealth))
	if err != nil {
		return nil, fmt.Errorf("not ready: reading the answer: %w", err)
	}
	text := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("not ready: %s answered %d\n%s", url, resp.StatusCode, text)
	}
	return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), nil
}
