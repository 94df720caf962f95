package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
)

// verifier is the program that verifies: with its libraries it weighs 20 MB, which the
// server needn't carry (docs/decisions/2026-11-29-verifier.md).
const verifier = "mayfly-verify"

func newVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify [ARGUMENT...]", Short: "Verify a signature, and that its certificate isn't revoked",
		Long: `Runs mayfly-verify, a program of its own, which stands beside this one or in the PATH:
mayfly-verify --help says all about it.`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			args = append([]string{verifier}, args...)
			self, err := os.Executable()
			if err == nil {
				err = syscall.Exec(filepath.Join(filepath.Dir(self), verifier), args, os.Environ()) // #nosec G204 -- it comes back only where that isn't there
			}
			if path, failed := exec.LookPath(verifier); failed == nil {
				err = syscall.Exec(path, args, os.Environ()) // #nosec G204 -- as the caller's PATH has it
			}
			return fail("install it: make build makes it beside mayfly, or go install github.com/mayfly-ca/mayfly/cmd/mayfly-verify", "verifying takes the program %s: %w", verifier, err)
		},
	}
}

func newCertShowCommand(streams streams) *cobra.Command {
	var trustedRoot string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show FILE|-", Short: "Put a certificate into words: identity, issuer, extensions, validity, SCTs",
		Long: `Puts the first certificate of a PEM or DER file (or of standard input, with -)
into words: identity, who vouched for it, every identity extension by name,
validity, key, and its signed certificate timestamps. With --trusted-root the
chain and each SCT are verified, at the time at which the certificate was made;
without it nothing is. Exit code 5 says that verification was asked for and failed.`,
		Example: `  mayfly cert show mayfly.crt.pem --trusted-root trusted_root.json
  curl -fsS http://127.0.0.1:5555/api/v1/rootCert | mayfly cert show -`,
		RunE: func(_ *cobra.Command, args []string) error {
			certs, err := readCertificates(streams.In, args[0])
			if err != nil {
				return err
			}
			var trust *client.Trust
			if trustedRoot != "" {
				if trust, err = readTrust(trustedRoot); err != nil {
					return err
				}
			}
			d := inspect.Describe(certs, trust)
			if asJSON {
				err = writeJSON(streams.Out, d)
			} else {
				err = d.Print(streams.Out, time.Now())
			}
			if err != nil || trust == nil {
				return err
			}
			return unverified(d)
		},
	}
	cmd.Flags().StringVar(&trustedRoot, "trusted-root", "", "verify against this trusted_root.json")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
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
