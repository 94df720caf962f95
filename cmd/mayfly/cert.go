package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
)

func newCertShowCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show FILE|-", Short: "Put a certificate into words: identity, issuer, extensions, validity, SCTs",
		Long: `Puts the first certificate of a PEM or DER file (or of standard input, with -)
into words: identity, who vouched for it, every identity extension by name,
validity, key, and its signed certificate timestamps. With --trusted-root the
chain and each SCT are verified, at the time at which the certificate was made;
without it nothing is. Exit code 5 says that verification was asked for and failed.`,
		Example: `  mayfly cert show mayfly.crt.pem --trusted-root trusted_root.json
  curl -fsS http://127.0.0.1:5555/api/v1/rootCert | mayfly cert show -`,
	}
	trustedRoot := cmd.Flags().String("trusted-root", "", "verify against this trusted_root.json")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		certs, err := readCertificates(streams.In, args[0])
		if err != nil {
			return err
		}
		var trust *client.Trust
		if *trustedRoot != "" {
			if trust, err = readTrust(*trustedRoot); err != nil {
				return err
			}
		}
		d := inspect.Describe(certs, trust)
		err = show(streams.Out, *asJSON, d, func(w io.Writer) { d.Print(w, time.Now()) })
		if err != nil || trust == nil {
			return err
		}
		return unverified(d)
	}
	return cmd
}

// readCertificates reads a file, or standard input for "-".
func readCertificates(in io.Reader, path string) ([]*x509.Certificate, error) {
	return readAs(in, path, "give a file with an X.509 certificate, in PEM or DER", inspect.Parse)
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
	document, err := readInput(nil, path)
	if err != nil {
		return nil, err
	}
	trust, err := client.ParseTrust(document)
	return trust, classify(err)
}
