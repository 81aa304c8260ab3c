package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/term"
)

// hashCost is that of new static users: about a quarter of a second of one core per sign-in.
const hashCost = 12

func hashCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hash-password", Short: "Read a password from standard input and print its hash for staticPasswords",
		Long: `Read one line, a password, from standard input and print its bcrypt hash, to be the value of "hash" in
staticPasswords. The password does not appear in the process list or the shell's history:

  gatehouse hash-password          type the password, which is not shown, and press Enter
  gatehouse hash-password < file`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			password, err := readPassword(c)
			if err != nil {
				return fmt.Errorf("read the password: %w", err)
			}
			switch {
			case password == "":
				return errors.New("hash-password: no password on standard input: want one line")
			case len(password) > 72:
				return fmt.Errorf("hash-password: the password has %d bytes, want at most 72: bcrypt ignores the rest", len(password))
			}
			hash, err := bcrypt.GenerateFromPassword([]byte(password), hashCost)
			if err != nil {
				return fmt.Errorf("hash-password: %w", err)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), string(hash))
			return err
		},
	}
}

// readPassword reads one line; from a terminal, asking for it and without showing it.
func readPassword(c *cobra.Command) (string, error) {
	if f, ok := c.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		_, _ = fmt.Fprint(c.ErrOrStderr(), "Password: ")
		b, err := term.ReadPassword(int(f.Fd()))
		_, _ = fmt.Fprintln(c.ErrOrStderr())
		return string(b), err
	}
	line, err := bufio.NewReader(io.LimitReader(c.InOrStdin(), 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}
