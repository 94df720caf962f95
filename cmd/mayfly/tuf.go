package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// tufAlone is for whoever has one key that signs.
const tufAlone = `One key alone signs the trust root: good for trying out. For others to rely on it,
have two of three people sign: mayfly tuf rotate-root.`

// tufKeys are who signs, as flags say it.
type tufKeys struct {
	root, targets []string
	threshold     int
}

func (k *tufKeys) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&k.root, "key", nil, "file with the public key of somebody who signs, in PEM; repeat it for each (mayfly kms public)")
	f.StringArrayVar(&k.targets, "targets-key", nil, "as --key, for those who sign targets where they aren't the same")
	f.IntVar(&k.threshold, "threshold", 2, "how many of them have to sign")
}

// keys reads the public keys, with the online key of c. One key that signs alone has to be said.
func (k *tufKeys) keys(cmd *cobra.Command, c *config.Config) (all tuf.Keys, err error) {
	stated := cmd.Flags().Changed("threshold")
	switch {
	case len(k.root) == 0 && (stated || len(k.targets) > 0):
		return all, usage("name all keys of the next root", "--threshold and --targets-key need --key")
	case len(k.root) > 0 && len(k.root) < 3 && !stated:
		return all, usage("name at least three keys, or say with --threshold how many of fewer have to sign", "%d keys, of which 2 have to sign, leave nobody who may be away", len(k.root))
	}
	read := func(files []string) (all []crypto.PublicKey, err error) {
		for _, file := range files {
			public, err := readPublic(file)
			if err != nil {
				return nil, err
			}
			all = append(all, public)
		}
		return all, nil
	}
	key, err := service.OpenTUFKey(cmd.Context(), c.TUF, quiet())
	if err != nil {
		return all, fmt.Errorf("tuf.key: %w", err)
	}
	defer kms.Close(key)
	all.Threshold, all.Online = k.threshold, key.Public()
	if all.Root, err = read(k.root); err != nil {
		return all, err
	}
	if all.Targets = all.Root; len(k.targets) > 0 {
		all.Targets, err = read(k.targets)
	}
	return all, err
}

// tufConfig reads a configuration with a repository.
func tufConfig(file string) (*config.Config, error) {
	c, err := loadConfig(file)
	if err != nil {
		return nil, err
	}
	if !c.TUF.Enabled() {
		return nil, fail("name its folder and its online key under tuf: docs/tuf.md", "%s has no TUF repository", file)
	}
	return c, nil
}

// quiet are the dependencies of a command.
func quiet() service.Dependencies {
	return service.Dependencies{Now: time.Now, Logger: slog.New(slog.DiscardHandler)}
}

func clientDocuments(ctx context.Context, c *config.Config) (trustroot.Documents, error) {
	d, err := service.Documents(ctx, c, quiet(), service.Overrides{})
	if err != nil {
		return d, startFailure(err, "")
	}
	return d, nil
}

// draftCommand makes a command that drafts what follows r, which is nil at the beginning.
func draftCommand(cmd *cobra.Command, streams streams, draft func(c *config.Config, r *tuf.Repository) (*tuf.Draft, error)) *cobra.Command {
	var out string
	cmd.Flags().StringVar(&out, "out", "tuf-draft.json", "file for the draft")
	return withConfig(cmd, tufConfig, func(cmd *cobra.Command, _ string, c *config.Config, _ []string) error {
		r, err := loadTUF(c)
		if begins := cmd.Name() == "init"; begins && err == nil {
			return fail("change it with mayfly tuf stage or rotate-root: clients follow from the first root on, which never changes",
				"%s has a root already", c.TUF.Directory)
		} else if err != nil && (!begins || !errors.Is(err, tuf.ErrNothing)) {
			return err
		}
		d, err := draft(c, r)
		if err != nil {
			return err
		}
		b, err := d.Format()
		if err != nil {
			return err
		}
		if err := durable.WriteNew(out, b, 0o644); err != nil {
			return err
		}
		if err := printDraft(streams.Out, d); err != nil {
			return err
		}
		fmt.Fprintf(streams.Out, "\nwritten: %[1]s\ncarry it to the keys, and sign it there:\n  mayfly tuf sign %[1]s --key KEY\n", terminal.Line(out))
		return nil
	})
}

