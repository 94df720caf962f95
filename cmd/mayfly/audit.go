package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// withTrail gives cmd the required --trail, and has it run where that names a trail: in what
// is none, nothing would be found wrong either.
func withTrail(cmd *cobra.Command, run func(trail string, args []string) error) *cobra.Command {
	trail := cmd.Flags().String("trail", "", "the trail's current file, audit.path or that of a copy, with its parts beside it (required)")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if _, err := os.Stat(*trail); err != nil {
			return fail("name the trail's current file, which is audit.path of the configuration", "%w", err)
		}
		return run(*trail, args)
	}
	return cmd
}

func newAuditSearchCommand(streams streams) *cobra.Command {
	var q audit.Query
	cmd := &cobra.Command{
		Use: "search [FIELD=VALUE...]", Short: "Find records by any of their fields, and by time",
		Long: `Prints the records that meet every FIELD=VALUE, first of what was issued, then of
what was refused, then of what administrators did; a * at the end of VALUE stands for
the rest. FIELD is one of docs/audit.md, and type is issued, intent, denied, failed,
probed or admin. Records of one kind are in the order in which they were written.`,
		Example: `  mayfly audit search --trail audit/audit.jsonl san=alice@example.com type=issued
  mayfly audit search --trail audit/audit.jsonl 'subject=repo:example/*' --since 2026-11-01 --json`,
	}
	timeFlag(cmd, &q.Since, "since", "no records before this, such as 2026-11-01 or 2026-11-01T08:00:00Z")
	timeFlag(cmd, &q.Until, "until", "none at this time or later")
	asJSON := cmd.Flags().Bool("json", false, "print the records as they are, one a line")
	return withTrail(cmd, func(trail string, args []string) error {
		for _, arg := range args {
			f, err := audit.ParseFilter(arg)
			if err != nil {
				return usage("write for example san=alice@example.com", "%w", err)
			}
			q.Filters = append(q.Filters, f)
		}
		found, err := searchTrail(trail, q, streams.Err, func(r audit.Record, line []byte) {
			if *asJSON {
				fmt.Fprintf(streams.Out, "%s\n", line)
			} else {
				fmt.Fprintln(streams.Out, row(r))
			}
		})
		if found == 0 && err == nil {
			fmt.Fprintln(streams.Err, "nothing found")
		}
		return err
	})
}

// searchTrail gives what it finds to show, and counts it. What can't be read is told to
// warnings, and is an error at the end: something may be missing.
func searchTrail(trail string, q audit.Query, warnings io.Writer, show func(audit.Record, []byte)) (found int, err error) {
	for _, file := range audit.Files(trail) {
		q.Search(file.Path, func(r audit.Record, line []byte, unread error) bool {
			if unread != nil {
				fmt.Fprintln(warnings, terminal.Line(unread.Error()))
				err = fail("run `mayfly audit verify`, which says more", "parts of the audit trail can't be read, so something may be missing")
				return true
			}
			found++
			show(r, line)
			return true
		})
	}
	return found, err
}

// row is a record on one line.
func row(r audit.Record) string {
	word := func(fields ...string) string {
		for _, field := range fields {
			if v, ok := r.Data[field]; ok {
				return terminal.Line(fmt.Sprint(v))
			}
		}
		return "-"
	}
	return fmt.Sprintf("%-24s %-9s %-40s %-40s %-26s %s", r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), terminal.Line(r.Type),
		word("san", "subject", "by", "remote_addr"), word("serial", "what"), word("request_id"), word("reason", "act"))
}

func newAuditShowCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show SERIAL|REQUEST_ID|FINGERPRINT|ID", Short: "Print all that is on record of a certificate or a request",
		Long: `Prints every record of a certificate, by its serial number or fingerprint, of a
request, by the id that the client was given, or the one record with an id: each
with all its fields. Nothing found is exit code 1.`,
		Example: "  mayfly audit show --trail audit/audit.jsonl 2OUZ6DV6QUNAM2KDM2TXG2BDK4",
	}
	asJSON := cmd.Flags().Bool("json", false, "print the records as they are, one a line")
	return withTrail(cmd, func(trail string, args []string) error {
		if args[0] == "" {
			return usage("name what to look for, as it stands in an answer or a certificate", "an empty name is every record's")
		}
		q := audit.Query{Filters: []audit.Filter{audit.Refers(args[0])}}
		found, err := searchTrail(trail, q, streams.Err, func(r audit.Record, line []byte) {
			if *asJSON {
				fmt.Fprintf(streams.Out, "%s\n", line)
				return
			}
			fmt.Fprintf(streams.Out, "%s  %s\n  %-16s %s\n", r.Time.UTC().Format(time.RFC3339Nano), terminal.Line(r.Type), "id", terminal.Line(r.ID))
			for _, field := range audit.Fields {
				if v, ok := r.Data[field]; ok {
					fmt.Fprintf(streams.Out, "  %-16s %s\n", field, terminal.Line(fmt.Sprint(v)))
				}
			}
		})
		if found == 0 && err == nil {
			err = fail("`mayfly audit search` finds records by other fields", "no record of %s", args[0])
		}
		return err
	})
}

// maxFaults bounds what is told of a trail.
const maxFaults = 10_000

func newAuditVerifyCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify", Short: "Verify that the trail is as it was written",
		Long: `Reads the whole trail and names every place where a line was altered, deleted,
swapped, added or cut: each record has the hash of the one before it, and signed
heads vouch for all before them. --key is the public half of audit.key_file. With
--heads, heads that were kept elsewhere, such as a collector's copy, must be in the
trail: without them nobody sees that its end was cut off, or that somebody who has
the key wrote it anew. Exit code 5 says that it isn't whole.`,
		Example: `  mayfly kms public file:audit.key.pem >audit.pub.pem
  mayfly audit verify --trail audit/audit.jsonl --key audit.pub.pem --heads collected.jsonl`,
	}
	keyFile := cmd.Flags().String("key", "", "PEM file with the public key of the heads; else none is verified")
	heads := cmd.Flags().String("heads", "", "file with records of heads that were kept elsewhere")
	asJSON := jsonFlag(cmd)
	return withTrail(cmd, func(trail string, _ []string) error {
		v, err := verifyTrail(trail, *keyFile, *heads)
		if err != nil {
			return err
		}
		if err = show(streams.Out, *asJSON, v, v.print); err == nil && len(v.Faults) > 0 {
			err = &failure{code: exitUnverified, err: errors.New("the audit trail isn't as it was written")}
		}
		return err
	})
}

// trailVerification is what `mayfly audit verify` found.
type trailVerification struct {
	Files  []audit.Report `json:"files"`
	Faults []string       `json:"faults"`
}

func verifyTrail(trail, keyFile, heads string) (v trailVerification, err error) {
	v.Faults = []string{}
	var key *ecdsa.PublicKey
	if keyFile != "" {
		public, err := readPublic(keyFile)
		if err != nil {
			return v, err
		}
		if key, _ = public.(*ecdsa.PublicKey); key == nil {
			return v, fail("make it with `mayfly kms public`", "%s has no P-256 public key", keyFile)
		}
	}
	var kept []audit.Head
	if heads != "" {
		text, err := os.ReadFile(heads) // #nosec G304 -- the user names the file
		if err != nil {
			return v, err
		}
		if kept = audit.Heads(text); len(kept) == 0 {
			return v, fail("give what a sink of the trail got, one record a line", "%s has no heads", heads)
		}
	}
	for _, file := range audit.Files(trail) {
		r, err := audit.Verify(file, key, kept, func(fault error) {
			if len(v.Faults) < maxFaults {
				v.Faults = append(v.Faults, fault.Error())
			}
		})
		if err != nil {
			return v, err
		}
		v.Files = append(v.Files, r)
	}
	return v, nil
}

func (v *trailVerification) print(w io.Writer) {
	for _, r := range v.Files {
		fmt.Fprintf(w, "%s: %d records, %d from before they were chained; %d verified heads, %d records after the last", r.File, r.Records, r.Unchained, r.Heads, r.Unsigned)
		if r.Later {
			fmt.Fprint(w, "; what was before them was deleted, by rotation or by somebody")
		}
		fmt.Fprintln(w)
	}
	for _, fault := range v.Faults {
		fmt.Fprintf(w, "FAULT  %s\n", terminal.Line(fault))
	}
}

// recordedActs are the commands that change who signs, what certificates are logged in,
// and what clients trust, and the one that copies keys. Each has --config.
var recordedActs = []string{
	"authority prepare", "authority publish", "authority activate", "authority retire", "authority distrust",
	"log create", "log rotate", "log freeze", "tuf publish", "config export-states",
	"backup",
}

// putOnRecord has every recorded act of the tree recorded in the audit trail before it
// begins, and once more where it fails. Without the record nothing is done.
func putOnRecord(root *cobra.Command) {
	for _, act := range recordedActs {
		cmd, _, err := root.Find(strings.Fields(act))
		cobra.CheckErr(err)
		run := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			c, err := config.LoadDefinitions(cmd.Flag("config").Value.String())
			if err != nil {
				return run(cmd, args) // which says what is wrong with the configuration
			}
			e := audit.Event{Act: act, By: administrator(), What: what(cmd, args)}
			if err := audit.Append(cmd.Context(), c.Audit, e); err != nil {
				return fail("run it as the user of the service, where the folder of audit.path is: what administrators do is on record there",
					"nothing was done, since it can't be recorded: %w", err)
			}
			if err = run(cmd, args); err == nil {
				return nil
			}
			e.Message = "the command failed"
			return errors.Join(err, audit.Append(context.WithoutCancel(cmd.Context()), c.Audit, e))
		}
	}
}

// administrator is who runs the command, as far as this machine knows.
func administrator() string {
	host, _ := os.Hostname() // #nosec G104 -- a machine without a name has administrators too
	return fmt.Sprintf("uid %d (%s) on %s", os.Getuid(), cmp.Or(os.Getenv("SUDO_USER"), os.Getenv("USER")), host)
}

// what is the object of an act, and the switches that change what the act means.
func what(cmd *cobra.Command, args []string) string {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Value.Type() == "bool" && f.Value.String() == "true" {
			args = append(args, "--"+f.Name)
		}
	})
	return strings.Join(args, " ")
}
