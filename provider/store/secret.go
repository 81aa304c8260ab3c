package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dexidp/dex/storage"
)

// KindSecret are the secrets that are made once and shared by all processes on a database.
const KindSecret Kind = "secret"

// MemoryDriver returns the Driver of Memory.
func MemoryDriver() Driver { return newMemory() }

// Secret returns the secret of that name, and makes it if there is none. Of several processes that make it at once,
// one succeeds and all get its value; created is true for that one.
func (s *Store) Secret(ctx context.Context, name string, generate func() []byte) (value []byte, created bool, err error) {
	r, err := s.driver.Read(ctx, KindSecret, name)
	if errors.Is(err, storage.ErrNotFound) {
		value = generate()
		err = s.write(ctx, Op{Verb: Create, Record: Record{Kind: KindSecret, ID: name, Data: value}})
		if err == nil {
			return value, true, nil
		}
		if errors.Is(err, storage.ErrAlreadyExists) {
			r, err = s.driver.Read(ctx, KindSecret, name)
		}
	}
	if err != nil {
		return nil, false, fmt.Errorf("store: secret %q: %w", name, err)
	}
	return r.Data, false, nil
}

// SealKeys are the keys of cookies and hand-offs where they are kept in the store, the oldest first. One is there at least.
type SealKeys struct{ Keys []SealKey }

// A SealKey is one of SealKeys. It prints as [redacted].
type SealKey struct {
	Key        []byte
	SealsFrom  time.Time // in place of the one before it
	OpensUntil time.Time // zero: until another one takes its place
}

// String returns [redacted].
func (SealKey) String() string { return "[redacted]" }

// The IDs of the secrets that keys of cookies are in: now, and as one key that never changed.
const (
	sealKeysID   = "seal-keys"
	oneSealKeyID = "seal"
)

// sealKeys is never assigned to. It is told of, so that all processes change keys together.
var sealKeys = kind[SealKeys]{
	name:   KindSecret,
	id:     func(*SealKeys) string { return sealKeysID },
	logged: true,
}

// IsSealKeys reports whether a change may be one of SealKeys.
func IsSealKeys(c Change) bool { return c.Kind == "" || c.Kind == KindSecret && c.ID == sealKeysID }

// SealKeys returns the keys of cookies. If there are none they begin with the one key that an earlier version made, or with one that generate makes. Of several
// processes that make them at once one succeeds, and all get its keys; created is true for that one.
func (s *Store) SealKeys(ctx context.Context, generate func() []byte) (keys SealKeys, created bool, err error) {
	keys, err = get(ctx, s, &sealKeys, sealKeysID)
	if !errors.Is(err, storage.ErrNotFound) {
		return keys, false, err
	}
	var first []byte
	switch r, err := s.driver.Read(ctx, KindSecret, oneSealKeyID); {
	case err == nil:
		first = r.Data
	case errors.Is(err, storage.ErrNotFound):
		first, created = generate(), true
	default:
		return SealKeys{}, false, fmt.Errorf("store: secret %q: %w", oneSealKeyID, err)
	}
	keys = SealKeys{Keys: []SealKey{{Key: first}}}
	err = create(ctx, s, &sealKeys, &keys)
	if errors.Is(err, storage.ErrAlreadyExists) {
		keys, err = get(ctx, s, &sealKeys, sealKeysID)
		return keys, false, err
	}
	return keys, created && err == nil, err
}

// UpdateSealKeys updates the keys of cookies. The one key of an earlier version is deleted when it is none of them any more.
func (s *Store) UpdateSealKeys(ctx context.Context, updater func(SealKeys) (SealKeys, error)) error {
	var after SealKeys
	err := update(ctx, s, &sealKeys, updating{id: sealKeysID}, func(old SealKeys) (SealKeys, error) {
		var err error
		after, err = updater(old)
		return after, err
	})
	if err != nil {
		return err
	}
	r, err := s.driver.Read(ctx, KindSecret, oneSealKeyID)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	for _, k := range after.Keys {
		if string(k.Key) == string(r.Data) {
			return nil
		}
	}
	err = s.write(ctx, Op{Verb: Delete, Record: Record{Kind: KindSecret, ID: oneSealKeyID}, Changes: []Change{{Kind: KindSecret, ID: oneSealKeyID, Deleted: true}}})
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	return err
}
