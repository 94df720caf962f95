package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// printRoles says how long each role is valid, and who signs it.
func printRoles(w io.Writer, roles []tuf.Role, now time.Time) {
	for _, r := range roles {
		note := ""
		switch left := r.Remains(now); {
		case r.Expired(now):
			note = "; EXPIRED: clients verify nothing"
		case left < 50:
			note = fmt.Sprintf("; %d %% of its life is left: sign it again", left)
		}
		fmt.Fprintf(w, "  %-10s %d, valid to %s, %d of %s%s\n", r.Name, r.Version, r.Expires.Format(time.RFC3339), r.Threshold, tuf.KeyNames(r.Keys), note)
	}
	if len(roles) > 0 && roles[0].Threshold == 1 {
		fmt.Fprintln(w, "\n"+tufAlone)
	}
}

// listRoles says the same to machines.
func listRoles(roles []tuf.Role, now time.Time) (all []map[string]any) {
	for _, r := range roles {
		all = append(all, map[string]any{
			"role": r.Name, "version": r.Version, "not_after": r.Expires.UTC(), "expired": r.Expired(now), "threshold": r.Threshold, "keys": r.Keys,
		})
	}
	return all
}

// printClients says how clients begin.
func printClients(w io.Writer, url string, r *tuf.Repository) {
	url = strings.TrimSuffix(url, "/") + strings.TrimSuffix(tuf.Prefix, "/")
	fmt.Fprintf(w, `
Clients begin with 1.root.json, whose SHA-256 is
  %[2]x

  cosign initialize --mirror %[1]s --root %[1]s/1.root.json --root-checksum %[2]x
  sigstore --instance %[1]s trust-instance 1.root.json
  npx sigstore verify --tuf-mirror-url %[1]s --tuf-root-path 1.root.json BUNDLE
  mayfly tuf verify --url %[1]s --root 1.root.json
`, url, sha256.Sum256(r.FirstRoot()))
}

func newTUFStatusCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Say what is published, until when, and what changes with the next"}
	asJSON := jsonFlag(cmd)
	return withConfig(cmd, tufConfig, func(cmd *cobra.Command, _ string, c *config.Config, _ []string) error {
		r, err := loadTUF(c)
		if err != nil {
			return err
		}
		now, said := time.Now(), telling(streams.Out, *asJSON)
		fmt.Fprintf(said, "Published %s in %s:\n", r.Published().Format(time.RFC3339), c.TUF.Directory)
		printRoles(said, r.Roles(), now)
		printClients(said, service.PublicURL(c), r)
		documents, err := clientDocuments(cmd.Context(), c)
		if err != nil {
			return err
		}
		changes, err := r.Drift(documents)
		if err != nil {
			return err
		}
		if len(changes) > 0 {
			fmt.Fprintln(said, "\nThe configuration says otherwise (mayfly tuf stage):")
		}
		printChanges(said, changes)
		lines := []string{}
		for _, c := range changes {
			lines = append(lines, fmt.Sprintf("%c %s", c.Sign, c.Line))
		}
		if err := show(streams.Out, *asJSON, map[string]any{
			"directory": c.TUF.Directory, "url": service.PublicURL(c), "published": r.Published().UTC(), "roles": listRoles(r.Roles(), now),
			"first_root_sha256": fmt.Sprintf("%x", sha256.Sum256(r.FirstRoot())), "changes": lines,
		}, nil); err != nil {
			return err
		}
		for _, role := range r.Roles() {
			if role.Expired(now) {
				return fail("follow docs/tasks/tuf-expired.md", "%s %d has expired", role.Name, role.Version)
			}
		}
		return nil
	})
}

func newTUFVerifyCommand(streams streams) *cobra.Command {
	var from repository
	var asJSON *bool
	cmd := &cobra.Command{
		Use: "verify", Short: "Follow a repository as a client does, and say what it trusts",
		Long: `Runs a TUF client that begins with --root over the repository at a URL, and prints the
versions, until when they are valid, and the SHA-256 of each target. It keeps nothing.`,
		Example: "  mayfly tuf verify --url https://ca.example.com/tuf --root 1.root.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, v, err := from.follow(cmd.Context())
			if err != nil {
				return err
			}
			now, said, targets := time.Now(), telling(streams.Out, *asJSON), []map[string]string{}
			printRoles(said, v.Roles, now)
			fmt.Fprintln(said)
			for _, name := range v.Names() {
				sum := fmt.Sprintf("%x", sha256.Sum256([]byte(v.Files[name])))
				targets = append(targets, map[string]string{"name": name, "sha256": sum})
				fmt.Fprintf(said, "  %s  %s\n", sum, terminal.Line(name))
			}
			return show(streams.Out, *asJSON, map[string]any{"roles": listRoles(v.Roles, now), "targets": targets}, nil)
		},
	}
	from.flags(cmd)
	asJSON = jsonFlag(cmd)
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
	repository
	issuer, subject string
	first           []byte
	seen            *tuf.Verified
	history         *trustroot.History
}

