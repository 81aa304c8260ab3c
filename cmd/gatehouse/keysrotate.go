package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/internal/admin"
)

func keysCommand() *cobra.Command {
	var connect connection
	c := &cobra.Command{
		Use: "keys", Short: "Rotate the signing keys of a running gatehouse", Args: cobra.NoArgs, RunE: showHelp,
		Long: `Rotate the keys with which a running gatehouse signs tokens, through its admin listener.

  gatehouse keys rotate --config gatehouse.yaml
  gatehouse keys rotate --now --admin 127.0.0.1:5559`,
	}
	connect.flags(c)
	var now bool
	rotate := &cobra.Command{
		Use: "rotate", Short: "Make a new signing key", Args: cobra.NoArgs,
		Long: `Make a new signing key, for all replicas. It is published first and signs once everybody can know
it; tokens that earlier keys signed are good until they expire.

With --now it signs at once and the earlier keys are withdrawn: every token that they signed is refused
from now on. That is for a key that may have leaked. Apps that verify tokens by themselves learn of it
when they fetch the keys again; clients fetch new tokens. Signed-in browsers notice nothing: sessions do
not rest on tokens.`,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := connect.client(c)
			if err != nil {
				return err
			}
			done, err := client.RotateKeys(c.Context(), now)
			if err != nil {
				return err
			}
			return writeRotation(c, &done)
		},
	}
	rotate.Flags().BoolVar(&now, "now", false, "sign with it at once, and withdraw the earlier keys")
	c.AddCommand(rotate)
	return c
}

func writeRotation(c *cobra.Command, r *admin.Rotation) error {
	w := c.OutOrStdout()
	_, err := fmt.Fprintf(w, "new key %s signs from %s\n", printable(r.KeyID), r.SignsFrom.Format(time.RFC3339))
	for _, id := range r.Withdrawn {
		if err == nil {
			_, err = fmt.Fprintf(w, "withdrawn: %s\n", printable(id))
		}
	}
	return err
}
