package store

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/dexidp/dex/storage"
)

// A Notice says that a client has yet to be told of the end of a session (OpenID Connect Back-Channel Logout 1.0). It holds no token:
// that is signed when it is sent.
type Notice struct {
	ID, ClientID, SessionID, UserID, ConnectorID string

	Created time.Time
	Due     time.Time // it is sent from then on; whoever sends it moves this first, see ClaimNotice
	Expiry  time.Time // after that it would tell the client nothing new
	Tries   int       // how often it was claimed
}

// outbox is never assigned to.
var outbox = kind[Notice]{
	name:    KindOutbox,
	id:      func(v *Notice) string { return v.ID },
	user:    func(v *Notice) (string, string) { return v.UserID, v.ConnectorID },
	expires: func(v *Notice) time.Time { return v.Expiry.Add(keptAfter) },
}

const (
	// keptAfter is how long a notice stays after its expiry: whoever sends them gives it up, and says so; garbage collection is for
	// those that nobody looks at.
	keptAfter = time.Hour
	// noticeBatch is how many notices one write has: few enough for any database's transaction.
	noticeBatch = 32
)

// EndSession deletes a session and stores what its clients have yet to be told, in one transaction. ErrNotFound means that the session was gone.
//
// Over a Sequential driver, and beyond noticeBatch notices, those are stored before the session is deleted, so that none is lost if it stops half way. Whoever
// sends a notice therefore looks whether its session is gone.
func (s *Store) EndSession(ctx context.Context, id string, notices []Notice) error {
	ops := make([]Op, len(notices))
	for i := range notices {
		r, err := outbox.encode(&notices[i])
		if err != nil {
			return err
		}
		ops[i] = Op{Verb: Create, Record: r}
	}
	with := min(len(ops), noticeBatch)
	if _, sequential := s.driver.Driver.(Sequential); sequential {
		with = 0
	}
	r, err := s.driver.Read(ctx, KindSession, id)
	if err != nil && !errors.Is(err, ErrSealed) {
		return err
	}
	var before *storage.AuthSession // one that cannot be decoded can be deleted all the same
	if v, err := sessions.decode(r); err == nil {
		before = &v
	}
	for batch := range slices.Chunk(ops[with:], noticeBatch) {
		if _, err := s.driver.Write(ctx, batch); err != nil {
			return err
		}
	}
	del := Op{Verb: Delete, Record: Record{Kind: KindSession, ID: id}, Changes: sessions.changes(id, before, nil)}
	return s.write(ctx, del, ops[:with]...)
}

// Notices calls f for every notice, in no order, until it returns false. There are few of them at most times. One that cannot be read holds up no
// other: the error comes at the end.
func (s *Store) Notices(ctx context.Context, f func(Notice) bool) error {
	var unread error
	for r, err := range s.driver.Scan(ctx, Query{Kind: KindOutbox}) {
		var v Notice
		if err == nil {
			v, err = outbox.decode(r)
		}
		if err != nil {
			unread = err
			continue
		}
		if !f(v) {
			break
		}
	}
	return unread
}

// errNotDue ends the update of a notice that somebody else has claimed.
var errNotDue = errors.New("store: notice is not due")

// ClaimNotice takes a notice that is due at now, to send it: until the lease is over it is due for nobody else, and then again for everybody, unless it
// is moved or deleted before. Of several that claim it at once, in whatever process, one succeeds. ok is false for the others.
func (s *Store) ClaimNotice(ctx context.Context, id string, now time.Time, lease time.Duration) (n Notice, ok bool, err error) {
	err = update(ctx, s, &outbox, updating{id: id}, func(v Notice) (Notice, error) {
		if v.Due.After(now) {
			return v, errNotDue
		}
		v.Due = now.Add(lease)
		v.Tries++
		n = v
		return v, nil
	})
	switch {
	case errors.Is(err, errNotDue), errors.Is(err, storage.ErrNotFound):
		return Notice{}, false, nil
	case err != nil:
		return Notice{}, false, err
	}
	return n, true, nil
}

// DeferNotice makes a claimed notice due at another time.
func (s *Store) DeferNotice(ctx context.Context, id string, due time.Time) error {
	return update(ctx, s, &outbox, updating{id: id}, func(v Notice) (Notice, error) {
		v.Due = due
		return v, nil
	})
}

// DeleteNotice deletes a notice; ErrNotFound if it is gone.
func (s *Store) DeleteNotice(ctx context.Context, id string) error {
	return remove(ctx, s, &outbox, id)
}
