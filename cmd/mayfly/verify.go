package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
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
			self, err := os.Executable()
			if err == nil {
				err = syscall.Exec(filepath.Join(filepath.Dir(self), verifier), args, os.Environ()) // #nosec G204 -- it comes back only where that isn't there
			}
			if path, failed := exec.LookPath(verifier); failed == nil {
				err = syscall.Exec(path, args, os.Environ()) // #nosec G204 -- as the caller's PATH has it
			}
			return fail("install it: make build makes it beside mayfly, or go install github.com/mayfly-ca/mayfly/cmd/mayfly-verify", "verifying takes the program %s: %w", verifier, err)
		},
	}
}
