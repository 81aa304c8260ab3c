package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"gatehouse/internal/demo"
)

func demoCommand() *cobra.Command {
	return &cobra.Command{
		Use: "demo", Short: "Try it: Gatehouse behind a real Envoy, with a sample app and two users",
		Long: `Run Gatehouse behind a real Envoy with a small sample app and two users, all on this machine only, in a temporary
folder. The address is http://localhost:8080; GATEHOUSE_DEMO_PORT chooses another port. Ctrl-C ends everything.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			port := 8080
			if v := os.Getenv("GATEHOUSE_DEMO_PORT"); v != "" {
				n, err := strconv.Atoi(v)
				if err != nil {
					return fmt.Errorf("GATEHOUSE_DEMO_PORT=%q: want a port number", v)
				}
				port = n
			}
			err := demo.Run(c.Context(), demo.Options{
				Port: port, Out: c.OutOrStdout(),
				Gatehouse: func(ctx context.Context, path string) error { return demoServe(ctx, c, path) },
			})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
}

// demoServe runs serve with its logs beside the configuration file.
func demoServe(ctx context.Context, c *cobra.Command, path string) (err error) {
	l, err := load(ctx, c, path)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	logs, err := os.OpenFile(filepath.Join(dir, "gatehouse.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	events, err := os.OpenFile(filepath.Join(dir, "audit.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	return serve(ctx, l, events, logs)
}
