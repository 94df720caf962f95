// Command mayfly is a certificate authority that speaks the Fulcio API, and
// the client and tools that go with it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/revoke"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/commandline"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// streams are a command's standard input and outputs. A command prints its
// answer to Out and everything said on the way to Err.
type streams struct {
	In       io.Reader
	Out, Err io.Writer
}

func main() {
	os.Exit(run(os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr}))
}

// run executes one command line and returns its exit code. The context of a
// command ends at the first SIGINT or SIGTERM; a second signal ends the process.
func run(args []string, io streams) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Once the context has ended the signals get their default effect back.
	defer context.AfterFunc(ctx, stop)()

	root, began := newRootCommand(io)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !*began && !errors.As(err, new(*failure)) {
		fix, said := commandline.Explain(cmd, err)
		err = &failure{code: exitUsage, fix: cmp.Or(fix, usageFix(cmd)), err: said}
	}
	// Who reads standard error may have stalled: after a signal nobody waits for it.
	reported, stalled := make(chan int, 1), make(chan struct{})
	// A command line that is wrong before it comes to --json is from a machine all the same.
	asJSON := slices.Contains(args, "--json") || slices.Contains(args, "--json=true")
	go func() { reported <- report(io.Err, err, asJSON) }()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastLines, func() { close(stalled) }) })()
	select {
	case code := <-reported:
		return code
	case <-stalled:
		return exitCode(err)
	}
}

// usageFix says how the command is written that a wrong command line meant.
func usageFix(cmd *cobra.Command) string {
	if cmd.HasSubCommands() || !cmd.HasParent() {
		return meant(cmd.Flags().Arg(0), "%q", cmd, "run `mayfly help` or add --help to the command")
	}
	return fmt.Sprintf("write `%s`; `%s --help` has the flags", cmd.UseLine(), cmd.CommandPath())
}

// meant puts the commands among which a misspelt word is close to one before the next step.
func meant(typed, format string, among *cobra.Command, fix string) string {
	among.SuggestionsMinimumDistance = min(2, len(typed)/2)
	found := among.SuggestionsFor(typed)
	if typed == "" || len(found) == 0 {
		return fix
	}
	for i, name := range found {
		found[i] = fmt.Sprintf(format, name)
	}
	return "did you mean " + strings.Join(found, " or ") + "? " + fix
}

// newRootCommand builds the command tree. The second result becomes true when
// a command's own code starts: an error before that is a wrong command line.
func newRootCommand(io streams) (*cobra.Command, *bool) {
	root := group("mayfly", "A certificate authority for signatures that outlive their keys", `Mayfly is a certificate authority that speaks the Fulcio API. A client shows an
OpenID Connect token and proves that it holds a fresh key; Mayfly answers with a
code-signing certificate that lives ten minutes and is in a transparency log.`, commands(io)...)
	root.Version = thisBuild().Version
	root.SetVersionTemplate("mayfly {{.Version}}\n")
	root.SilenceErrors, root.SilenceUsage = true, true // run prints them, with the next step
	root.SetFlagErrorFunc(flagError)
	root.SetIn(io.In)
	root.SetOut(io.Out)
	root.SetErr(io.Err)
	putOnRecord(root)
	began := new(bool)
	complete(root, began)
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodesText})
	refuseUnknownTopics(root)
	return root, began
}

// onWindows are the commands that work there, with all below them: those of whoever uses a CA,
// or looks at what one wrote. They hold no lock and read no secret of a CA.
var onWindows = []string{
	"request", "revoke", "search", "verify", "cert", "token", "policy", "config import-fulcio", "ca show", "ca verify",
	"tuf verify", "tuf export", "log show", "log proof", "log verify", "audit",
	"version", "healthcheck",
}

// runsOn is an error where a command doesn't run on a system.
func runsOn(system string, cmd *cobra.Command) error {
	name := strings.TrimPrefix(cmd.CommandPath(), "mayfly")
	works := func(one string) bool { return strings.HasPrefix(name+" ", " "+one+" ") }
	if system != "windows" || cmd.HasSubCommands() || slices.ContainsFunc(onWindows, works) {
		return nil
	}
	return fail("run it on Linux or macOS; on Windows there are "+strings.Join(onWindows, ", "),
		"mayfly%s doesn't run on Windows: running a CA and using its keys take locks, flushes and permissions of files that are Unix's", name)
}

