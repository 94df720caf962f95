//go:build !windows

package main

import (
	"os/exec"
	"syscall"
)

func ownGroup(cmd *exec.Cmd)                         { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
func signalGroup(leader int, s syscall.Signal) error { return syscall.Kill(-leader, s) }
