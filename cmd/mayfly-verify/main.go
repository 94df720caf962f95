// Command mayfly-verify verifies what was signed with Sigstore certificates, and
// refuses what was signed with one that was revoked. It is a program of its own because
// the libraries that it verifies with weigh more than the server should carry.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/revocation"
	"github.com/mayfly-ca/mayfly/internal/oneline"
)

// version is set by the build.
var version = "devel"

// The exit codes, as `mayfly help exit-codes` has them.
const (
	exitGood    = 0
	exitNotGood = 1
	exitUsage   = 2
	exitRevoked = 3
	exitNoList  = 4
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd, began := newCommand()
	err := cmd.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mayfly-verify:", oneline.Clean(err.Error(), 2000))
	}
	code := exitCode(err)
	if err != nil && !*began {
		code = exitUsage
	}
	os.Exit(code) //nolint:gocritic // nothing is left to be undone
}

// exitCode is how a program hears what came out.
func exitCode(err error) int {
	refusal := (*revocation.Refusal)(nil)
	switch {
	case err == nil:
		return exitGood
	case errors.Is(err, errUsage):
		return exitUsage
	case !errors.As(err, &refusal):
		return exitNotGood
	case refusal.Kind == revocation.Revoked:
		return exitRevoked
	default:
		return exitNoList
	}
}

var errUsage = errors.New("the command line is wrong")

// newCommand is the command line. The second result becomes true when it was understood.
func newCommand() (*cobra.Command, *bool) {
	var o options
	began := new(bool)
	cmd := &cobra.Command{
		Use:     "mayfly-verify {--bundle BUNDLE {FILE | --digest DIGEST} | IMAGE}",
		Short:   "Verify a signature, and that its certificate isn't revoked",
		Version: version,
		Long: `Verifies the signature of a file, or of a container image in its registry: chain, SCT,
timestamp, identity, and that the certificate isn't revoked. One that is revoked counts for
nothing, whenever it signed. What is trusted comes from a file or, signed, by TUF.

Exit codes: 0 good; 1 not good; 2 the command line is wrong; 3 revoked; 4 good but for the
list of what is revoked, which is stale, or can't be had or used.`,
		Example: `  mayfly-verify --bundle app.json --tuf-url https://ca.example.com/tuf --tuf-root 1.root.json \
    --certificate-identity ci@example.com --certificate-oidc-issuer https://idp.example.com app.tar
  mayfly-verify --trusted-root trusted_root.json --crl https://ca.example.com/crl/ \
    --certificate-identity-regexp '^https://github.com/acme/' --certificate-oidc-issuer https://token.actions.githubusercontent.com \
    registry.example.com/app:v2`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			*began = true
			o.out, o.warn = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return o.run(cmd.Context(), args)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.bundle, "bundle", "", "file with the Sigstore bundle of a file; without it an image is verified")
	f.StringVar(&o.digest, "digest", "", "sha256:HEX of the file, where that isn't at hand")
	f.StringVar(&o.identity, "certificate-identity", "", "who signed: the certificate's SAN")
	f.StringVar(&o.identityRegexp, "certificate-identity-regexp", "", "the same as a regular expression, anchored with ^ and $")
	f.StringVar(&o.issuer, "certificate-oidc-issuer", "", "who vouched for that identity: the URL")
	f.StringVar(&o.issuerRegexp, "certificate-oidc-issuer-regexp", "", "the same as a regular expression")
	f.StringVar(&o.predicate, "type", signPredicate, "predicate type of an image's statements that count as its signature")
	f.StringVar(&o.trustedRoot, "trusted-root", "", "file of the trusted root")
	f.StringVar(&o.tufURL, "tuf-url", "", "URL of the TUF repository with the trusted root, in place of a file")
	f.StringVar(&o.tufRoot, "tuf-root", "", "file of the root that TUF begins with, 1.root.json")
	f.StringArrayVar(&o.crl, "crl", nil, "lists of what is revoked: a file, a URL (with a / at the end: of the folder), tuf, or none; tuf where TUF is used")
	f.BoolVar(&o.allowStale, "allow-stale-crl", false, "warn of a list that is stale, and go by it")
	f.StringVar(&o.cache, "cache", "", "folder for what was fetched; mayfly in the user's cache folder if empty")
	f.BoolVar(&o.offline, "offline", false, "go by what is in files and in the cache; only an image's registry is asked")
	f.BoolVar(&o.ignoreTlog, "insecure-ignore-tlog", false, "want no entry in a Rekor log, although the trusted root has one")
	f.BoolVar(&o.ignoreSCT, "insecure-ignore-sct", false, "want no SCT in the certificate, although the trusted root has a CT log")
	f.BoolVar(&o.json, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("trusted-root", "tuf-url")
	cmd.MarkFlagsOneRequired("trusted-root", "tuf-url")
	cmd.MarkFlagsRequiredTogether("tuf-url", "tuf-root")
	cmd.MarkFlagsOneRequired("certificate-identity", "certificate-identity-regexp")
	cmd.MarkFlagsOneRequired("certificate-oidc-issuer", "certificate-oidc-issuer-regexp")
	return cmd, began
}
