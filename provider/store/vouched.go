package store

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/dexidp/dex/storage"
)

// A Vouched says when a connector last said that a user may go on. It is kept for as long as that could still matter.
type Vouched struct {
	UserID, ConnectorID string
	At, Expiry          time.Time
}

// vouches is never assigned to.
var vouches = kind[Vouched]{
	name:    KindVouched,
	id:      func(v *Vouched) string { return userRecord(v.UserID, v.ConnectorID) },
	user:    func(v *Vouched) (string, string) { return v.UserID, v.ConnectorID },
	expires: func(v *Vouched) time.Time { return v.Expiry },
}

// vouchBatch is how many users one write is about: few enough for any database's transaction.
const vouchBatch = 32

// Vouch records all of list, in several writes if it is long: after an error some of them may be recorded, each of
// which is true by itself. It is no change of anything: nobody is told.
func (s *Store) Vouch(ctx context.Context, list []Vouched) error {
	for batch := range slices.Chunk(list, vouchBatch) {
		if err := s.vouch(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) vouch(ctx context.Context, list []Vouched) error {
	ops := make([]Op, len(list))
	for i := range list {
		r, err := vouches.encode(&list[i])
		if err != nil {
			return err
		}
		ops[i] = Op{Verb: Create, Record: r}
		old, err := s.driver.Read(ctx, KindVouched, r.ID)
		switch {
		case err == nil:
			ops[i].Verb, ops[i].Record.Version = Put, old.Version
		case !errors.Is(err, storage.ErrNotFound):
			return err
		}
	}
	_, err := s.driver.Write(ctx, ops)
	return err
}

// VouchedAt returns when a user was last vouched for, the zero time if that is not known.
func (s *Store) VouchedAt(ctx context.Context, userID, connectorID string) (time.Time, error) {
	v, err := get(ctx, s, &vouches, userRecord(userID, connectorID))
	if errors.Is(err, storage.ErrNotFound) {
		return time.Time{}, nil
	}
	return v.At, err
}
