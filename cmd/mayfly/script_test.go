package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

// TestMain lets scripts, and tests that look for it in the PATH, run this
// program as mayfly. No goroutine may be left when all tests are done.
func TestMain(m *testing.M) {
	testscript.Main(unleaking{m}, map[string]func(){"mayfly": main})
}

type unleaking struct{ *testing.M }

func (u unleaking) Run() int {
	code := u.M.Run()
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestScripts runs testdata/script/*.txtar: the shipped program, as a person or
// a supervisor runs it. Besides testscript's own commands there are:
//
//	launch NAME mayfly ARGS…  starts it in the background; output in NAME.out and NAME.err
//	endpoints DIR             waits for DIR/endpoints.json, and sets HTTP, GRPC, ISSUER, METRICS, CTLOG
//	serving NAME              waits for its line "serving", and sets HTTP, GRPC, METRICS
//	end NAME                  SIGTERM; it has to exit with 0 in time
//	hangup NAME               SIGHUP
//	exit CODE ARGS…           runs a program that has to exit with CODE
//	json CODE ARGS…           the same with --json, whose answer has to be as docs/json.md says
//	fetch URL FILE            GET; 200 is expected
//	await URL PATTERN         GET until it answers 200 with a match in the body
//	answers CODE URL          GET; CODE is expected
//	mode MODE FILE            compares the file's permissions, in octal
//	flip FILE                 inverts the bits of the byte in the middle
//	config FILE               puts port 0 into a configuration of mayfly init
//	authority DIR FAULT       makes a CA with a fault: expired, mismatched
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"launch": cmdLaunch, "endpoints": cmdEndpoints, "serving": cmdServing, "end": cmdEnd, "hangup": cmdHangup, "exit": cmdExit,
			"fetch": cmdFetch, "await": cmdAwait, "answers": cmdAnswers,
			"json": cmdJSON, "mode": cmdMode, "flip": cmdFlip, "config": cmdConfig, "authority": cmdAuthority,
		},
		Setup: func(e *testscript.Env) error {
			e.Values[processesKey{}] = &processes{running: map[string]*process{}}
			return nil
		},
	})
}
