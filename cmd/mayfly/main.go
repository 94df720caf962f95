// Command mayfly is a certificate authority that speaks the Fulcio API, and
// the client and tools that go with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/kms"
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
	if err != nil && !*began {
		err = &failure{code: exitUsage, fix: usageFix(cmd), err: err}
	}
	// Who reads standard error may have stalled: after a signal nobody waits for it.
	reported := make(chan int, 1)
	go func() { reported <- report(io.Err, err) }()
	select {
	case code := <-reported:
		return code
	case <-ctx.Done():
	}
	select {
	case code := <-reported:
		return code
	case <-time.After(lastLines):
		return exitCode(err)
	}
}

// usageFix says how the command is written that a wrong command line meant.
func usageFix(cmd *cobra.Command) string {
	if cmd.HasSubCommands() || !cmd.HasParent() {
		return "run `mayfly help` or add --help to the command"
	}
	return fmt.Sprintf("write `%s`; `%s --help` has the flags", cmd.UseLine(), cmd.CommandPath())
}

// commands are the constructors of every subcommand, in the order of the help.
var commands = []func(streams) *cobra.Command{
	newDevCommand,
	newServeCommand,
	newInitCommand,
	newCheckCommand,
	newRequestCommand,
	newRevokeCommand,
	newCertCommand,
	newSearchCommand,
	newMonitorCommand,
	newVerifyCommand,
	newTokenCommand,
	newPolicyCommand,
	newConfigCommand,
	newLogCommand,
	newAuditCommand,
	newKMSCommand,
	newAuthorityCommand,
	newCACommand,
	newTUFCommand,
	newVersionCommand,
	newHealthcheckCommand,
}

// group is a command that says what there is below it.
func group(use, short, long string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(below...)
	return cmd
}

// newRootCommand builds the command tree. The second result becomes true when
// a command's own code starts: an error before that is a wrong command line.
func newRootCommand(io streams) (*cobra.Command, *bool) {
	root := &cobra.Command{
		Use:   "mayfly",
		Short: "A certificate authority for signatures that outlive their keys",
		Long: `Mayfly is a certificate authority that speaks the Fulcio API. A client shows an
OpenID Connect token and proves that it holds a fresh key; Mayfly answers with a
code-signing certificate that lives ten minutes and is in a transparency log.`,
		SilenceErrors: true, // run prints them, with the next step
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(io.In)
	root.SetOut(io.Out)
	root.SetErr(io.Err)
	began := new(bool)
	for _, command := range commands {
		root.AddCommand(command(io))
	}
	putOnRecord(root)
	markBegin(root, began)
	root.AddCommand(newExitCodesTopic())
	refuseUnknownTopics(root)
	return root, began
}

// refuseUnknownTopics makes `mayfly help TOPIC` an error where there is no such
// command or topic; cobra would print the help of the last that it knows.
func refuseUnknownTopics(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	cobra.CheckErr(err)
	help.Args = func(_ *cobra.Command, topic []string) error {
		if _, rest, err := root.Find(topic); err != nil || len(rest) > 0 {
			return fmt.Errorf("unknown help topic %q", strings.Join(topic, " "))
		}
		return nil
	}
}

// markBegin makes every command of the tree set began before its own code runs.
func markBegin(cmd *cobra.Command, began *bool) {
	if runE := cmd.RunE; runE != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			*began = true
			return runE(c, args)
		}
	}
	for _, sub := range cmd.Commands() {
		markBegin(sub, began)
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

// newExitCodesTopic is the text of `mayfly help exit-codes`.
func newExitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodesText}
}

// failure is an error with the exit code it ends the process with and, where
// one is known, the next step for the person who reads it.
type failure struct {
	code int
	fix  string // an imperative sentence without a full stop, or ""
	err  error
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

// report prints err and returns the exit code for it: the code of the
// outermost *failure in its chain, or exitFailed. A nil error prints nothing.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	fix := ""
	if f, ok := errors.AsType[*failure](err); ok {
		fix = f.fix
	}
	text := err.Error()
	if errors.Is(err, context.Canceled) && fix == "" {
		text = "interrupted"
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	fmt.Fprintf(w, "mayfly: %s\n", terminal.Line(lines[0]))
	for _, line := range lines[1:] {
		fmt.Fprintf(w, "  %s\n", terminal.Line(line))
	}
	if fix != "" {
		fmt.Fprintf(w, "  fix: %s\n", terminal.Line(fix))
	}
	return exitCode(err)
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
