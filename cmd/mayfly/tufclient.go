package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

func newTUFVerifyCommand(streams streams) *cobra.Command {
	var url, root, checksum string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Follow a repository as a client does, and say what it trusts",
		Long: `Runs a TUF client that begins with --root over the repository at a URL, and prints the
versions, until when they are valid, and the SHA-256 of each target. It keeps nothing.`,
		Example: "  mayfly tuf verify --url https://ca.example.com/tuf --root 1.root.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, v, err := followTUF(cmd.Context(), url, root, checksum)
			if err != nil {
				return err
			}
			printRoles(streams.Out, v.Roles, time.Now())
			fmt.Fprintln(streams.Out)
			for _, name := range v.Names() {
				fmt.Fprintf(streams.Out, "  %x  %s\n", sha256.Sum256([]byte(v.Files[name])), terminal.Line(name))
			}
			return nil
		},
	}
	repositoryFlags(cmd, &url, &root, &checksum)
	return cmd
}

// tufExports are the forms of what others are given, by the name of the format.
var tufExports = map[string]func(e tufExport) ([]byte, error){
	"policy-controller": func(e tufExport) ([]byte, error) { return trustroot.TrustRootRemote("mayfly", e.url, e.first) },
	"policy-controller-files": func(e tufExport) ([]byte, error) {
		return trustroot.TrustRootRepository("mayfly", e.first, e.seen.Raw)
	},
	"kyverno": func(e tufExport) ([]byte, error) {
		return trustroot.KyvernoAttestor(e.url, e.first, e.issuer, e.subject)
	},
	"kyverno-keyless": func(e tufExport) ([]byte, error) { return e.history.KyvernoKeyless(e.issuer, e.subject, time.Now()) },
	"trusted-root":    func(e tufExport) ([]byte, error) { return []byte(e.seen.Files[tuf.TrustedRoot]), nil },
	"signing-config":  func(e tufExport) ([]byte, error) { return []byte(e.seen.Files[tuf.SigningConfig]), nil },
}

// tufExport is what a TUF client has seen, and for whom it is written.
type tufExport struct {
	url, issuer, subject string
	first                []byte
	seen                 *tuf.Verified
	history              *trustroot.History
}

func newTUFExportCommand(streams streams) *cobra.Command {
	var e tufExport
	var root, checksum, format string
	formats := strings.Join(slices.Sorted(maps.Keys(tufExports)), ", ")
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write what a TUF client sees as clusters and air-gapped clients take it",
		Long: `Follows a repository as mayfly tuf verify does, and prints a document of it, or what a
cluster takes: policy-controller's TrustRoot, which follows the repository or has it in
it (policy-controller-files: as long as the timestamp lasts), or an attestor of Kyverno's.`,
		Example: "  mayfly tuf export --url https://ca.example.com/tuf --root 1.root.json --format policy-controller | kubectl apply -f -",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			write, known := tufExports[format]
			if !known {
				return usage("one of "+formats, "--format %q is unknown", format)
			}
			if e.first, e.seen, err = followTUF(cmd.Context(), e.url, root, checksum); err != nil {
				return err
			}
			if e.history, err = trustroot.Parse([]byte(e.seen.Files[tuf.TrustedRoot])); err != nil {
				return err
			}
			b, err := write(e)
			if err != nil {
				return err
			}
			_, err = streams.Out.Write(b)
			return err
		},
	}
	f := cmd.Flags()
	repositoryFlags(cmd, &e.url, &root, &checksum)
	f.StringVar(&format, "format", "trusted-root", formats)
	f.StringVar(&e.issuer, "issuer", "", "whose identities Kyverno lets in")
	f.StringVar(&e.subject, "subject", "", "which of them")
	return cmd
}

// followTUF runs a TUF client that begins with a root, which it gives too.
func followTUF(ctx context.Context, url, root, checksum string) (first []byte, v *tuf.Verified, err error) {
	if first, err = firstRoot(ctx, root, checksum); err != nil {
		return nil, nil, err
	}
	if v, err = tuf.Verify(ctx, url, first, time.Now()); err != nil {
		err = &failure{code: exitUnverified, fix: "docs/tasks/tuf-expired.md says what each client's error means, and how to go on", err: fmt.Errorf("%s: %w", url, err)}
	}
	return first, v, err
}

// repositoryFlags name a repository and the root to begin with.
func repositoryFlags(cmd *cobra.Command, url, root, checksum *string) {
	f := cmd.Flags()
	f.StringVar(url, "url", "", "URL of the repository (required)")
	f.StringVar(root, "root", "", "file or URL of the root to begin with, 1.root.json (required)")
	f.StringVar(checksum, "root-checksum", "", "SHA-256 that it must have, in hexadecimal; required with a URL")
}

// firstRoot reads the root that a client begins with.
func firstRoot(ctx context.Context, root, checksum string) (b []byte, err error) {
	if remote := strings.HasPrefix(root, "https://") || strings.HasPrefix(root, "http://"); remote && checksum == "" {
		return nil, usage("give the SHA-256 that mayfly tuf status shows", "a root from a URL needs --root-checksum")
	} else if remote {
		b, err = tuf.Fetch(ctx, root)
	} else {
		b, err = os.ReadFile(root)
	}
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); checksum != "" {
		if want, err := hex.DecodeString(checksum); err != nil || !bytes.Equal(want, sum[:]) {
			return nil, &failure{code: exitUnverified, fix: "don't use it: get it anew, and the checksum from whoever runs the CA", err: fmt.Errorf("%s has another SHA-256 than --root-checksum", root)}
		}
	}
	return b, nil
}
