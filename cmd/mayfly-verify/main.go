// Command mayfly-verify verifies what was signed with Sigstore certificates, and
// refuses what was signed with one that was revoked. It is a program of its own because
// the libraries that it verifies with weigh more than the server should carry.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/revocation"
	"github.com/mayfly-ca/mayfly/internal/oneline"
)

// version is set by the build.
var version = "devel"

func main() {
	err := newCommand().Execute()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mayfly-verify:", oneline.Clean(err.Error(), 2000))
	}
	os.Exit(exitCode(err))
}

// exitCode is how a program hears what came out, as `mayfly help exit-codes` has it.
func exitCode(err error) int {
	refusal := (*revocation.Refusal)(nil)
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &refusal):
		return 1
	case refusal.Kind == revocation.Revoked:
		return 3
	default:
		return 4
	}
}

func newCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "mayfly-verify {--bundle BUNDLE FILE | IMAGE}",
		Short:   "Verify a signature, and that its certificate isn't revoked",
		Version: version,
		Long: `Verifies the signature of a file, or of a container image in its registry: chain, SCT,
timestamp, identity, and that the certificate isn't revoked. One that is revoked counts for
nothing, whenever it signed. What is trusted comes from a file or, signed, by TUF.

Exit codes: 0 good; 1 not good, or it couldn't be verified; 3 revoked; 4 good but for the list
of what is revoked, which is stale, or can't be had or used.`,
		Example: `  mayfly-verify --bundle app.json --tuf-url https://ca.example.com/tuf --tuf-root 1.root.json \
    --certificate-identity ci@example.com --certificate-oidc-issuer https://idp.example.com app.tar`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ExactArgs(1),
		RunE:          func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.bundle, "bundle", "", "file with the Sigstore bundle of a file; without it an image is verified")
	f.StringVar(&o.identity, "certificate-identity", "", "who signed: the certificate's SAN")
	f.StringVar(&o.identityRegexp, "certificate-identity-regexp", "", "the same as a regular expression, anchored with ^ and $")
	f.StringVar(&o.issuer, "certificate-oidc-issuer", "", "who vouched for that identity: the URL")
	f.StringVar(&o.issuerRegexp, "certificate-oidc-issuer-regexp", "", "the same as a regular expression")
	f.StringVar(&o.trustedRoot, "trusted-root", "", "file of the trusted root")
	f.StringVar(&o.tufURL, "tuf-url", "", "URL of the TUF repository with the trusted root, in place of a file")
	f.StringVar(&o.tufRoot, "tuf-root", "", "file of the root that TUF begins with, 1.root.json")
	f.StringVar(&o.crl, "crl", "", "list of what is revoked: a file, a URL (with a / at the end: of the folder), tuf, or none; tuf where TUF is used")
	f.BoolVar(&o.allowStale, "allow-stale-crl", false, "warn of a list that is stale, and go by it")
	f.BoolVar(&o.offline, "offline", false, "go by files, and by what TUF has had; only an image's registry is asked")
	f.BoolVar(&o.json, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("trusted-root", "tuf-url")
	cmd.MarkFlagsOneRequired("trusted-root", "tuf-url")
	cmd.MarkFlagsRequiredTogether("tuf-url", "tuf-root")
	return cmd
}
