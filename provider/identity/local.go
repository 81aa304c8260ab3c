package identity

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/crypto/bcrypt"

	"github.com/dexidp/dex/connector"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// maxBcrypt is how many bytes of a password bcrypt looks at; a longer one would be accepted by its beginning.
const maxBcrypt = 72

// local is Dex's password database with bounded CPU and without telling, by the time it takes, whether a user exists.
type local struct {
	db interface {
		connector.PasswordConnector
	}
	store   storage.Storage
	workers *workers
	dummy   atomic.Pointer[[]byte] // hash compared for unknown users, as costly as those of the known ones
}

func newLocal(ctx context.Context, store storage.Storage, w *workers) (*local, error) {
	l := &local{db: dexconnectors.NewPasswordDB(store), store: store, workers: w}
	users, err := store.ListPasswords(ctx)
	if err != nil {
		return nil, fmt.Errorf("list local users: %w", err)
	}
	cost := bcrypt.DefaultCost
	for _, u := range users {
		if c, err := bcrypt.Cost(u.Hash); err == nil {
			cost = max(cost, c)
		}
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), cost)
	if err != nil {
		return nil, fmt.Errorf("hash: %w", err)
	}
	l.dummy.Store(&hash)
	return l, nil
}

// Prompt implements connector.PasswordConnector.
func (l *local) Prompt() string { return "Email address" }

// Login implements connector.PasswordConnector.
func (l *local) Login(ctx context.Context, s connector.Scopes, email, password string) (id connector.Identity, ok bool, err error) {
	_, lookup := l.store.GetPassword(ctx, email)
	busy := l.workers.do(ctx, func() {
		if lookup != nil || len(password) > maxBcrypt {
			_ = bcrypt.CompareHashAndPassword(*l.dummy.Load(), []byte(password[:min(len(password), maxBcrypt)]))
			return
		}
		id, ok, err = l.db.Login(ctx, s, email, password)
	})
	switch {
	case busy != nil:
		return connector.Identity{}, false, busy
	case lookup != nil && !errors.Is(lookup, storage.ErrNotFound):
		return connector.Identity{}, false, fmt.Errorf("get local user: %w", lookup)
	}
	return id, ok, err
}

// Refresh implements connector.RefreshConnector.
func (l *local) Refresh(ctx context.Context, s connector.Scopes, id connector.Identity) (connector.Identity, error) {
	r, ok := l.db.(connector.RefreshConnector)
	if !ok {
		return connector.Identity{}, errors.New("local users cannot be refreshed")
	}
	return r.Refresh(ctx, s, id)
}
