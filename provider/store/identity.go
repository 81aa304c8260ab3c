package store

import (
	"context"
	"time"

	"github.com/dexidp/dex/storage"
)

// An Identity is what is known of a user: Dex's part, and what it has no place for.
type Identity struct {
	storage.UserIdentity
	Password *KnownPassword `json:",omitempty"` // nil: nothing is known
	// BlockOver is when the user was last unblocked before the block ended by itself: what was issued until then is over. Zero: never.
	BlockOver time.Time `json:",omitzero"`
}

// A KnownPassword says which password of a user is the latest that their connector has told of, and what began with a former one.
type KnownPassword struct {
	Set   int64 // greatest connectors.PasswordSet that was seen; 0: none
	Reset bool  // since then it must be changed: connectors.PasswordReset
	// Since is when it was noticed, by our clocks, that the password is another one: what began until then is over. Zero: it never was.
	Since time.Time
	// Pending says that this is still to be ended.
	Pending bool
	Own     bool   // the user has changed it here
	Except  string // id of a session that goes on; "": none
	// TokensOver is until when tokens were issued that are over: when another password was last noticed that was not chosen here. Zero: never.
	TokensOver time.Time `json:",omitzero"`
	// OwnUntil is until when a greater Set is that of a change that was made here, and is no news; zero: that was seen, or there was none.
	OwnUntil time.Time
}

// GetIdentity returns a user's identity.
func (s *Store) GetIdentity(ctx context.Context, userID, connectorID string) (Identity, error) {
	return get(ctx, s, &identities, pair(userID, connectorID))
}

// CreateIdentity stores a user's identity.
func (s *Store) CreateIdentity(ctx context.Context, v Identity) error {
	return create(ctx, s, &identities, &v)
}

// UpdateIdentity updates a user's identity.
func (s *Store) UpdateIdentity(ctx context.Context, userID, connectorID string, updater func(Identity) (Identity, error)) error {
	return update(ctx, s, &identities, updating{id: pair(userID, connectorID)}, updater)
}
