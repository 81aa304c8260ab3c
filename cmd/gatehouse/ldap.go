package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"gatehouse/connectors/ldap"
	"gatehouse/internal/config"
)

const ldapType = "ldap"

func ldapCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ldap", Short: "Help with connectors of type ldap", Args: cobra.NoArgs, RunE: showHelp,
	}
	c.AddCommand(ldapTestCommand())
	return c
}

func ldapTestCommand() *cobra.Command {
	var path, id, user string
	var withPassword bool
	c := &cobra.Command{
		Use: "test --config FILE --connector ID [--user U [--password-stdin]]", Short: "Try a directory step by step and tell the fix for what fails",
		Long: `Try everything that signing in with a directory takes, step by step, with times: the configuration, each server and its
certificate, the service account, what is searched for, then a user's entry, groups and account state. What fails is told with its
fix. Nothing is changed in the directory. The exit code is 0 if every step went well, else 1.

  gatehouse ldap test --config gatehouse.yaml --connector corp
  gatehouse ldap test --config gatehouse.yaml --connector corp --user alice
  gatehouse ldap test --config gatehouse.yaml --connector corp --user alice --password-stdin

With --password-stdin the user's password is read from standard input, or asked for, and tried once. If it is wrong, the directory
counts that as it counts every wrong password.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if withPassword && user == "" {
				return errors.New("ldap test: --password-stdin needs --user: a password is somebody's")
			}
			l, err := load(c.Context(), c, path)
			if err != nil {
				return err
			}
			raw, err := ldapConnector(l.cfg, id)
			if err != nil {
				return err
			}
			password := ""
			if withPassword {
				if password, err = readPassword(c); err != nil {
					return fmt.Errorf("ldap test: read the password: %w", err)
				}
				if password == "" {
					return errors.New("ldap test: no password on standard input: want one line")
				}
			}
			p := &stepPrinter{out: c.OutOrStdout()}
			ldap.Diagnose(c.Context(), raw, ldap.Options{}, user, password, p.print)
			return p.end()
		},
	}
	c.Flags().StringVar(&path, "config", "", "the configuration file (required)")
	c.Flags().StringVar(&id, "connector", "", "the id of the connector; may be left out where there is one of type ldap")
	c.Flags().StringVar(&user, "user", "", "what a user types as user name")
	c.Flags().BoolVar(&withPassword, "password-stdin", false, "read the user's password from standard input and try it once")
	_ = c.MarkFlagRequired("config") // the flag is there
	return c
}

// ldapConnector returns the configuration of the connector that is meant.
func ldapConnector(cfg *config.Config, id string) ([]byte, error) {
	var ids []string
	for _, c := range cfg.Connectors {
		if c.Type == ldapType {
			ids = append(ids, c.ID)
		}
	}
	switch {
	case len(ids) == 0:
		return nil, errors.New("ldap test: the file has no connector of type ldap")
	case id == "" && len(ids) == 1:
		id = ids[0]
	case id == "":
		return nil, fmt.Errorf("ldap test: there are several connectors of type ldap: say --connector %s", strings.Join(ids, " or "))
	case !slices.Contains(ids, id):
		return nil, fmt.Errorf("ldap test: there is no connector %q of type ldap: want %s", id, strings.Join(ids, " or "))
	}
	at := slices.IndexFunc(cfg.Connectors, func(c config.Connector) bool { return c.ID == id })
	return cfg.Connectors[at].Config.JSON(), nil
}

// A stepPrinter writes steps for people, each when it is done.
type stepPrinter struct {
	out           io.Writer
	steps, failed int
	err           error // of writing
}

func (p *stepPrinter) print(s ldap.Step) {
	p.steps++
	mark, words := "ok  ", s.Detail
	switch {
	case s.Err != nil:
		p.failed++
		mark, words = "FAIL", s.Err.Error()
		if s.Detail != "" {
			words += ": " + s.Detail
		}
	case s.Fix != "":
		mark = "note"
	}
	took := fmt.Sprintf("%.1f ms", float64(s.Took)/float64(time.Millisecond))
	p.line("%s  %-34s %8s  %s", mark, s.Name, took, oneLine(words))
	if s.Fix != "" {
		p.line("      -> %s", oneLine(s.Fix))
	}
}

func (p *stepPrinter) line(format string, args ...any) {
	if _, err := fmt.Fprintln(p.out, strings.TrimRight(fmt.Sprintf(format, args...), " ")); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *stepPrinter) end() error {
	switch {
	case p.failed > 0:
		p.line("%d of %d steps failed", p.failed, p.steps)
		return errSaid
	case p.err != nil:
		return p.err
	}
	p.line("all %d steps went well", p.steps)
	return p.err
}

// oneLine makes one line of an error of several, without what a terminal obeys: a server's certificate can have anything in its names.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control) {
			return '?'
		}
		return r
	}, s)
}
