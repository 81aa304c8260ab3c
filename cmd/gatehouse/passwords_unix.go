//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// apart keeps the signals of a terminal away from another process: it ends when its input does.
func apart(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
