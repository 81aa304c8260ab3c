package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/dexidp/dex/storage"
)

// An UpstreamSession says what a session of ours came from: a session of an identity provider ("sid", OpenID Connect Back-Channel Logout 1.0
// section 2.1), or a subject there ("sub") where that is not the id of the user.
type UpstreamSession struct {
	SessionID    string // ours
	ConnectorID  string
	Claim, Value string // of the provider's ID Token
	Expiry       time.Time
}

// A seen is something that is good once, or that has happened.
type seen struct {
	ID     string // hash
	Expiry time.Time
	At     time.Time `json:",omitzero"` // the last time that it happened
}

// All are never assigned to.
var (
	upstreamSessions = kind[UpstreamSession]{
		name:    KindUpstream,
		id:      func(v *UpstreamSession) string { return upstreamID(v.SessionID, v.Claim) },
		user:    func(v *UpstreamSession) (string, string) { return pair(v.Claim, v.Value), v.ConnectorID },
		expires: func(v *UpstreamSession) time.Time { return v.Expiry },
		owned:   true,
	}
	seenOnce = kind[seen]{
		name:    KindSeen,
		id:      func(v *seen) string { return v.ID },
		expires: func(v *seen) time.Time { return v.Expiry },
	}
)

func upstreamID(sessionID, claim string) string { return pair(claim, sessionID) }

// PutUpstreamSession stores v in place of what was known of the session by that claim.
func (s *Store) PutUpstreamSession(ctx context.Context, v UpstreamSession) error {
	u := updating{id: upstreamID(v.SessionID, v.Claim), create: true}
	return update(ctx, s, &upstreamSessions, u, func(UpstreamSession) (UpstreamSession, error) { return v, nil })
}

// GetUpstreamSession returns what is known of a session of ours by a claim.
func (s *Store) GetUpstreamSession(ctx context.Context, sessionID, claim string) (UpstreamSession, error) {
	return get(ctx, s, &upstreamSessions, upstreamID(sessionID, claim))
}

// UpstreamSessions returns all whose claim has that value at a connector, by an index.
func (s *Store) UpstreamSessions(ctx context.Context, connectorID, claim, value string) ([]UpstreamSession, error) {
	return list(ctx, s, &upstreamSessions, pair(pair(claim, value), connectorID))
}

// DeleteUpstreamSession forgets what is known of a session of ours by a claim; ErrNotFound if that is nothing.
func (s *Store) DeleteUpstreamSession(ctx context.Context, sessionID, claim string) error {
	return remove(ctx, s, &upstreamSessions, upstreamID(sessionID, claim))
}

func seenID(purpose, id string) string {
	sum := sha256.Sum256([]byte(pair(purpose, id)))
	return hex.EncodeToString(sum[:])
}

// Seen reports whether MarkSeen was called for id.
func (s *Store) Seen(ctx context.Context, purpose, id string) (bool, error) {
	_, err := get(ctx, s, &seenOnce, seenID(purpose, id))
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// MarkSeen remembers id until expiry. first is false if it is known already.
func (s *Store) MarkSeen(ctx context.Context, purpose, id string, expiry time.Time) (first bool, err error) {
	err = create(ctx, s, &seenOnce, &seen{ID: seenID(purpose, id), Expiry: expiry})
	if errors.Is(err, storage.ErrAlreadyExists) {
		return false, nil
	}
	return err == nil, err
}

// MarkLoggedOut remembers until expiry that an upstream has ended what has that value of a claim, at a time.
func (s *Store) MarkLoggedOut(ctx context.Context, connectorID, claim, value string, at, expiry time.Time) error {
	id := loggedOutID(connectorID, claim, value)
	return update(ctx, s, &seenOnce, updating{id: id, create: true}, func(v seen) (seen, error) {
		if v.At.After(at) {
			at = v.At
		}
		return seen{ID: id, At: at, Expiry: expiry}, nil
	})
}

// LoggedOutAt is when MarkLoggedOut says that it was last; the zero time where it says nothing.
func (s *Store) LoggedOutAt(ctx context.Context, connectorID, claim, value string) (time.Time, error) {
	v, err := get(ctx, s, &seenOnce, loggedOutID(connectorID, claim, value))
	if errors.Is(err, storage.ErrNotFound) {
		return time.Time{}, nil
	}
	return v.At, err
}

func loggedOutID(connectorID, claim, value string) string {
	return seenID(pair("logged out", pair(connectorID, claim)), value)
}
