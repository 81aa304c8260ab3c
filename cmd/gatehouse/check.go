package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"gatehouse/internal/config"
	"gatehouse/provider"
)

// load reads a configuration; its mistakes are printed one a line, as FILE:LINE: KEY: what is wrong and how to mend it.
func load(c *cobra.Command, path string) (*config.Config, config.Warnings, error) {
	opts := config.OS()
	opts.Connector = provider.CheckConnector
	cfg, warnings, err := config.Load(path, opts)
	if err != nil {
		_, _ = fmt.Fprintln(c.ErrOrStderr(), err)
		return nil, warnings, errSaid
	}
	return cfg, warnings, nil
}

func checkCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check-config FILE", Short: "Check a configuration file and tell every mistake with its line and its fix",
		Long: `Check a configuration file without starting anything. Every mistake is told at once, with its line and how to
mend it. The exit code is 0 for a file that "gatehouse serve" would start with, else 1; warnings do not change it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, warnings, err := load(c, args[0])
			for _, w := range warnings {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "warning:", w)
			}
			if err != nil {
				return err
			}
			what := "a provider only: there is no gateway block"
			if cfg.Gateway != nil {
				what = fmt.Sprintf("provider and gateway, %d hosts, %d rules", len(cfg.Gateway.Hosts), len(cfg.Gateway.Rules))
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: good (%s, %d warnings)\n", args[0], what, len(warnings))
			return err
		},
	}
}
