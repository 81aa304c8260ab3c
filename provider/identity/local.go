package identity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"gatehouse/connectors"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/server/passwords"
	"github.com/dexidp/dex/storage"
)

// local is Dex's password database with bounded CPU and without telling, by the time it takes, whether a user exists.
type local struct {
	db interface {
		connector.PasswordConnector
	}
	store   storage.Storage
	workers *workers
	match   Match
	dummy   []byte // hash compared for unknown users, as costly as those of the known ones
}

// A Match reports whether hash, one of bcrypt's, is that of password. It may give up when ctx ends, with its error.
type Match func(ctx context.Context, hash, password []byte) (bool, error)

// maxBcrypt is how many bytes of a password bcrypt looks at; a longer one would be accepted by its beginning.
const maxBcrypt = 72

// roundTime is about what one of the 1<<cost rounds of bcrypt takes, until it is known better.
const roundTime = 60 * time.Microsecond

func newLocal(ctx context.Context, users storage.Storage, w *workers, match Match) (*local, error) {
	l := &local{db: dexconnectors.NewPasswordDB(users), store: users, workers: w, match: match}
	known, err := users.ListPasswords(ctx)
	if err != nil && !store.OnlyUnread(err) { // who cannot be read does not sign in, and keeps nobody else from it
		return nil, fmt.Errorf("list local users: %w", err)
	}
	cost := bcrypt.DefaultCost
	for _, u := range known {
		if c, err := bcrypt.Cost(u.Hash); err == nil {
			cost = max(cost, c)
		}
	}
	w.expect(roundTime << cost)
	l.dummy = fmt.Appendf(nil, "$2a$%02d$%s", cost, strings.Repeat(".", 22+31)) // salt and digest of zeros: no password is known for it
	return l, nil
}

// Prompt implements connector.PasswordConnector.
func (l *local) Prompt() string { return "Email address" }

// Login implements connector.PasswordConnector.
func (l *local) Login(ctx context.Context, s connector.Scopes, email, password string) (connector.Identity, bool, error) {
	user, lookup := l.store.GetPassword(ctx, email)
	hash := user.Hash
	if lookup == nil {
		lookup = passwords.CheckCost(hash)
	}
	known := lookup == nil && len(password) <= maxBcrypt
	if !known {
		hash = l.dummy
	}
	ok, err := l.compare(ctx, hash, password[:min(len(password), maxBcrypt)])
	switch {
	case err != nil:
		return connector.Identity{}, false, err
	case lookup != nil && !errors.Is(lookup, storage.ErrNotFound):
		return connector.Identity{}, false, fmt.Errorf("get local user: %w", lookup)
	case !known || !ok:
		return connector.Identity{}, false, nil
	}
	// Dex's Login would hash again; its Refresh reads the rest of the same user.
	id, err := l.Refresh(ctx, s, connector.Identity{UserID: user.UserID, Email: user.Email})
	return id, err == nil, err
}

// compare takes its turn among those who sign in.
func (l *local) compare(ctx context.Context, hash []byte, password string) (ok bool, err error) {
	busy := l.workers.do(ctx, networkOf(ctx), func() {
		ok, err = l.match(ctx, hash, []byte(password))
	})
	switch {
	case busy != nil:
		return false, busy
	case err != nil && ctx.Err() != nil: // who asked has gone
		return false, &connectors.Refusal{Reason: connectors.Busy, RetryAfter: time.Second, Err: err}
	}
	return ok, err
}

// Refresh implements connector.RefreshConnector.
func (l *local) Refresh(ctx context.Context, s connector.Scopes, id connector.Identity) (connector.Identity, error) {
	r, ok := l.db.(connector.RefreshConnector)
	if !ok {
		return connector.Identity{}, errors.New("local users cannot be refreshed")
	}
	return r.Refresh(ctx, s, id)
}
