package identity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dexidp/dex/storage"
)

// ErrBlocked means that a user is refused for now. Every other error says nothing about the user.
var ErrBlocked = errors.New("user is blocked")

// Guard wraps a storage so that Dex cannot read the identity of a blocked user: single sign-on, refresh and
// sign-in of that user fail everywhere, and work again once the block ends. Dex itself looks at BlockedUntil
// in one place only.
func Guard(s storage.Storage, now func() time.Time) storage.Storage { return guard{s, now} }

type guard struct {
	storage.Storage
	now func() time.Time
}

// GetAuthCode hides the codes of blocked users, and of sessions that have ended: a code outlives both.
func (g guard) GetAuthCode(ctx context.Context, id string) (storage.AuthCode, error) {
	c, err := g.Storage.GetAuthCode(ctx, id)
	if err != nil {
		return storage.AuthCode{}, err
	}
	if c.SessionID != "" {
		if _, err := g.Storage.GetAuthSession(ctx, c.SessionID); err != nil {
			return storage.AuthCode{}, err
		}
	}
	if _, err := g.GetUserIdentity(ctx, c.Claims.UserID, c.ConnectorID); err != nil && !errors.Is(err, storage.ErrNotFound) {
		return storage.AuthCode{}, storage.ErrNotFound
	}
	return c, nil
}

func (g guard) GetUserIdentity(ctx context.Context, userID, connectorID string) (storage.UserIdentity, error) {
	u, err := g.Storage.GetUserIdentity(ctx, userID, connectorID)
	if err == nil && g.now().Before(u.BlockedUntil) {
		return storage.UserIdentity{}, fmt.Errorf("%w until %s", ErrBlocked, u.BlockedUntil.Format(time.RFC3339))
	}
	return u, err
}