// commands are all of them, in the order of the help.
func commands(io streams) []*cobra.Command {
	return []*cobra.Command{
		newDevCommand(io),
		newServeCommand(io),
		newInitCommand(io),
		newCheckCommand(io),
		newRequestCommand(io),
		newRevokeCommand(io),
		group("cert", "Look at certificates", "", newCertShowCommand(io)),
		newSearchCommand(io),
		newMonitorCommand(io),
		newVerifyCommand(),
		group("token", "Look at identity tokens", "", newTokenExplainCommand(io)),
		group("policy", "Work on the policy of a configuration", "", newPolicyTestCommand(io)),
		group("config", "Work on configuration files", "", newImportFulcioCommand(io), newExportStatesCommand(io)),
		group("log", "Work on an embedded log, and on the logs that follow each other", `Works on the logs of a configuration (--config): list, create, rotate, freeze; and
on the directory of an embedded log (--dir): show, proof, verify, backup, restore.
All but restore may run beside the service. docs/ctlog.md goes through them.`,
			newLogVerifyCommand(io), newLogShowCommand(io), newLogProofCommand(io), newLogBackupCommand(io), newLogRestoreCommand(io),
			newLogCreateCommand(io), newLogListCommand(io), newLogRotateCommand(io), newLogFreezeCommand(io)),
		group("audit", "Ask the audit trail, and verify it", `Asks the audit trail, with all its rotated parts, compressed ones too, and the files
of refusals and of administrators' acts beside it. It only reads, so a service may run.`,
			newAuditSearchCommand(io), newAuditShowCommand(io), newAuditVerifyCommand(io)),
		newBackupCommand(io), newRestoreCommand(io),
		group("kms", "Try and make signing keys, in files, KMSs and HSMs", "",
			newKMSCheckCommand(io), newKMSKeygenCommand(io), newKMSPublicCommand(io)),
		newAuthorityCommand(io),
		group("ca", "Make and check the certificates of a CA, with keys in files, KMSs and HSMs", "",
			newCAInitCommand(io), newCAIntermediateCommand(io), newCACSRCommand(io), newCASignCSRCommand(io), newCAShowCommand(io), newCAVerifyCommand(io)),
		group("tuf", "Sign and publish the trust root that clients follow (TUF)", "",
			newTUFInitCommand(io), newTUFStageCommand(io), newTUFSignCommand(io), newTUFPublishCommand(io),
			newTUFRotateCommand(io), newTUFStatusCommand(io), newTUFVerifyCommand(io), newTUFExportCommand(io)),
		newVersionCommand(io),
		newHealthcheckCommand(io),
	}
}

// group is a command that says what there is below it.
func group(use, short, long string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(below...)
	return cmd
}

// flagValues are those of flags that take one of a few: shells complete them.
var flagValues = map[string]string{
	"algorithm": kmsAlgorithms(), "generate": kmsAlgorithms(), "reason": setting.List(revoke.Reasons()), "purpose": purposeIssuing + ", " + purposeTimestamp,
	"key-type": setting.List(client.KeyTypes()), "format": setting.List(slices.Sorted(maps.Keys(tufExports))), "issuer-type": setting.List([]identity.Type{
		identity.TypeEmail, identity.TypeURI, identity.TypeUsername, identity.TypeSPIFFE, identity.TypeKubernetes, identity.TypeCI, identity.TypeChainguard}),
}

// complete has cmd and all below it take the arguments that the line of use shows, require
// the flags that say so at their end, and set began before their own code runs.
func complete(cmd *cobra.Command, began *bool) {
	takes := arguments(cmd.Use)
	cmd.Args = func(c *cobra.Command, args []string) error { return cmp.Or(runsOn(runtime.GOOS, c), takes(c, args)) }
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if strings.HasSuffix(f.Usage, "(required)") {
			cobra.CheckErr(cmd.MarkFlagRequired(f.Name))
			if f.Name == "config" && cmd.Example == "" {
				cmd.Example = "  " + strings.Replace(cmd.UseLine(), "[flags]", "--config /etc/mayfly/mayfly.yaml", 1)
			}
		}
	})
	for name, values := range flagValues {
		if cmd.Flags().Lookup(name) != nil {
			cobra.CheckErr(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(strings.Split(values, ", "), cobra.ShellCompDirectiveNoFileComp)))
		}
	}
	runE := cmd.RunE
	cmd.RunE = func(c *cobra.Command, args []string) error {
		*began = true
		return runE(c, args)
	}
	for _, sub := range cmd.Commands() {
		complete(sub, began)
	}
}

