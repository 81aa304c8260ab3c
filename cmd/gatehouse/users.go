package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/internal/admin"
)

// whoHelp says how commands take users.
const whoHelp = `USER is an e-mail address, or connector:ID with the user id that "users list" shows, such as
ldap:1f3870be. An address that several users have is refused, with a list of them: nobody is hit by
accident.`

func usersCommand() *cobra.Command {
	var connect connection
	c := &cobra.Command{
		Use: "users", Short: "List, block and unblock users of a running gatehouse", Args: cobra.NoArgs, RunE: showHelp,
		Long: `List, block and unblock users of a running gatehouse, through its admin listener. One replica is
enough: the others obey within a second.

` + whoHelp + `

  gatehouse users list --config gatehouse.yaml
  gatehouse users block alice@example.com --config gatehouse.yaml
  gatehouse users block ldap:1f3870be --for 24h --admin 127.0.0.1:5559
  gatehouse users unblock alice@example.com --config gatehouse.yaml`,
	}
	connect.flags(c)
	c.AddCommand(usersList(&connect), usersBlock(&connect), usersUnblock(&connect))
	return c
}

func usersList(connect *connection) *cobra.Command {
	var output string
	var limit int
	var blocked bool
	c := &cobra.Command{
		Use: "list", Short: "List everybody who has signed in, and who is blocked", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkList("users list", output, limit); err != nil {
				return err
			}
			client, err := connect.client(c)
			if err != nil {
				return err
			}
			return userList.print(c, output, limit, client.Users(c.Context(), blocked, oneMore(limit)))
		},
	}
	listFlags(c, &output, &limit)
	c.Flags().BoolVar(&blocked, "blocked", false, "only those who are blocked now")
	return c
}

func usersBlock(connect *connection) *cobra.Command {
	var until string
	var period time.Duration
	c := &cobra.Command{
		Use: "block USER", Short: "Refuse a user everywhere, and end all sessions and refresh tokens of theirs", Args: oneUser,
		Long: `Refuse a user everywhere (sign-in, single sign-on, refresh, token exchange, every app) and end all
that they have: sessions and refresh tokens. The block lasts until "users unblock", or as long as
--until or --for says. Somebody who never signed in can be blocked, too, as connector:ID.

` + whoHelp,
		RunE: func(c *cobra.Command, args []string) error {
			end, err := blockEnd(until, period, c.Flags().Changed("for"), time.Now())
			if err != nil {
				return err
			}
			client, err := connect.client(c)
			if err != nil {
				return err
			}
			done, err := client.Block(c.Context(), args[0], end)
			if err != nil {
				return explainUser(c, args[0], err)
			}
			warnOverlooked(c, args[0], &done)
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s is blocked %s; sessions ended: %d\n", nameOf(&done.User), untilWhen(done.User.BlockedUntil), done.Ended)
			if err == nil && done.User.User == "" && done.User.LastSignIn.IsZero() { // else the id is known to be right
				_, err = fmt.Fprintln(c.OutOrStdout(), "Nobody of this id has signed in so far: it must be the id that the connector will give.")
			}
			return err
		},
	}
	c.Flags().StringVar(&until, "until", "", "`TIME` when the block ends: 2026-01-31T18:00:00Z, or 2026-01-31 for the start of that day in the time zone of this command")
	c.Flags().DurationVar(&period, "for", 0, "`DURATION` for which it lasts, such as 45m or 72h")
	return c
}

// blockEnd is when a block ends; the zero time: it does not by itself.
func blockEnd(until string, period time.Duration, hasPeriod bool, now time.Time) (time.Time, error) {
	switch {
	case hasPeriod && until != "":
		return time.Time{}, errors.New("users block: --for and --until say the same thing in two ways: want one of them")
	case hasPeriod && period <= 0:
		return time.Time{}, fmt.Errorf("users block: --for %s: want more than nothing, such as 72h", period)
	case hasPeriod:
		return now.Add(period).UTC(), nil
	case until == "":
		return time.Time{}, nil
	}
	end, err := time.Parse(time.RFC3339, until)
	if err != nil {
		if end, err = time.ParseInLocation(time.DateOnly, until, time.Local); err != nil {
			return time.Time{}, fmt.Errorf("users block: --until %q: want a time such as 2026-01-31T18:00:00Z, or a day such as 2026-01-31", until)
		}
	}
	if !end.After(now) {
		return time.Time{}, fmt.Errorf("users block: --until %s is over already: it is %s now", until, now.Format(time.RFC3339))
	}
	return end.UTC(), nil
}

