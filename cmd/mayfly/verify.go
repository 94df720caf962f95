package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

// verifier is the program that verifies: with its libraries it weighs 20 MB, which the
// server needn't carry (docs/decisions/2026-11-29-verifier.md).
const verifier = "mayfly-verify"

func newVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify [ARGUMENT...]", Short: "Verify a signature, and that its certificate isn't revoked",
		Long: `Runs mayfly-verify, a program of its own, which stands beside this one or in the PATH:
mayfly-verify --help says all about it.`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			args = append([]string{verifier}, args...)
			path, err := findVerifier()
			if err == nil && runtime.GOOS == "windows" { // which knows no exec
				child := &exec.Cmd{Path: path, Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
				if err = child.Run(); child.ProcessState != nil {
					err = &failure{code: child.ProcessState.ExitCode()}
				}
			} else if err == nil {
				err = fmt.Errorf("%s: %w", path, syscall.Exec(path, args, os.Environ())) // #nosec G204 -- it comes back only where that can't be run
			}
			return err
		},
	}
}

// findVerifier finds it beside this program, or as the caller's PATH has it.
func findVerifier() (path string, err error) {
	if self, err := os.Executable(); err == nil {
		if path, err = exec.LookPath(filepath.Join(filepath.Dir(self), verifier)); err == nil {
			return path, nil
		}
	}
	if path, err = exec.LookPath(verifier); err != nil {
		return "", fail("install it: make build makes it beside mayfly, or go install github.com/mayfly-ca/mayfly/cmd/mayfly-verify", "this takes the program %s: %w", verifier, err)
	}
	return path, nil
}

// signers are the certificates whose keys signed an image, as its registry has them, to be
// trusted or not.
func (r *request) signers(ctx context.Context, image string) ([]*x509.Certificate, error) {
	path, err := findVerifier()
	if err != nil {
		return nil, err
	}
	var told bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "--certificates", "--", image) // #nosec G204 -- no shell
	cmd.Stderr, cmd.WaitDelay = &told, time.Second
	out, err := cmd.StdoutPipe()
	if err = cmp.Or(err, cmd.Start()); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(out, inspect.MaxBytes+1))
	_ = out.Close() // who has more to say ends
	err = cmp.Or(cmd.Wait(), err)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("reading who signed %s: %w", image, ctx.Err())
	case len(text) > inspect.MaxBytes:
		return nil, fail("name single ones with --certificate", "the certificates of %s are more than %d bytes", image, inspect.MaxBytes)
	case err != nil:
		return nil, fail("name an image that is signed, in a registry that you are logged in to with docker or podman", "%s (%w)", bytes.TrimSpace(told.Bytes()), err)
	}
	fmt.Fprint(telling(r.Err, r.json), told.String())
	return pemfile.CertificatesAmong(text)
}
