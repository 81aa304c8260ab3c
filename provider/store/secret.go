package store

import (
	"context"
	"errors"
	"fmt"

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