func newTUFInitCommand(streams streams) *cobra.Command {
	var k tufKeys
	cmd := &cobra.Command{
		Use: "init", Short: "Draft the first root: who signs, and what clients trust",
		Long: `Writes the draft of a repository's first root and targets: whose keys sign, how many
have to, the service's online key (tuf.key), and what the configuration tells clients.
Private keys stay where they are: carry the draft to enough of them, and back.`,
		Example: "  mayfly tuf init --config mayfly.yaml --key alice.pem --key bob.pem --key carol.pem --out draft.json",
	}
	k.flags(cmd)
	cobra.CheckErr(cmd.MarkFlagRequired("key"))
	return draftCommand(cmd, streams, func(c *config.Config, _ *tuf.Repository) (*tuf.Draft, error) {
		keys, err := k.keys(cmd, c)
		if err != nil {
			return nil, err
		}
		documents, err := clientDocuments(cmd.Context(), c)
		if err != nil {
			return nil, err
		}
		return tuf.Init(keys, documents, time.Now())
	})
}

func newTUFStageCommand(streams streams) *cobra.Command {
	var e excision
	cmd := &cobra.Command{
		Use: "stage", Short: "Draft the next targets, with what the configuration says now",
		Long: `Writes the draft of the next targets, valid for 180 days, and shows what changes for
clients. Where something that was signed couldn't be verified any more, it refuses,
unless --remove says that this is meant.

--excise is for an emergency: nothing that was signed between two times counts any more,
for clients too that ask no list of what is revoked. First it says how many certificates
that hits, good ones among them; with that number in --hits it drafts.`,
		Example: `  mayfly tuf stage --config mayfly.yaml --out draft.json
  mayfly tuf stage --config mayfly.yaml --excise 2026-11-29T10:00:00Z/2026-11-29T11:30:00Z --hits 17`,
	}
	remove := cmd.Flags().Bool("remove", false, "let entries go that were published")
	cmd.Flags().StringVar(&e.times, "excise", "", "FROM/TO, two times of RFC 3339: let nothing count that was signed then")
	cmd.Flags().IntVar(&e.hits, "hits", -1, "how many certificates --excise hits, as it said")
	return draftCommand(cmd, streams, func(c *config.Config, r *tuf.Repository) (*tuf.Draft, error) {
		gap, err := e.agreed(streams.Out, c)
		if err != nil {
			return nil, err
		}
		documents, err := clientDocuments(cmd.Context(), c)
		if err != nil {
			return nil, err
		}
		d, err := tuf.Stage(r, documents, *remove, gap, time.Now())
		if err != nil {
			err = fail("put it back into the configuration, or say --remove", "%w", err)
		}
		return d, err
	})
}

func newTUFRotateCommand(streams streams) *cobra.Command {
	var k tufKeys
	cmd := &cobra.Command{
		Use: "rotate-root", Short: "Draft the next root: other keys, or the same for another year",
		Long: `Writes the draft of the next root, and of the same targets under it. Without --key the
same people sign for another year; the online key is the configuration's (tuf.key).
Enough keys of the root in force have to sign, and enough of the new one.`,
		Example: "  mayfly tuf rotate-root --config mayfly.yaml --key alice.pem --key bob.pem --key dave.pem --out draft.json",
	}
	k.flags(cmd)
	return draftCommand(cmd, streams, func(c *config.Config, r *tuf.Repository) (*tuf.Draft, error) {
		keys, err := k.keys(cmd, c)
		if err != nil {
			return nil, err
		}
		if len(k.root) == 0 {
			online := keys.Online
			if keys, err = r.Keys(); err != nil {
				return nil, err
			}
			keys.Online = online
		}
		return tuf.Rotate(r, keys, time.Now())
	})
}

// loadTUF is what a configuration's repository has in force.
func loadTUF(c *config.Config) (*tuf.Repository, error) {
	r, err := tuf.Load(string(c.TUF.Directory))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.TUF.Directory, err)
	}
	return r, nil
}

func printChanges(w io.Writer, changes []tuf.Change) {
	for _, c := range changes {
		fmt.Fprintf(w, "  %c %s\n", c.Sign, terminal.Line(c.Line))
	}
}