func newTUFExportCommand(streams streams) *cobra.Command {
	var e tufExport
	formats := strings.Join(slices.Sorted(maps.Keys(tufExports)), ", ")
	cmd := &cobra.Command{
		Use: "export", Short: "Write what a TUF client sees as clusters and air-gapped clients take it",
		Long: `Follows a repository as mayfly tuf verify does, and prints a document of it, or what a
cluster takes: policy-controller's TrustRoot, which follows the repository or has it in
it (policy-controller-files: as long as the timestamp lasts), or an attestor of Kyverno's.`,
		Example: "  mayfly tuf export --url https://ca.example.com/tuf --root 1.root.json --format policy-controller | kubectl apply -f -",
	}
	f := cmd.Flags()
	e.flags(cmd)
	format := f.String("format", "trusted-root", formats)
	f.StringVar(&e.issuer, "issuer", "", "whose identities Kyverno lets in")
	f.StringVar(&e.subject, "subject", "", "which of them")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		write, known := tufExports[*format]
		if !known {
			return usage("one of "+formats, "--format %q is unknown", *format)
		}
		if e.first, e.seen, err = e.follow(cmd.Context()); err != nil {
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
	}
	return cmd
}

// repository is one that a client follows, and the root that it begins with.
type repository struct{ url, root, checksum string }

func (r *repository) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.url, "url", "", "URL of the repository (required)")
	f.StringVar(&r.root, "root", "", "file or URL of the root to begin with, 1.root.json (required)")
	f.StringVar(&r.checksum, "root-checksum", "", "SHA-256 that it must have, in hexadecimal; required with a URL")
}

// follow runs a TUF client, and gives the first root too.
func (r *repository) follow(ctx context.Context) (first []byte, v *tuf.Verified, err error) {
	if _, err = client.CheckURL("the repository", r.url, true); err != nil {
		return nil, nil, classify(err)
	}
	if first, err = firstRoot(ctx, r.root, r.checksum); err != nil {
		return nil, nil, err
	}
	if v, err = tuf.Verify(ctx, r.url, first, time.Now()); err != nil {
		err = &failure{code: exitUnverified, fix: "docs/tasks/tuf-expired.md says what each client's error means, and how to go on", err: fmt.Errorf("%s: %w", r.url, err)}
	}
	return first, v, err
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

// excision is a time in which nothing is to count that was signed, as flags say it.
type excision struct {
	times string
	hits  int
}

// agreed puts the time into c, once the number of certificates is repeated that it hits.
func (e excision) agreed(w io.Writer, c *config.Config) ([]trustroot.Gap, error) {
	if e.times == "" {
		return nil, nil
	}
	gap, err := trustroot.ParseGap(e.times)
	if err != nil {
		return nil, usage("give --excise FROM/TO", "--excise: %w", err)
	}
	by, count, err := issuedIn(string(c.Audit.Path), gap)
	if err != nil {
		return nil, fail("run it where the audit trail is", "what it hits can't be counted: %w", err)
	}
	fmt.Fprintf(w, "Certificates that could sign in %s: %d\n", gap, count)
	for _, who := range slices.SortedFunc(maps.Keys(by), func(a, b string) int { return by[b] - by[a] }) {
		fmt.Fprintf(w, "  %6d %s\n", by[who], terminal.Escape(who))
	}
	if e.hits != count {
		return nil, fail(fmt.Sprintf("if no signature of these is to count any more, say --excise %s --hits %d", gap, count),
			"nothing is drafted: all of these are hit, and --hits doesn't say so many")
	}
	if !slices.ContainsFunc(c.Trust.Excised, func(g trustroot.Gap) bool { return g.String() == gap.String() }) {
		c.Trust.Excised = append(c.Trust.Excised, gap)
		fmt.Fprintf(w, "Put it into the configuration too (trust.excised), or the next draft is refused: %s\n", gap)
	}
	return []trustroot.Gap{gap}, nil
}

// issuedIn counts the certificates on record whose validity meets the gap, by identity.
func issuedIn(trail string, gap trustroot.Gap) (by map[string]int, count int, err error) {
	if audit.Begun(trail) == "" {
		return nil, 0, fmt.Errorf("%s has no records", trail)
	}
	f := audit.Follow(trail, gap.From.Add(-authority.MaxLeafLifetime-time.Minute), audit.Issued)
	defer f.Close()
	by = make(map[string]int)
	for event, err := range f.Unread() {
		if line := (*audit.LineError)(nil); errors.As(err, &line) {
			event.SAN = "a record that can't be read: " + line.Error()
		} else if err != nil {
			return nil, 0, err
		}
		if err != nil || event.Purpose == "" && !event.NotBefore.After(gap.To) && !event.NotAfter.Before(gap.From) {
			by[event.SAN]++
			count++
		}
	}
	return by, count, nil
}
