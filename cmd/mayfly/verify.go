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
	"strings"
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
			if err == nil {
				err = fmt.Errorf("%s: %w", path, syscall.Exec(path, args, os.Environ())) // #nosec G204 -- it comes back only where that can't be run
			}
			return err
		},
	}
}

// findVerifier finds the program: beside this one, or as the caller's PATH has it.
func findVerifier() (path string, err error) {
	self, err := os.Executable()
	if err == nil {
		path, err = exec.LookPath(filepath.Join(filepath.Dir(self), verifier))
	}
	if err != nil {
		path, err = exec.LookPath(verifier)
	}
	if err != nil {
		return "", fail("install it: make build makes it beside mayfly, or go install github.com/mayfly-ca/mayfly/cmd/mayfly-verify", "this takes the program %s: %w", verifier, err)
	}
	return path, nil
}

// signersOf are the certificates whose keys signed an image, as its registry has them. Whether
// they are to be trusted nobody has looked at. say is told what else there is.
func signersOf(ctx context.Context, image string, say func(string)) ([]*x509.Certificate, error) {
	path, err := findVerifier()
	if err != nil {
		return nil, err
	}
	var told bytes.Buffer                                                // some lines: it reads no more than some signatures
	cmd := exec.CommandContext(ctx, path, "--certificates", "--", image) // #nosec G204 -- no shell
	cmd.Stderr, cmd.WaitDelay = &told, time.Second
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	text, err := io.ReadAll(io.LimitReader(out, inspect.MaxBytes+1))
	_ = out.Close() // who has more to say ends
	err = cmp.Or(cmd.Wait(), err)
	lines := strings.Split(strings.TrimSpace(told.String()), "\n")
	if len(text) > inspect.MaxBytes {
		return nil, fmt.Errorf("the certificates of %s are more than %d bytes: name single ones with --certificate", image, inspect.MaxBytes)
	}
	if err != nil {
		return nil, fail("name an image that is signed, as NAME@sha256:DIGEST, in a registry that docker login or the like gives access to", "%s (%w)", lines[len(lines)-1], err)
	}
	for _, line := range lines {
		if line != "" {
			say(line)
		}
	}
	return pemfile.CertificatesAmong(text)
}
