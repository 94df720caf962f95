// Command mayfly is a certificate authority that speaks the Fulcio API, and
// the client and tools that go with it.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ctlog/embedded"
)

// streams are a command's standard input and outputs. A command prints its
// answer to Out and everything said on the way to Err.
type streams struct {
	In       io.Reader
	Out, Err io.Writer
}

func main() {
	embedded.RedirectStorageLog(slog.New(slog.DiscardHandler)) // a service's log has it; see openLog
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
