package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
)

func newCertCommand(io streams) *cobra.Command {
	return group("cert", "Look at certificates", "", newCertShowCommand(io))
}

// certShow is the command line of `mayfly cert show`.
type certShow struct {
	trustedRoot string
	json        bool
}

func newCertShowCommand(streams streams) *cobra.Command {
	var c certShow
	cmd := &cobra.Command{
		Use:   "show FILE|-",
		Short: "Put a certificate into words: identity, issuer, extensions, validity, SCTs",
		Long: `Puts the first certificate of a PEM or DER file (or of standard input, with -)
into words: identity, who vouched for it, every identity extension by name,
validity, key, and its signed certificate timestamps. With --trusted-root the
chain and each SCT are verified, at the time at which the certificate was made;
without it nothing is. Exit code 5 says that verification was asked for and failed.`,
		Example: `  mayfly cert show mayfly.crt.pem --trusted-root trusted_root.json
  curl -fsS http://127.0.0.1:5555/api/v1/rootCert | mayfly cert show -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(streams, args[0]) },
	}
	cmd.Flags().StringVar(&c.trustedRoot, "trusted-root", "", "verify against this trusted_root.json")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	return cmd
}

func (c certShow) run(io streams, path string) error {
	data, err := readInput(io.In, path)
	if err != nil {
		return err
	}
	certs, err := inspect.Parse(data)
	if err != nil {
		return fail("give a file with an X.509 certificate, in PEM or DER", "reading %s: %w", inputName(path), err)
	}
	var trust *client.Trust
	if c.trustedRoot != "" {
		if trust, err = readTrust(c.trustedRoot); err != nil {
			return err
		}
	}
	d := inspect.Describe(certs, trust)
	if c.json {
		err = writeJSON(io.Out, d)
	} else {
		err = d.Print(io.Out, time.Now())
	}
	if err != nil || trust == nil {
		return err
	}
	return unverified(d)
}

// unverified is the error for a certificate whose verification was asked for.
func unverified(d inspect.Description) error {
	if !d.Verified {
		return &failure{code: exitUnverified, err: fmt.Errorf("not verified: %s", d.Why)}
	}
	if d.CA || slices.ContainsFunc(d.SCTs, func(s inspect.SCT) bool { return s.Verified }) {
		return nil // a CA's own certificate is in no log
	}
	return &failure{code: exitUnverified, err: fmt.Errorf("not verified: the certificate has no SCT that verifies")}
}

// readTrust reads a trusted_root.json.
func readTrust(path string) (*client.Trust, error) {
	document, err := readLimited(path)
	if err != nil {
		return nil, err
	}
	trust, err := client.ParseTrust(document)
	return trust, classify(err)
}

// readInput reads a file, or standard input for "-".
func readInput(in io.Reader, path string) ([]byte, error) {
	if path == "-" {
		return readAll(in, inputName(path))
	}
	return readLimited(path)
}

func inputName(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- the user names the file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path)
}

func readAll(r io.Reader, name string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, inspect.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if len(data) > inspect.MaxBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, inspect.MaxBytes)
	}
	return data, nil
}
