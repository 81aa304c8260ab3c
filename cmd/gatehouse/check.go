package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// load reads a configuration; its mistakes are printed one a line, as FILE:LINE: KEY: what is wrong and how to mend it.
func load(ctx context.Context, c *cobra.Command, path string) (loaded, error) {
	l, err := read(ctx, path)
	if err != nil {
		_, _ = fmt.Fprintln(c.ErrOrStderr(), err)
		return l, errSaid
	}
	return l, nil
}

func checkCommand() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use: "check-config FILE", Short: "Check a configuration file and tell every mistake with its line and its fix",
		Long: `Check a configuration file without starting anything. Every mistake is told at once, with its line and how to
mend it. The exit code is 0 for a file that "gatehouse serve" would start with, else 1; warnings do not change it.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				path = args[0]
			}
			if path == "" {
				return errors.New("check-config: say which file: gatehouse check-config FILE")
			}
			l, err := load(c.Context(), c, path)
			for _, w := range l.warnings {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "warning:", w)
			}
			if err != nil {
				return err
			}
			what := "a provider only: there is no gateway block"
			if g := l.cfg.Gateway; g != nil {
				what = fmt.Sprintf("provider and gateway, %d hosts, %d rules", len(g.Hosts), len(g.Rules))
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: good (%s, %d warnings)\n", path, what, len(l.warnings))
			return err
		},
	}
	c.Flags().StringVar(&path, "config", "", "the file, as for the other commands")
	return c
}
