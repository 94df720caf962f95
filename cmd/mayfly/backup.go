package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/backup"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// passphraseFlags name the place of a passphrase; the function reads it, or gives none.
func passphraseFlags(cmd *cobra.Command, usage string) func() ([]byte, error) {
	var s setting.Secret
	cmd.Flags().StringVar(&s.Env, "passphrase-env", "", "environment variable with "+usage)
	cmd.Flags().StringVar((*string)(&s.File), "passphrase-file", "", "file with "+usage)
	cmd.MarkFlagsMutuallyExclusive("passphrase-env", "passphrase-file")
	return func() ([]byte, error) {
		if s.IsZero() {
			return nil, nil
		}
		b, err := s.Read()
		if err != nil {
			return nil, fmt.Errorf("the passphrase: %w", err)
		}
		return b, nil
	}
}

func newBackupCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "backup", Short: "Take all that a CA keeps on its host into one file, while it serves",
		Long: `Writes a .tar.gz of what a configuration names: itself, chains and certificates, states,
the TUF repository, the audit trail with all its parts, statements of revocations and lists,
and what the logs have published. All of it is checked, and read back. The service may run.

Private keys, passphrases and tokens are left out, unless --keys takes them, encrypted with
a passphrase of at least 16 characters. Marks are always left out, since they alone know what
was promised after the backup; so is the index, which is made again. The list at the end of
the archive has what is in it and what isn't.`,
		Example: `  mayfly backup --config /etc/mayfly/mayfly.yaml --out /backup/mayfly.tar.gz
  mayfly backup --config /etc/mayfly/mayfly.yaml --out /var/lib/mayfly-backup --keep 7`,
	}
	flags := cmd.Flags()
	out := flags.String("out", "", "new file to write, or a folder for one that is named by the time (required)")
	keep := flags.Uint16("keep", 0, "how many backups stay in the folder, this one with them (default all)")
	keys := flags.Bool("keys", false, "take private keys and other secrets, encrypted with the passphrase")
	passphrase := passphraseFlags(cmd, "a passphrase for the keys in the backup")
	asJSON := jsonFlag(cmd)
	return withConfig(cmd, loadConfig, func(cmd *cobra.Command, file string, c *config.Config, _ []string) error {
		secret, err := passphrase()
		switch {
		case err != nil:
			return err
		case *keys != (secret != nil):
			return usage("name both, or neither", "--keys needs a passphrase, and a passphrase --keys")
		case *keys && len(secret) < backup.MinPassphrase:
			return usage("make one with `openssl rand -base64 24`", "the passphrase has less than %d characters", backup.MinPassphrase)
		}
		r, err := backup.Make(cmd.Context(), backup.Options{
			ConfigFile: file, Config: c, Out: *out, Keep: *keep, Passphrase: secret, Mayfly: thisBuild().Version, Now: time.Now(),
		})
		if err != nil {
			return err
		}
		if r.Faults > 0 {
			fmt.Fprintf(telling(streams.Err, *asJSON), "The audit trail was taken as it is, and isn't whole in %d places: mayfly audit verify has them, first %s\n", r.Faults, terminal.Line(r.Fault.Error()))
		}
		return show(streams.Out, *asJSON, r, func(w io.Writer) {
			fmt.Fprintf(w, "%s has %d files, %s.\n\n", terminal.Line(r.Out), len(r.Files), humanize.IBytes(uint64(r.Bytes))) // #nosec G115 -- a size
			for _, l := range r.Logs {
				fmt.Fprintf(w, "  the log %s, %d entries\n", l.URL, l.Entries)
			}
			printLeftOut(w, r.Manifest)
		})
	})
}

func printLeftOut(w io.Writer, m backup.Manifest) {
	for _, l := range m.LeftOut {
		fmt.Fprintf(w, "  left out: %s\n", terminal.Line(l.Path+" ("+l.Setting+"): "+l.Why))
	}
}

func newRestoreCommand(streams streams) *cobra.Command {
	var o backup.RestoreOptions
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Put back what mayfly backup took",
		Long: `Puts the files of a backup where they were, below --root. All of it is verified first, and
nothing that is there is overwritten: where anything is in the way, nothing is written.

A log goes on where its mark is there, and the mark says that nothing was promised after
the backup. Marks that survived, as on another disk, have to be in their places before. Where
one is lost, or ahead of the backup, --marks-lost puts the log back as a copy, which is
served and never takes anything, and gives the statements of revocations a new key:
docs/backup.md says how the CA goes on.`,
		Example: "  mayfly restore /backup/mayfly.tar.gz --passphrase-file passphrase",
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Root, "root", "/", "folder that the paths in the backup begin at")
	flags.BoolVar(&o.MarksLost, "marks-lost", false, "go on without marks: with new logs")
	passphrase := passphraseFlags(cmd, "the passphrase of the keys; without one they are left out")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if o.Passphrase, err = passphrase(); err != nil {
			return err
		}
		r, err := backup.Restore(cmd.Context(), args[0], o)
		switch {
		case errors.Is(err, backup.ErrInTheWay):
			return &failure{code: exitFailed, fix: "move it away, or take single files from the backup with tar", err: err}
		case errors.Is(err, backup.ErrNoMark):
			return &failure{code: exitFailed, fix: "put the mark back where it survived; where it is lost, add --marks-lost", err: err}
		case errors.Is(err, maintain.ErrBehind):
			return &failure{code: exitUnverified, fix: "restore a newer backup; without one, add --marks-lost", err: err}
		case err != nil:
			return err
		}
		return show(streams.Out, *asJSON, r, func(w io.Writer) {
			fmt.Fprintf(w, "The backup of %s is in its place.\n\n", moment(r.Time))
			for _, note := range r.Notes {
				fmt.Fprintf(w, "  %s\n", terminal.Line(note))
			}
			printLeftOut(w, r.Manifest)
			fmt.Fprintf(w, "\nNext, put keys back that were left out, and see what is missing:\n\n  mayfly check --config %s\n", terminal.Line(r.ConfigFile))
		})
	}
	return cmd
}
