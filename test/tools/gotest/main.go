// Command gotest runs `go test -json` with its arguments and tells people what came of it: a line for each package,
// the whole output of what failed, what has just begun where nothing else was told for a while, and in the last line the
// number of tests (subtests count) that passed and failed, and of benchmarks that ran.
// Arguments after a "--" are those of a further run, which starts only if the one before passed.
//
// Its exit code is 0 only if every package and every test passed and none was skipped, and if there was one, or a benchmark: a skipped test proves nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	t := newTally(stdout)
	ok := true
	for more := true; ok && more; {
		var group []string
		group, args, more = cut(args)
		if err := t.goTest(ctx, group, stderr); err != nil {
			ok = false
			_, _ = fmt.Fprintln(stderr, "gotest:", err)
		}
	}
	if !t.summary() || !ok {
		return 1
	}
	return 0
}

// cut returns the arguments before and after the first "--".
func cut(args []string) (before, after []string, found bool) {
	if i := slices.Index(args, "--"); i >= 0 {
		return args[:i], args[i+1:], true
	}
	return args, nil, false
}

func (t *tally) goTest(ctx context.Context, args []string, stderr io.Writer) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := t.read(out)
	if err := cmd.Wait(); err != nil {
		return errors.Join(readErr, fmt.Errorf("go test: %w", err))
	}
	return readErr
}
