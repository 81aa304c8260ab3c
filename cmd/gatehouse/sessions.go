package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/internal/admin"
	"gatehouse/internal/config"
)

func sessionsCommand() *cobra.Command {
	var path, address, output string
	c := &cobra.Command{
		Use: "sessions", Short: "List or end sessions of a running gatehouse",
		Long: `List or end sessions of a running gatehouse, through its admin listener. Of the file that --config names only
gateway.admin is read: mistakes elsewhere, and variables that are not set here, do not matter. --admin names the listener
itself, and needs no file:

  gatehouse sessions list --config gatehouse.yaml
  gatehouse sessions revoke --admin 127.0.0.1:5559 ID
  gatehouse sessions revoke --admin unix:/run/gatehouse/admin.sock ID`,
	}
	c.PersistentFlags().StringVar(&path, "config", "", "the configuration file of the running gatehouse")
	c.PersistentFlags().StringVar(&address, "admin", "", "its admin listener, instead of the file's: host:port or unix:/path")
	connect := func(c *cobra.Command) (*admin.Client, error) { return adminClient(c, path, address) }
	list := &cobra.Command{
		Use: "list", Short: "List sessions", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("sessions list: -o %q: want json, or nothing", output)
			}
			client, err := connect(c)
			if err != nil {
				return err
			}
			all, err := client.List(c.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return json.NewEncoder(c.OutOrStdout()).Encode(all)
			}
			return writeSessions(c, all)
		},
	}
	list.Flags().StringVarP(&output, "output", "o", "", "json for programs")
	revoke := &cobra.Command{
		Use: "revoke ID", Short: "End a session, by the id that list and the audit log show", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := connect(c)
			if err != nil {
				return err
			}
			return client.Revoke(c.Context(), args[0])
		},
	}
	c.AddCommand(list, revoke)
	return c
}

// adminClient returns a client of the listener at address, or of the one that the file at path names.
func adminClient(c *cobra.Command, path, address string) (*admin.Client, error) {
	if address != "" {
		if p, ok := strings.CutPrefix(address, "unix:"); ok {
			return admin.NewClient("unix", p), nil
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, fmt.Errorf("--admin %q: want host:port or unix:/path", address)
		}
		return admin.NewClient("tcp", address), nil
	}
	if path == "" {
		return nil, errors.New("sessions: say which gatehouse: --config FILE or --admin ADDRESS")
	}
	network, listener, err := config.AdminListener(path, config.OS())
	if err != nil {
		_, _ = fmt.Fprintf(c.ErrOrStderr(), "%v\nsessions: --admin ADDRESS names the listener without the file\n", err)
		return nil, errSaid
	}
	return admin.NewClient(network, listener), nil
}

// printable quotes what would disturb a terminal.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) || r == ' ' }) {
		return strconv.Quote(s)
	}
	return s
}

func writeSessions(c *cobra.Command, all []admin.Session) error {
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tUSER\tCONNECTOR\tSIGNED IN\tLAST USE\tEXPIRES\tADDRESS")
	for _, s := range all {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, printable(s.User), s.Connector,
			s.SignedInAt.Format(time.RFC3339), s.LastActivity.Format(time.RFC3339), s.ExpiresAt.Format(time.RFC3339), s.Address)
	}
	return w.Flush()
}
