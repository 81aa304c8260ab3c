// Package session is the gateway's view of live sessions: in memory, bounded, and told of every change.
//
// The store is the truth. A View keeps the sessions that were seen lately, so that a request costs no read;
// it forgets what the store says has changed, and looks at the expiry itself at every request.
package session

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"gatehouse/authz/policy"
)

// ErrNotFound means that there is no such live session: it never was, has ended or has expired.
var ErrNotFound = errors.New("session: not found")

// ErrBlocked means that the session is live and its user is refused at present.
var ErrBlocked = errors.New("session: the user is blocked")

// ErrClosed is the cause of an *UnavailableError after Close.
var ErrClosed = errors.New("session: view is closed")

// ErrSilent is the cause of an *UnavailableError while the store has been silent for too long.
var ErrSilent = errors.New("session: the store has been silent for longer than the grace")

// An UnavailableError means that it could not be found out whether a session is live. The request is refused
// with 503: it is neither let through nor sent to sign in.
type UnavailableError struct{ Err error }

func (e *UnavailableError) Error() string { return "session: cannot be verified: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

// A User is a user at a connector.
type User struct{ Connector, ID string }

// A Voucher knows how long ago somebody who can tell has said who a user is. The sessions of a user share it.
type Voucher interface {
	// Vouch returns nil at once where what is known of the user is good at now for a session that began with a sign-in at signedIn; else it
	// waits for that to be found out, and reports that it has waited: what is stored of the user may be something else then. ErrNotFound
	// means that the session is to end, every other error that it could not be found out.
	Vouch(ctx context.Context, signedIn, now time.Time) (waited bool, err error)
}

// A Session is one signed-in browser. It is immutable but for Memo.
type Session struct {
	ID             string
	User           User
	Identity       policy.Identity // Expiry is the absolute expiry
	SignedInAt     time.Time
	LastActivity   time.Time
	IdleExpiry     time.Time // dead at this time, unless there is activity before; a zero time is dead
	AbsoluteExpiry time.Time // dead at this time
	BlockedUntil   time.Time // the user is refused before this time
	Voucher        Voucher   // nil: nobody is asked about the user after the sign-in

	// Memo is for whoever looks sessions up: what it has made of this one, kept as long as the session is in memory. After activity it is what was
	// made of the session before that.
	Memo atomic.Value
}

// compact returns a copy of s whose strings stand in one piece of memory: a view holds many sessions, and the garbage
// collector looks at each piece.
func (s *Session) compact() *Session {
	c := &Session{
		ID: s.ID, User: s.User, Identity: s.Identity, SignedInAt: s.SignedInAt, LastActivity: s.LastActivity,
		IdleExpiry: s.IdleExpiry, AbsoluteExpiry: s.AbsoluteExpiry, BlockedUntil: s.BlockedUntil, Voucher: s.Voucher,
	}
	c.Identity.Groups = slices.Clone(s.Identity.Groups)
	i := &c.Identity
	all := []*string{&c.ID, &c.User.ID, &i.UserID, &c.User.Connector, &i.Connector, &i.Email, &i.Name, &i.PreferredUsername}
	for g := range i.Groups {
		all = append(all, &i.Groups[g])
	}
	var b strings.Builder
	size := 0
	for _, text := range all {
		size += len(*text)
	}
	b.Grow(size)
	for _, text := range all {
		b.WriteString(*text)
	}
	rest := b.String()
	for _, text := range all {
		*text, rest = rest[:len(*text)], rest[len(*text):]
	}
	return c
}

// A Change says that what is stored about a session or a user is no longer what it was. Activity alone is no change.
type Change struct {
	Session string // id; empty: every session of User
	User    User   // may be empty where Session is not; both empty: every session
}

// A Store is the provider's record of sessions: the truth.
type Store interface {
	// Session returns a stored session, expired or not, or ErrNotFound.
	Session(ctx context.Context, id string) (*Session, error)
	// Touch records activity at the given time and returns the session after it. It never revives an ended session: ErrNotFound.
	Touch(ctx context.Context, id string, at time.Time) (*Session, error)
	// Subscribe calls f for each change, after it is stored and before the call that made it returns.
	Subscribe(f func(Change)) (cancel func())
}
