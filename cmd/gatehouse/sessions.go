package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/internal/admin"
	"gatehouse/internal/config"
)

// A connection says which gatehouse a command talks to.
type connection struct{ path, address string }

func (n *connection) flags(c *cobra.Command) {
	c.PersistentFlags().StringVar(&n.path, "config", "", "the configuration `FILE` of the running gatehouse; only gateway.admin is read of it")
	c.PersistentFlags().StringVar(&n.address, "admin", "", "`ADDRESS` of its admin listener, instead of the file's: host:port or unix:/path")
}

// client returns a client of the listener at the address, or of the one that the file names.
func (n *connection) client(c *cobra.Command) (*admin.Client, error) {
	group := c.Parent().Name()
	if n.address != "" {
		if p, ok := strings.CutPrefix(n.address, "unix:"); ok {
			return admin.NewClient("unix", p), nil
		}
		if _, _, err := net.SplitHostPort(n.address); err != nil {
			return nil, fmt.Errorf("--admin %q: want host:port or unix:/path", n.address)
		}
		return admin.NewClient("tcp", n.address), nil
	}
	if n.path == "" {
		return nil, fmt.Errorf("%s: say which gatehouse: --config FILE or --admin ADDRESS", group)
	}
	network, listener, err := config.AdminListener(n.path, config.OS())
	if err != nil {
		_, _ = fmt.Fprintf(c.ErrOrStderr(), "%v\n%s: --admin ADDRESS names the listener without the file\n", err, group)
		return nil, errSaid
	}
	return admin.NewClient(network, listener), nil
}

func sessionsCommand() *cobra.Command {
	var connect connection
	c := &cobra.Command{
		Use: "sessions", Short: "List or end sessions of a running gatehouse", Args: cobra.NoArgs, RunE: showHelp,
		Long: `List or end sessions of a running gatehouse, through its admin listener. Of the file that --config names only
gateway.admin is read: mistakes elsewhere, and variables that are not set here, do not matter. --admin names the listener
itself, and needs no file:

  gatehouse sessions list --config gatehouse.yaml
  gatehouse sessions revoke --admin 127.0.0.1:5559 ID
  gatehouse sessions revoke --admin unix:/run/gatehouse/admin.sock ID
  gatehouse sessions revoke --config gatehouse.yaml --user alice@example.com`,
	}
	connect.flags(c)
	c.AddCommand(sessionsList(&connect), sessionsRevoke(&connect))
	return c
}

func sessionsList(connect *connection) *cobra.Command {
	var output string
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List sessions", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkList("sessions list", output, limit); err != nil {
				return err
			}
			client, err := connect.client(c)
			if err != nil {
				return err
			}
			return sessionList.print(c, output, limit, client.Sessions(c.Context(), oneMore(limit)))
		},
	}
	listFlags(list, &output, &limit)
	return list
}

func sessionsRevoke(connect *connection) *cobra.Command {
	var user string
	revoke := &cobra.Command{
		Use: "revoke ID | --user USER", Short: "End a session, by the id that list and the audit log show, or all that a user has",
		Long: `End one session, by the id that list and the audit log show; or, with --user, all sessions and refresh
tokens of a user, who may sign in again at once (users block keeps them out).

` + whoHelp,
		Args: func(c *cobra.Command, args []string) error {
			switch byUser := c.Flags().Changed("user"); {
			case byUser && (len(args) > 0 || user == ""):
				return errors.New("sessions revoke: want a session's ID, or --user USER, and not both")
			case !byUser && (len(args) != 1 || args[0] == ""):
				return fmt.Errorf("sessions revoke: got %d session ids, want one, or --user USER for all that a user has", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			client, err := connect.client(c)
			if err != nil {
				return err
			}
			if user == "" {
				err := client.Revoke(c.Context(), args[0])
				if errors.Is(err, admin.ErrNotFound) {
					return fmt.Errorf("there is no session %s: see sessions list for those that there are", printable(args[0]))
				}
				if err == nil {
					_, err = fmt.Fprintf(c.OutOrStdout(), "session %s has ended\n", printable(args[0]))
				}
				return err
			}
			done, err := client.SignOut(c.Context(), user)
			if err != nil {
				return explainUser(c, user, err)
			}
			warnOverlooked(c, user, &done)
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s is signed out everywhere; sessions ended: %d\n", nameOf(&done.User), done.Ended)
			return err
		},
	}
	revoke.Flags().StringVar(&user, "user", "", "end all sessions and refresh tokens of this `USER`: an e-mail address, or connector:ID")
	return revoke
}

// sessionList is how sessions are listed. It is never assigned to.
var sessionList = listing[admin.Session]{
	what:    "sessions",
	columns: []string{"ID", "USER", "CONNECTOR", "SIGNED IN", "LAST USE", "EXPIRES", "ADDRESS"},
	row: func(s admin.Session) []string {
		if s.Error != "" {
			return []string{s.ID, orDash(s.User), printable(s.Connector), "?", "?", "?", "?"}
		}
		return []string{
			s.ID, orDash(s.User), printable(s.Connector), s.SignedInAt.Format(time.RFC3339), s.LastActivity.Format(time.RFC3339), s.ExpiresAt.Format(time.RFC3339), orDash(s.Address),
		}
	},
	unread: func(s *admin.Session) (which, why string) {
		return s.ID + " of " + printable(s.Connector+":"+s.UserID), s.Error
	},
}
