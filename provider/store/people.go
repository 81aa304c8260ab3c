package store

import (
	"context"
	"iter"
	"time"

	"github.com/dexidp/dex/storage"
)

// Users yields everybody who has signed in or was blocked, in no particular order, one after the other: nothing is held while the caller
// looks at one. It ends after an error.
func (s *Store) Users(ctx context.Context) iter.Seq2[storage.UserIdentity, error] {
	return func(yield func(storage.UserIdentity, error) bool) {
		for i, err := range each(ctx, s, &identities) {
			if !yield(i.UserIdentity, err) {
				return
			}
		}
	}
}

// AllSessions yields all sessions as Users does users, expired ones too.
func (s *Store) AllSessions(ctx context.Context) iter.Seq2[storage.AuthSession, error] {
	return each(ctx, s, &sessions)
}

func each[T any](ctx context.Context, s *Store, k *kind[T]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for r, err := range s.driver.Scan(ctx, Query{Kind: k.name}) {
			var v T
			if err == nil {
				v, err = k.decode(r)
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// A Tally says how many sessions users have. It takes a few bytes for each user who has one, whatever the sessions hold.
type Tally struct{ byOwner map[string]int }

// Of returns how many a user has.
func (t Tally) Of(userID, connectorID string) int { return t.byOwner[pair(userID, connectorID)] }

// TallySessions counts the sessions that have not expired at now.
func (s *Store) TallySessions(ctx context.Context, now time.Time) (Tally, error) {
	t := Tally{map[string]int{}}
	for r, err := range s.driver.Scan(ctx, Query{Kind: KindSession}) {
		if err != nil {
			return Tally{}, err
		}
		if r.Expires.After(now) {
			t.byOwner[r.Owner]++
		}
	}
	return t, nil
}