// printDraft says what a draft changes, and who has signed it.
func printDraft(w io.Writer, d *tuf.Draft) error {
	changes, err := d.Changes()
	if err != nil {
		return err
	}
	if first := d.Follows(); first == [32]byte{} {
		fmt.Fprintln(w, "The beginning of a repository: all of it is new.")
	} else {
		fmt.Fprintf(w, "For the repository whose 1.root.json has the SHA-256\n  %x\n", first)
	}
	fmt.Fprintln(w, "What changes for clients:")
	printChanges(w, changes)
	if len(changes) == 0 {
		fmt.Fprintln(w, "  nothing but until when it is valid")
	}
	fmt.Fprintln(w, "\nSignatures:")
	for _, s := range d.Standings() {
		fmt.Fprintf(w, "  %s, valid to %s: %d of %d needed; signed by %s; can sign: %s\n",
			s.Role, s.Expires.Format(time.RFC3339), len(s.Have), s.Need, tuf.KeyNames(s.Have), tuf.KeyNames(s.Missing))
	}
	return nil
}

func newTUFSignCommand(streams streams) *cobra.Command {
	var key caKey
	cmd := &cobra.Command{
		Use: "sign DRAFT", Short: "Sign a draft where a key is; nothing else is needed",
		Long: `Shows what a draft changes for clients and who has signed it, asks, and adds the key's
signature to all that the key may sign. It needs the draft and the key, no
configuration and no network. The draft is changed in place, or written to --out.`,
		Example: "  mayfly tuf sign draft.json --key file:alice.key.pem",
	}
	key.flags(cmd, "", "the key of somebody who signs", false)
	out := cmd.Flags().String("out", "", "file for the signed draft; DRAFT itself if empty")
	yes := cmd.Flags().Bool("yes", false, "sign without asking")
	cobra.CheckErr(cmd.MarkFlagRequired("key"))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := readDraft(streams.In, args[0])
		if err != nil {
			return err
		}
		if err := printDraft(streams.Out, d); err != nil {
			return err
		}
		if !*yes {
			if err := agree(cmd.Context(), streams, "Is that what clients are to trust?", "read what the draft changes, and say --yes"); err != nil {
				return err
			}
		}
		return key.use(cmd.Context(), streams.Out, func(_ cacert.Key, signer kms.Signer) error {
			signed, err := d.Sign(cmd.Context(), signer)
			if err != nil {
				return err
			}
			b, err := d.Format()
			if err != nil {
				return err
			}
			if *out != "" {
				err = durable.WriteNew(*out, b, 0o644)
			} else {
				*out, err = args[0], durable.Replace(args[0], b)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(streams.Out, "\nsigned %s: %s\n", strings.Join(signed, " and "), *out)
			for _, s := range d.Standings() {
				fmt.Fprintf(streams.Out, "  %s: %d of %d\n", s.Role, len(s.Have), s.Need)
			}
			return nil
		})
	}
	return cmd
}

// readDraft reads the file of a draft.
func readDraft(in io.Reader, path string) (*tuf.Draft, error) {
	return readAs(in, path, "take a fresh copy of the draft, or stage it anew", tuf.ParseDraft)
}

func newTUFPublishCommand(streams streams) *cobra.Command {
	return withConfig(&cobra.Command{
		Use: "publish DRAFT...", Short: "Put a signed draft in force",
		Long: `Puts a draft in force, if enough keys have signed it and a TUF client takes the result;
else nothing has changed. Copies of one draft that were signed in different places are
put together. A running service serves it within seconds; copy the folder to replicas.`,
		Example: "  mayfly tuf publish --config mayfly.yaml alice/draft.json bob/draft.json",
	}, tufConfig, func(cmd *cobra.Command, _ string, c *config.Config, args []string) error {
		var drafts []*tuf.Draft
		for _, path := range args {
			d, err := readDraft(streams.In, path)
			if err != nil {
				return err
			}
			drafts = append(drafts, d)
		}
		d, err := tuf.Merge(drafts)
		if err != nil {
			return err
		}
		key, err := service.OpenTUFKey(cmd.Context(), c.TUF, quiet())
		if err != nil {
			return fmt.Errorf("tuf.key: %w", err)
		}
		defer kms.Close(key)
		r, err := tuf.Publish(cmd.Context(), string(c.TUF.Directory), d, key, time.Now())
		if err != nil {
			return fail("nothing is published; mend it, and publish again", "%w", err)
		}
		fmt.Fprintln(streams.Out, "Published.")
		printRoles(streams.Out, r.Roles(), time.Now())
		printClients(streams.Out, service.PublicURL(c), r)
		return nil
	})
}