// arguments takes as many as a line of use shows: NAME, [NAME], NAME... or [NAME...].
func arguments(use string) cobra.PositionalArgs {
	words := strings.Fields(use)[1:]
	least, most := 0, len(words)
	for _, word := range words {
		if !strings.HasPrefix(word, "[") {
			least++
		}
		if strings.Contains(word, "...") {
			most = math.MaxInt
		}
	}
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case cmd.HasSubCommands():
			return cobra.NoArgs(cmd, args)
		case len(args) < least:
			return fmt.Errorf("%s is missing", words[len(args)])
		case len(args) > most:
			return fmt.Errorf("%q is more than %s takes", args[most], cmd.CommandPath())
		}
		return nil
	}
}

// refuseUnknownTopics makes `mayfly help TOPIC` an error where there is no such
// command or topic; cobra would print the help of the last that it knows.
func refuseUnknownTopics(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	cobra.CheckErr(err)
	help.Args = func(_ *cobra.Command, topic []string) error {
		if known, rest, err := root.Find(topic); err != nil || len(rest) > 0 {
			return usage(meant(strings.Join(rest, " "), "%q", known, "`mayfly help` lists them"), "unknown help topic %q", strings.Join(topic, " "))
		}
		return nil
	}
}

// The exit codes, which exitCodesText explains to users.
const (
	exitOK          = 0
	exitFailed      = 1 // the command ran and failed, or found faults
	exitUsage       = 2 // the command line is wrong
	exitRefused     = 3 // the CA answered with a refusal (4xx)
	exitUnavailable = 4 // something the command needs is unreachable or overloaded
	exitUnverified  = 5 // an answer did not pass verification
	exitPIN         = 6 // a token refuses its PIN, and another start would take another try
)

const exitCodesText = `Exit codes of every mayfly command:

  0  done
  1  failed, or faults were found (mayfly check, mayfly healthcheck)
  2  the command line is wrong
  3  refused by the CA: the token, the key or the request (HTTP 4xx)
  4  something needed is unreachable, overloaded or broken: try again later
     (network, HTTP 5xx or 429)
  5  what was received did not pass verification: do not use it
  6  a token refuses its PIN: do not start again before the PIN is right, since
     tokens lock after a few tries

mayfly verify has more to tell apart: 1 is a signature that isn't good, 3 one whose
certificate is revoked, and 4 one that is good but for the list of what is revoked:
that is stale, or can't be had or used.
`

