// Package process runs a child program with its output in a file, and stops it by its id.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// stopGrace is how long a child may take to end after SIGTERM before it is killed.
// It is longer than Gatehouse goes on serving after SIGTERM and then drains, and what a pod has.
const stopGrace = 30 * time.Second

// A Spec says what to run.
type Spec struct {
	Path string   // of the program
	Args []string // without the program's name
	Env  []string // added to this process's environment, as NAME=value
	Dir  string   // working folder; empty: this process's
	Log  string   // file that receives stdout and stderr; it is appended to
}

// A Process is a running or ended child.
type Process struct {
	spec Spec
	cmd  *exec.Cmd
	done chan struct{} // closed when the child has ended; err is set before
	err  error
}

// Start runs s. The child is told to end when ctx ends. It has its own process group, so that a Ctrl-C at the
// terminal reaches only the parent, which then stops its children in order; and on Linux it dies with the parent.
func Start(ctx context.Context, s Spec) (*Process, error) {
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", filepath.Base(s.Path), err)
	}
	cmd := exec.CommandContext(ctx, s.Path, s.Args...) //nolint:gosec // G204: running the given program is this package's job
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, log, log
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	cmd.SysProcAttr = attributes()
	p := &Process{spec: s, cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Linux sends the parent-death signal when the thread that started the child ends, so this goroutine
		// keeps its thread until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer func() { _ = log.Close() }()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Path, err)
	}
	return p, nil
}

// Done is closed when the child has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Pid is the child's process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Err says how the child ended, with the end of its log. Call it after Done.
func (p *Process) Err() error {
	<-p.done
	how := "exit status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended: %s; the end of its log %s:\n%s", filepath.Base(p.spec.Path), how, p.spec.Log, p.Tail(4000))
}

// Stop sends SIGTERM, and SIGKILL after stopGrace, and waits until the child has ended. It may be called twice.
func (p *Process) Stop() error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	if err := p.Kill(); err != nil {
		return err
	}
	return fmt.Errorf("%s did not end within %s of SIGTERM and was killed", filepath.Base(p.spec.Path), stopGrace)
}

// Kill sends SIGKILL, as a crash would, and waits until the child has ended.
func (p *Process) Kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Signal sends sig to a child that still runs.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

func (p *Process) signal(sig os.Signal) error {
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", filepath.Base(p.spec.Path), err)
	}
	return nil
}

// Log returns everything that the child has written so far.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.spec.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Tail returns the last whole lines of the log, at most max bytes.
func (p *Process) Tail(max int) string {
	b := []byte(p.Log())
	if len(b) > max {
		b = b[len(b)-max:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return strings.TrimSpace(string(b))
}
