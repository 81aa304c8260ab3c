package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/dexidp/dex/storage"
)

// What a Mark is about.
const (
	MarkClient   = "client"
	MarkPassword = "password" // of a local user
)

// A Mark says which secret of the configuration is the current one, whatever the file of a replica says that is out of date, and since when:
// what was given out before that is over.
type Mark struct {
	About, ID string    // MarkClient and the client's id, or MarkPassword and the user's
	Print     string    // as Print makes it of the secret; "": there is none any more
	Since     time.Time // zero: since before anybody looked
	// Pending says that what was given out before is still to be ended. It is refused meanwhile.
	Pending bool
}

// marks is never assigned to.
var marks = kind[Mark]{
	name: KindMark,
	id: func(v *Mark) string {
		if v.ID == "" {
			return ""
		}
		return pair(v.About, v.ID)
	},
	flat: true,
}

// Print returns what is kept of a secret: enough to tell it from another one, and nothing to guess it by, where it is long or is itself a salted hash.
func Print(secret []byte) string {
	sum := sha256.Sum256(append([]byte("gatehouse mark\x00"), secret...))
	return hex.EncodeToString(sum[:])
}

// GetMark returns the mark of a secret. The error is ErrNotFound of Dex where there is none.
func (s *Store) GetMark(ctx context.Context, about, id string) (Mark, error) {
	return get(ctx, s, &marks, pair(about, id))
}

// Marks yields all marks, in no particular order. It goes on after an *UnreadError, and ends after any other.
func (s *Store) Marks(ctx context.Context) iter.Seq2[Mark, error] { return each(ctx, s, &marks) }

// SetMark stores the print of a secret and since when it holds. It reports whether it was another one before; to what is no news, and to a mark
// that is the first, since does not matter.
func (s *Store) SetMark(ctx context.Context, about, id, secretPrint string, since time.Time) (news bool, err error) {
	err = update(ctx, s, &marks, updating{id: pair(about, id), create: true}, func(m Mark) (Mark, error) {
		known := m.ID != ""
		if known && m.Print == secretPrint {
			news = false
			return m, errSame
		}
		if news = known; news {
			m.Since, m.Pending = since, true
		}
		m.About, m.ID, m.Print = about, id, secretPrint
		return m, nil
	})
	if errors.Is(err, errSame) {
		return false, nil
	}
	return news && err == nil, err
}

// CreateMarks stores first marks, in few writes. Those that are there already stay as they are.
func (s *Store) CreateMarks(ctx context.Context, list []Mark) error {
	for batch := range slices.Chunk(list, markBatch) {
		ops := make([]Op, len(batch))
		for i := range batch {
			r, err := marks.encode(&batch[i])
			if err != nil {
				return err
			}
			ops[i] = Op{Verb: Create, Record: r}
		}
		_, err := s.driver.Write(ctx, ops)
		if err == nil {
			continue
		}
		for _, op := range ops { // another process was faster with one of them
			if _, err := s.driver.Write(ctx, []Op{op}); err != nil && !errors.Is(err, storage.ErrAlreadyExists) {
				return err
			}
		}
	}
	return nil
}

// markBatch is how many marks one write makes: few enough for any database's transaction.
const markBatch = 32

// SettleMark notes that what m is about was ended, unless the mark is another one by now.
func (s *Store) SettleMark(ctx context.Context, m Mark) error {
	err := update(ctx, s, &marks, updating{id: pair(m.About, m.ID)}, func(now Mark) (Mark, error) {
		if now.Print != m.Print || !now.Since.Equal(m.Since) {
			return now, errSame
		}
		now.Pending = false
		return now, nil
	})
	if errors.Is(err, errSame) {
		return nil
	}
	return err
}

// errSame ends an update that would change nothing.
var errSame = errors.New("store: nothing to change")

// DeleteOf deletes what was given out to a client: authorization codes, device codes and refresh tokens, and what refers to those. It reads all
// records of these kinds, one after the other. It may be called again after an error.
func (s *Store) DeleteOf(ctx context.Context, clientID string) error {
	errs := []error{forEach(ctx, s, &authCodes, func(v *storage.AuthCode) error {
		if v.ClientID != clientID {
			return nil
		}
		return remove(ctx, s, &authCodes, v.ID)
	})}
	errs = append(errs, forEach(ctx, s, &deviceRequests, func(v *storage.DeviceRequest) error {
		if v.ClientID != clientID {
			return nil
		}
		if err := remove(ctx, s, &deviceTokens, v.DeviceCode); err != nil && !errors.Is(err, storage.ErrNotFound) { // the code's tokens: nothing else leads to them
			return err
		}
		return remove(ctx, s, &deviceRequests, v.UserCode)
	}))
	errs = append(errs, forEach(ctx, s, &refreshTokens, func(v *storage.RefreshToken) error {
		if v.ClientID != clientID {
			return nil
		}
		if err := remove(ctx, s, &refreshTokens, v.ID); err != nil {
			return err
		}
		return s.UpdateOfflineSessions(ctx, v.Claims.UserID, v.ConnectorID, func(o storage.OfflineSessions) (storage.OfflineSessions, error) {
			if ref := o.Refresh[clientID]; ref != nil && ref.ID == v.ID {
				delete(o.Refresh, clientID)
			}
			return o, nil
		})
	}))
	return errors.Join(errs...)
}

// forEach calls f with each value of a kind. That something is gone already is no error; what cannot be read keeps nothing else from it, and is told at the end.
func forEach[T any](ctx context.Context, s *Store, k *kind[T], f func(*T) error) error {
	var unread Unreads
	for v, err := range each(ctx, s, k) {
		if err == nil {
			err = f(&v)
		}
		if err != nil && !errors.Is(err, storage.ErrNotFound) && !unread.Add(err) {
			return errors.Join(err, unread.Err())
		}
	}
	return unread.Err()
}

// DeleteDeviceTokens deletes those device tokens that match.
func (s *Store) DeleteDeviceTokens(ctx context.Context, match func(*storage.DeviceToken) bool) error {
	return forEach(ctx, s, &deviceTokens, func(v *storage.DeviceToken) error {
		if !match(v) {
			return nil
		}
		return remove(ctx, s, &deviceTokens, v.DeviceCode)
	})
}