// failure is an error with the exit code it ends the process with and, where
// one is known, the next step for the person who reads it.
type failure struct {
	code int
	fix  string // an imperative sentence without a full stop, or ""
	err  error  // nil: what failed has said it
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usage is a wrong command line that only the command itself can notice.
func usage(fix, format string, args ...any) error {
	return &failure{code: exitUsage, fix: fix, err: fmt.Errorf(format, args...)}
}

// fail is a command that ran and failed, with what to do next.
func fail(fix, format string, args ...any) error {
	return &failure{code: exitFailed, fix: fix, err: fmt.Errorf(format, args...)}
}

// trouble is a failure for machines: docs/json.md.
type trouble struct {
	Message  string `json:"message"`
	Fix      string `json:"fix,omitempty"`
	ExitCode int    `json:"exit_code"`
	client.Answer
}

// report prints err, for machines in one line, and returns the exit code for it: the code of
// the outermost *failure in its chain, or exitFailed. A nil error prints nothing.
func report(w io.Writer, err error, asJSON bool) int {
	if f, ok := errors.AsType[*failure](err); err == nil || ok && f.err == nil {
		return exitCode(err)
	}
	t := trouble{Message: strings.TrimRight(err.Error(), "\n"), ExitCode: exitCode(err)}
	if f, ok := errors.AsType[*failure](err); ok {
		t.Fix = f.fix
	}
	if errors.Is(err, context.Canceled) && t.Fix == "" {
		t.Message = "interrupted"
	}
	if asJSON {
		if answered, ok := errors.AsType[*client.Error](err); ok {
			t.Answer = answered.Answer
		}
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		_ = e.Encode(map[string]trouble{"error": t}) // who doesn't read it has the exit code
		return t.ExitCode
	}
	lines := strings.Split(t.Message, "\n")
	fmt.Fprintf(w, "mayfly: %s\n", terminal.Line(lines[0]))
	for _, line := range lines[1:] {
		fmt.Fprintf(w, "  %s\n", terminal.Line(line))
	}
	if t.Fix != "" {
		fmt.Fprintf(w, "  fix: %s\n", terminal.Line(t.Fix))
	}
	return t.ExitCode
}

// exitCode is the code that err ends the process with.
func exitCode(err error) int {
	switch f := (*failure)(nil); {
	case err == nil:
		return exitOK
	case errors.Is(err, kms.ErrPINRefused):
		return exitPIN
	case errors.As(err, &f):
		return f.code
	default:
		return exitFailed
	}
}

// flagForms say how the values of flags are written.
var flagForms = map[string]string{
	"time": "a time, such as 2028-01-01 or 2028-01-01T00:00:00Z", "duration": "a duration, such as 90s or 1h30m", "bool": "true or false",
	"int": "a whole number", "uint32": "a whole number",
}

// flagError says of a value how it is written, and of an unknown flag which one is meant.
func flagError(cmd *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if given := cmd.Flags().Args(); cmd.HasSubCommands() && len(given) > 0 { // it is the command that is wrong
			return cmd.Args(cmd, given)
		}
		flags := &cobra.Command{} // how close words are is known to cobra, of commands alone
		cmd.Flags().VisitAll(func(f *pflag.Flag) { flags.AddCommand(&cobra.Command{Use: f.Name, RunE: cmd.RunE}) })
		typed, dashes := e.GetSpecifiedName(), "--"
		if short := e.GetSpecifiedShortnames(); short != "" { // a long one with one dash
			typed, dashes = short, "-"
		}
		return usage(meant(typed, "--%s", flags, usageFix(cmd)), "unknown flag: %s%s", dashes, typed)
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok && flagForms[e.GetFlag().Value.Type()] != "" {
		form, _, _ := strings.Cut(flagForms[e.GetFlag().Value.Type()], ",")
		return usage("write "+flagForms[e.GetFlag().Value.Type()], "--%s %q isn't %s", e.GetFlag().Name, e.GetValue(), form)
	}
	return err
}

// timeFlag adds a flag that is a day or a moment.
func timeFlag(cmd *cobra.Command, t *time.Time, name, usage string) {
	cmd.Flags().TimeVar(t, name, time.Time{}, []string{time.DateOnly, time.RFC3339}, usage)
}

// readInput reads a file that a person names, or in, which is standard input, for "-". No
// file that is meant here is larger than MaxBytes.
func readInput(in io.Reader, path string) ([]byte, error) {
	if path != "-" || in == nil {
		f, err := os.Open(path) // #nosec G304 -- the user names the file
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, inspect.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", inputName(path), err)
	}
	if len(data) > inspect.MaxBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", inputName(path), inspect.MaxBytes)
	}
	return data, nil
}

func inputName(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

// exists says whether something is at path, or may be.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// textTable prints rows in columns, each cell on one line. Flush ends it.
type textTable struct{ *tabwriter.Writer }

func newTable(w io.Writer, header ...string) textTable {
	t := textTable{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(header) > 0 {
		t.row(header...)
	}
	return t
}

func (t textTable) row(cells ...string) {
	for i := range cells {
		cells[i] = terminal.Line(cells[i])
	}
	fmt.Fprintln(t, strings.Join(cells, "\t"))
}

// readAs reads a file, or in for "-", and makes something of it; fix is for what can't be made.
func readAs[T any](in io.Reader, path, fix string, parse func([]byte) (T, error)) (made T, err error) {
	data, err := readInput(in, path)
	if err != nil {
		return made, err
	}
	if made, err = parse(data); err != nil {
		err = fail(fix, "%s: %w", inputName(path), err)
	}
	return made, err
}

// jsonFlag has a command answer machines: docs/json.md says with what.
func jsonFlag(cmd *cobra.Command) *bool { return cmd.Flags().Bool("json", false, "print JSON") }

// telling is where a command says what it does, step by step: nowhere where it answers with JSON at the end.
func telling(w io.Writer, asJSON bool) io.Writer {
	if asJSON {
		return io.Discard
	}
	return w
}

// show prints v as JSON where that is wished, and else as text prints it, where it isn't said already.
func show(w io.Writer, asJSON bool, v any, text func(io.Writer)) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	var b bytes.Buffer
	if text != nil {
		text(&b)
	}
	_, err := b.WriteTo(w)
	return err
}
