// Package connectors is the contract between Gatehouse and whatever vouches for its users: a directory, an
// upstream identity provider, the static users.
package connectors

import (
	"fmt"
	"time"
)

// A Reason is why a sign-in was refused, in a bounded set of words for pages, metrics and the audit log.
type Reason string

// The reasons. A page tells a stranger no more than the reason itself.
const (
	WrongCredentials Reason = "wrong-credentials" //nolint:gosec // G101: a word, no credential; user name or password: which of them is not told
	Blocked          Reason = "blocked"           // an administrator has blocked the user
	NotAllowed       Reason = "not-allowed"       // known and proven, but in none of the connector's required groups
	Throttled        Reason = "throttled"         // too many failures; nothing was checked
	Busy             Reason = "busy"              // too many sign-ins at once; nothing was checked
	Unavailable      Reason = "unavailable"       // the connector could not find out
	UpstreamRefused  Reason = "upstream-refused"  // the upstream identity provider said no
	NegotiateRefused Reason = "negotiate-refused" // the ticket that the browser sent by itself; nothing is known of its user
	ThrottledAccount Reason = "throttled-account" // as Throttled, by other spellings of the user name
	Unaskable        Reason = "unaskable"         // of an Answer only: nobody can be asked who the user is now, and nothing is known against them
)

// The states of an account that keep its user out. Pages tell them to whoever has given the right password, and to nobody else;
// AccountLocked is never told, since directories say it without looking at the password.
const (
	AccountDisabled    Reason = "account-disabled"
	AccountExpired     Reason = "account-expired"
	AccountLocked      Reason = "account-locked" // too many failures, at the directory
	PasswordExpired    Reason = "password-expired"
	PasswordMustChange Reason = "password-must-change"
	PasswordRejected   Reason = "password-rejected" // the new password does not meet the directory's rules
	OutsideHours       Reason = "outside-hours"     // may not sign in at this time
	OtherWorkstation   Reason = "other-workstation" // may sign in from named computers only
	PasswordChanged    Reason = "password-changed"  // of the end of sessions only: they began with another password than the user has now
	Gone               Reason = "gone"              // there is no such user any more, or the connector's filter leaves them out
)

// Untold reports whether pages do not tell r from WrongCredentials: r says of an account, without the right password, that it is there.
func (r Reason) Untold() bool {
	switch r {
	case WrongCredentials, AccountLocked, Gone, ThrottledAccount:
		return true
	default:
		return false
	}
}

// A Refusal is the error of a sign-in that did not succeed.
type Refusal struct {
	Reason Reason
	// RetryAfter is when to try again, for Throttled and Busy.
	RetryAfter time.Duration
	// Detail is what an upstream identity provider says to the user. It is untrusted text.
	Detail string
	// Changeable says that the user can choose a new password here: with PasswordExpired, PasswordMustChange and PasswordRejected.
	Changeable bool
	// Err is the cause, for the log of the operator.
	Err error
}

func (r *Refusal) Error() string {
	if r.Err != nil {
		return fmt.Sprintf("sign-in refused: %s: %v", r.Reason, r.Err)
	}
	return "sign-in refused: " + string(r.Reason)
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// An Identity is what a connector says of a user now.
type Identity struct {
	UserID            string // unique at the connector and never reassigned
	PreferredUsername string
	Name              string
	Email             string
	EmailVerified     bool
	Groups            []string
	PasswordSet       PasswordSet
}

// PasswordSet says when the user's password was set, in the clock of whoever keeps it: a later one is greater, and nothing else can be made of it. The
// unit is a connector's, and stays the same whatever it connects to. At a sign-in it is from before the password was checked: what was checked is that one or a later one, and never a former one.
type PasswordSet int64

// What is no time.
const (
	// PasswordReset: a new one must be chosen at the next sign-in. Active Directory forgets the time then, and does not tell whether an administrator has
	// set another password as well, as is usual.
	PasswordReset PasswordSet = -1
	// PasswordUnknown: whoever keeps the password does not tell.
	PasswordUnknown PasswordSet = 0
	// PasswordNeverSet: the user's entry has no such time, since the password was never changed where that is noted. It is less than every time.
	PasswordNeverSet PasswordSet = 1
)

// An Answer is what Lookup found out about one user.
type Answer struct {
	Identity Identity // valid where Err is nil
	// Err is why the user may not go on: Gone, or a state of the account. Unavailable means that it is not known.
	Err *Refusal
	// At is when the answer was given, where that was before it was asked for; zero: now.
	At time.Time
}

// A Change says that a directory's entry has changed.
type Change struct {
	UserID string // "": it is not known whose; anybody's groups may be others now
}
