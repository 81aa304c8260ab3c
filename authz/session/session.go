// Package session is the gateway's view of live sessions: in memory, bounded, and told of every change.
package session

import (
	"context"
	"errors"
	"time"

	"gatehouse/authz/policy"
)

// ErrNotFound means that there is no such live session: it never was, has ended or has expired.
var ErrNotFound = errors.New("session: not found")

// A User is a user at a connector.
type User struct{ Connector, ID string }

// A Session is one signed-in browser. It is immutable.
type Session struct {
	ID             string
	User           User
	Identity       policy.Identity // Expiry is the absolute expiry
	SignedInAt     time.Time
	LastActivity   time.Time
	IdleExpiry     time.Time
	AbsoluteExpiry time.Time
	BlockedUntil   time.Time // the user is refused before this time
}

// A Change says that what is stored about a session or a user is no longer what it was.
type Change struct {
	Session string // id; empty: every session of User
	User    User   // may be empty where Session is not
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