func usersUnblock(connect *connection) *cobra.Command {
	return &cobra.Command{
		Use: "unblock USER", Short: "Let a blocked user sign in again", Args: oneUser,
		Long: "Let a blocked user sign in again. Sessions and refresh tokens that the block has ended stay so.\n\n" + whoHelp,
		RunE: func(c *cobra.Command, args []string) error {
			client, err := connect.client(c)
			if err != nil {
				return err
			}
			done, err := client.Unblock(c.Context(), args[0])
			if err != nil {
				return explainUser(c, args[0], err)
			}
			warnOverlooked(c, args[0], &done)
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s may sign in again\n", nameOf(&done.User))
			return err
		},
	}
}

// oneUser is cobra.ExactArgs(1), told for people.
func oneUser(c *cobra.Command, args []string) error {
	switch {
	case len(args) != 1:
		return fmt.Errorf("%s: got %d arguments, want one user: an e-mail address, or connector:ID", c.CommandPath(), len(args))
	case args[0] == "":
		return fmt.Errorf("%s: the user is empty: want an e-mail address, or connector:ID", c.CommandPath())
	}
	return nil
}

// explainUser says what to do about a name that is nobody's, or several users'.
func explainUser(c *cobra.Command, name string, err error) error {
	if several, ok := errors.AsType[*admin.AmbiguousError](err); ok {
		w := c.ErrOrStderr()
		_, _ = fmt.Fprintf(w, "gatehouse: %s is the name of several users, and nothing was done. Say which of them:\n", printable(name))
		for i := range several.Candidates {
			u := &several.Candidates[i]
			_, _ = fmt.Fprintf(w, "  %s\n", printable(u.Connector+":"+u.UserID)+describeCandidate(u))
		}
		return errSaid
	}
	if errors.Is(err, admin.ErrNoUser) {
		return fmt.Errorf("nobody who has signed in or was blocked is known as %s: see users list, or say connector:ID, with a connector of the configuration", printable(name))
	}
	return err
}

// warnOverlooked says that somebody else may have the name by which a user was found.
func warnOverlooked(c *cobra.Command, name string, done *admin.Outcome) {
	if done.Overlooked > 0 {
		_, _ = fmt.Fprintf(c.ErrOrStderr(), "%d of the stored users cannot be read, and may be known as %s, too: see users list\n", done.Overlooked, printable(name))
	}
}

func describeCandidate(u *admin.User) string {
	if u.LastSignIn.IsZero() {
		return "  (never signed in)"
	}
	return fmt.Sprintf("  (%s, last sign-in %s)", printable(u.User), u.LastSignIn.Format(time.RFC3339))
}

// nameOf is a user in one line: the e-mail address, and what is unique.
func nameOf(u *admin.User) string {
	id := printable(u.Connector + ":" + u.UserID)
	if u.User == "" {
		return id
	}
	return printable(u.User) + " (" + id + ")"
}

// lastYear is that of a block without an end.
const lastYear = 9999

func untilWhen(t time.Time) string {
	if t.Year() >= lastYear {
		return "until unblocked"
	}
	return "until " + t.Format(time.RFC3339)
}

// userList is how users are listed. It is never assigned to.
var userList = listing[admin.User]{
	what:    "users",
	columns: []string{"USER", "CONNECTOR", "USER ID", "GROUPS", "LAST SIGN-IN", "BLOCKED", "SESSIONS"},
	row: func(u admin.User) []string {
		groups, last, blocked := strconv.Itoa(len(u.Groups)), orNever(u.LastSignIn), "-"
		if !u.BlockedUntil.IsZero() {
			blocked = untilWhen(u.BlockedUntil)
		}
		if u.Error != "" {
			groups, last, blocked = "?", "?", "?"
		}
		return []string{orDash(u.User), printable(u.Connector), printable(u.UserID), groups, last, blocked, strconv.Itoa(u.Sessions)}
	},
	unread: func(u *admin.User) (which, why string) { return nameOf(u), u.Error },
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

func orNever(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.RFC3339)
}

// printable quotes what would disturb a terminal or a table.
func printable(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) || r == ' ' }) {
		return strconv.Quote(s)
	}
	return s
}
