// Command gatehouse puts a login in front of every app behind an Envoy or Istio gateway: an OpenID Provider and an
// Envoy ext_authz authorizer in one process.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// errSaid is the error of a command that has already told the user.
var errSaid = errors.New("said")

// showHelp is what a command does that only has commands of its own. With cobra.NoArgs it refuses a name that is none of theirs, which cobra by itself
// takes for a wish for help, with exit code 0.
func showHelp(c *cobra.Command, _ []string) error { return c.Help() }

// run is the program: its exit code is 0, or 1 for whatever went wrong.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "gatehouse",
		Short: "A login in front of every app behind an Envoy or Istio gateway",
		Long: `Gatehouse is an OpenID Provider and an Envoy ext_authz authorizer in one process: it shows the
login page, knows who is signed in, and answers the gateway's question whether a request may pass.

Try it in a minute:   gatehouse demo
Run it:               gatehouse serve --config gatehouse.yaml
Before that:          gatehouse check-config gatehouse.yaml
When in doubt:        gatehouse explain --config gatehouse.yaml --user alice@example.com GET https://app.example.com/x`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	//nolint:contextcheck // cobra hands ctx to each command
	root.AddCommand(serveCommand(), demoCommand(), checkCommand(), explainCommand(), hashCommand(), sessionsCommand(), usersCommand(), keysCommand(), versionCommand(), passwordsCommand(), ldapCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errSaid) {
			_, _ = fmt.Fprintln(stderr, "gatehouse:", err)
		}
		return 1
	}
	return 0
}
