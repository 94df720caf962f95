package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// maxIndexDigits tells an index from a serial number: a log has fewer than 10^13
// entries, and a serial number has 16 hexadecimal digits and more.
const maxIndexDigits = 13

const logShowLong = `Prints an entry of an embedded log, by its index or by the serial number of its
certificate in hexadecimal, and checks that the published checkpoint holds it. It
writes nothing, so the log may be in use.`

func newLogShowCommand(streams streams) *cobra.Command {
	var dir string
	var withPEM bool
	cmd := &cobra.Command{
		Use:     "show INDEX|SERIAL",
		Short:   "Print an entry of an embedded log",
		Long:    logShowLong,
		Example: "  mayfly log show 42 --dir my-ca/ctlog",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := findEntry(cmd.Context(), dir, args[0])
			if err != nil {
				return err
			}
			return printEntry(streams.Out, e, withPEM)
		},
	}
	logDirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&withPEM, "pem", false, "print what was logged in PEM as well")
	return cmd
}

const logProofLong = `Prints the proof that an entry is in an embedded log: its index, the hashes from
its leaf to the root, and the checkpoint that the log signed over the root
(c2sp.org/tlog-proof). Whoever has the log's key can verify it offline.`

func newLogProofCommand(streams streams) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "proof INDEX|SERIAL",
		Short:   "Print the proof that an entry is in an embedded log",
		Long:    logProofLong,
		Example: "  mayfly log proof 42 --dir my-ca/ctlog",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := findEntry(cmd.Context(), dir, args[0])
			if err != nil {
				return err
			}
			_, err = streams.Out.Write(e.Proof())
			return err
		},
	}
	logDirFlag(cmd, &dir)
	return cmd
}

// logDirFlag adds the required --dir.
func logDirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "", "the log's directory (required)")
	cobra.CheckErr(cmd.MarkFlagRequired("dir"))
}

// findEntry finds an entry by what a person knows of it.
func findEntry(ctx context.Context, dir, name string) (e read.Entry, err error) {
	if err := holdsLog(dir); err != nil {
		return e, err
	}
	if index, failed := strconv.ParseUint(name, 10, 64); failed == nil && len(name) <= maxIndexDigits {
		e, err = read.EntryAt(ctx, dir, index)
	} else {
		digits := strings.NewReplacer(":", "", " ", "").Replace(strings.TrimPrefix(strings.ToLower(name), "0x"))
		serial, ok := new(big.Int).SetString(digits, 16)
		if !ok || serial.Sign() < 0 {
			return e, usage("give an index, as in 42, or a serial number in hexadecimal", "%q is neither an index nor a serial number", name)
		}
		e, err = read.FindEntry(ctx, dir, serial)
	}
	if errors.Is(err, read.ErrNoEntry) {
		err = fail("an entry can be read when a checkpoint covers it, a second or two after its certificate was issued", "%w", err)
	}
	return e, err
}

func printEntry(w io.Writer, e read.Entry, withPEM bool) error {
	c, err := x509.ParseCertificate(e.Certificate)
	if err != nil {
		return fmt.Errorf("entry %d: %w", e.Index, err)
	}
	kind := "certificate"
	if e.Precert {
		kind = "precertificate"
	}
	names := append([]string{}, c.EmailAddresses...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	for _, line := range [][2]string{
		{"entry", fmt.Sprintf("%d, in the checkpoint of %d entries", e.Index, e.Size)},
		{"kind", kind},
		{"logged", time.UnixMilli(int64(e.Timestamp)).UTC().Format(time.RFC3339Nano)},
		{"leaf hash", fmt.Sprintf("%x", e.LeafHash)},
		{"serial", c.SerialNumber.Text(16)},
		{"issuer", c.Issuer.String()},
		{"names", strings.Join(names, " ")},
		{"valid", c.NotBefore.UTC().Format(time.RFC3339) + " to " + c.NotAfter.UTC().Format(time.RFC3339)},
	} {
		fmt.Fprintf(w, "  %-10s %s\n", line[0], terminal.Line(line[1]))
	}
	if withPEM {
		return pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate})
	}
	return nil
}
