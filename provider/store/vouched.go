package store

import (
	"context"
	"errors"
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

// Vouch records all of list in one write, or nothing. It is no change of anything: nobody is told. (Over a Sequential driver an
// error may leave some of it, each of which is true by itself.)
func (s *Store) Vouch(ctx context.Context, list []Vouched) error {
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
