package main

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/internal/passwords"
)

// passwordsCommandName is how this program is started again to compare passwords. It is nothing for people.
const passwordsCommandName = "compare-passwords"

func passwordsCommand() *cobra.Command {
	return &cobra.Command{
		Use: passwordsCommandName, Hidden: true, Args: cobra.NoArgs, Short: "Compare passwords with hashes, for a gatehouse that has started this one",
		RunE: func(c *cobra.Command, _ []string) error { return passwords.Serve(c.InOrStdin(), c.OutOrStdout()) },
	}
}

// passwordsIdle is how long the other process stays when nobody signs in: it has about as much memory as this one at the start.
const passwordsIdle = 5 * time.Minute

// newPasswords compares the passwords of local users in other processes of this program.
func newPasswords(ctx context.Context, log *slog.Logger) *passwords.Pool {
	var said atomic.Int64 // when a failure was logged, in nanoseconds since 1970
	return passwords.New(passwords.Options{
		Most: runtime.GOMAXPROCS(0), // no more than there are slots for sign-ins
		Idle: passwordsIdle,
		Command: func() *exec.Cmd {
			c := exec.CommandContext(context.WithoutCancel(ctx), ownProgram(), passwordsCommandName) //nolint:gosec // G204: this program
			c.Args[0] = "gatehouse"
			c.Env = []string{"GOMAXPROCS=1"} // and no secret of ours
			apart(c)
			return c
		},
		Failed: func(err error) {
			last, now := said.Load(), time.Now().UnixNano()
			if now-last >= int64(time.Minute) && said.CompareAndSwap(last, now) {
				log.WarnContext(ctx, "passwords are compared in this process: sign-ins may slow down the gateway's checks", "error", err)
			}
		},
	})
}

// ownProgram is this program, on Linux also after its file was replaced.
func ownProgram() string {
	const self = "/proc/self/exe"
	if _, err := os.Stat(self); err == nil {
		return self
	}
	name, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return name
}
