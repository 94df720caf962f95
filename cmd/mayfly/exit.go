package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

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
