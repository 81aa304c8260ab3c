package store

import (
	"errors"
	"fmt"
)

// An UnreadError is about one record that is there and cannot be read: it does not open under the keys that there are (then it is an ErrSealed), or is not what
// its kind is stored as. Nobody may take it for a record that is not there. Its text has no id, since that of a session is a secret.
type UnreadError struct {
	Kind Kind
	Err  error
}

func (e *UnreadError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong with the record.
func (e *UnreadError) Unwrap() error { return e.Err }

// OnlyUnread reports whether err tells of nothing but records that cannot be read, one or several: the storage answers, and to try again at once
// changes nothing. It is false for nil.
func OnlyUnread(err error) bool {
	if err == nil {
		return false
	}
	switch e := err.(type) { //nolint:errorlint // it walks the tree: of errors that are joined each has to be one
	case *UnreadError:
		return true
	case interface{ Unwrap() []error }:
		for _, part := range e.Unwrap() {
			if !OnlyUnread(part) {
				return false
			}
		}
		return len(e.Unwrap()) > 0
	}
	return OnlyUnread(errors.Unwrap(err))
}

// Unreads collects what is told of records that cannot be read: the first, and how many there are, so that a store without its key fills neither
// memory nor the log. The zero value is ready.
type Unreads struct {
	n     int
	first error
}

// Add notes an error that is OnlyUnread. It reports false for any other, and notes nothing.
func (u *Unreads) Add(err error) bool {
	if !OnlyUnread(err) {
		return false
	}
	if u.n++; u.n == 1 {
		u.first = err
	}
	return true
}

// N is how many were noted.
func (u *Unreads) N() int { return u.n }

// Err is one error for all, OnlyUnread again; nil if there are none.
func (u *Unreads) Err() error {
	switch u.n {
	case 0:
		return nil
	case 1:
		return u.first
	}
	return fmt.Errorf("%d records cannot be read, the first: %w", u.n, u.first)
}
