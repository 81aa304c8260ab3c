package store

import (
	"context"
	"iter"
	"time"

	"github.com/dexidp/dex/storage"
)

// Users yields everybody who has signed in or was blocked, in no particular order, one after the other: nothing is held while the caller
// looks at one. With an *UnreadError comes who it is, by UserID and ConnectorID alone, and the others follow; after any other error it ends.
func (s *Store) Users(ctx context.Context) iter.Seq2[storage.UserIdentity, error] {
	return func(yield func(storage.UserIdentity, error) bool) {
		for i, err := range each(ctx, s, &identities) {
			if !yield(i.UserIdentity, err) {
				return
			}
		}
	}
}

// AllSessions yields all sessions as Users does users, expired ones too. With an *UnreadError come the ID and whose the session is.
func (s *Store) AllSessions(ctx context.Context) iter.Seq2[storage.AuthSession, error] {
	return each(ctx, s, &sessions)
}

// SessionIDs yields the ids of all sessions, of those that cannot be read, too. It ends after an error.
func (s *Store) SessionIDs(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for r, err := range s.driver.Driver.Scan(ctx, Query{Kind: KindSession}) {
			if !yield(r.ID, err) {
				return
			}
		}
	}
}

// each yields all values of a kind. It goes on after an *UnreadError, and ends after any other.
func each[T any](ctx context.Context, s *Store, k *kind[T]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for r, err := range s.driver.Scan(ctx, Query{Kind: k.name}) {
			var v T
			if err == nil {
				v, err = k.decode(r)
			}
			if k.named != nil && OnlyUnread(err) {
				v = k.named(r)
			}
			if !yield(v, err) {
				return
			}
		}
	}
}

// A Tally says how many sessions users have. It takes a few bytes for each user who has one, whatever the sessions hold.
type Tally struct{ byOwner map[string]int }

// Of returns how many a user has.
func (t Tally) Of(userID, connectorID string) int { return t.byOwner[pair(userID, connectorID)] }

// TallySessions counts the sessions that have not expired at now, those that cannot be read among them.
func (s *Store) TallySessions(ctx context.Context, now time.Time) (Tally, error) {
	t := Tally{map[string]int{}}
	for r, err := range s.driver.Driver.Scan(ctx, Query{Kind: KindSession}) {
		if err != nil {
			return Tally{}, err
		}
		if r.Expires.After(now) {
			t.byOwner[r.Owner]++
		}
	}
	return t, nil
}
