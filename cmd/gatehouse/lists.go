package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// A listing is a list of a running gatehouse, for people or for programs.
type listing[T any] struct {
	what    string // in the plural
	columns []string
	row     func(T) []string
	// unread says which item cannot be read, and why; "" for one that can.
	unread func(*T) (which, why string)
}

// tablePage is how many rows the columns are as wide as the widest of: more would have to be held.
const tablePage = 1000

// print writes the items as they come, at most limit of them (0: all). all has one more where there are more. It fails after the rest if some of the items cannot
// be read, and then it says which is the first of them.
func (l *listing[T]) print(c *cobra.Command, output string, limit int, all iter.Seq2[T, error]) error {
	write := l.table
	if output == "json" {
		write = l.json
	}
	n, broken, more := 0, 0, false
	var first string
	counted := func(yield func(T, error) bool) {
		for item, err := range all {
			if more = err == nil && limit > 0 && n == limit; more {
				return
			}
			if n++; err == nil {
				if which, why := l.unread(&item); why != "" {
					if broken++; broken == 1 {
						first = which + ": " + printable(why)
					}
				}
			}
			if !yield(item, err) {
				return
			}
		}
	}
	if err := write(c.OutOrStdout(), counted); err != nil {
		return err
	}
	if more {
		_, _ = fmt.Fprintf(c.ErrOrStderr(), "There are more %s than %d: --limit 0 lists all.\n", l.what, limit)
	}
	if broken > 0 {
		return fmt.Errorf("%d of the %s cannot be read, the first of them %s", broken, l.what, first)
	}
	return nil
}

// table writes items in columns.
func (l *listing[T]) table(to io.Writer, all iter.Seq2[T, error]) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, strings.Join(l.columns, "\t"))
	n := 0
	for item, err := range all {
		switch {
		case err != nil && n == 0: // no list, and not an empty one
			return err
		case err != nil:
			return errors.Join(w.Flush(), err)
		}
		_, _ = fmt.Fprintln(w, strings.Join(l.row(item), "\t"))
		if n++; n%tablePage == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	return w.Flush()
}

// json writes one array, item by item.
func (*listing[T]) json(to io.Writer, all iter.Seq2[T, error]) error {
	sep := "["
	for item, err := range all {
		if err != nil {
			return err
		}
		b, err := json.Marshal(item)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(to, "%s%s", sep, b); err != nil {
			return err
		}
		sep = ",\n"
	}
	if sep == "[" {
		_, err := fmt.Fprintln(to, "[]")
		return err
	}
	_, err := fmt.Fprintln(to, "]")
	return err
}

// listFlags are those of every list.
func listFlags(c *cobra.Command, output *string, limit *int) {
	c.Flags().StringVarP(output, "output", "o", "", "json for programs: with the names of all groups")
	c.Flags().IntVar(limit, "limit", 0, "at most `N`, whichever come first; 0: all")
}

func checkList(command, output string, limit int) error {
	if output != "" && output != "json" {
		return fmt.Errorf("%s: -o %q: want json, or nothing", command, output)
	}
	if limit < 0 {
		return fmt.Errorf("%s: --limit %d: want how many to list, or 0 for all", command, limit)
	}
	return nil
}

// oneMore is the limit to ask for, so that it is known whether there are more.
func oneMore(limit int) int {
	if limit == 0 {
		return 0
	}
	return limit + 1
}
