package identity

import (
	"context"
	"fmt"
	"time"

	"github.com/dexidp/dex/storage"
)

// Guard wraps a storage so that Dex cannot read the identity of a blocked user: single sign-on, refresh and
// sign-in of that user fail everywhere, and work again once the block ends. Dex itself looks at BlockedUntil
// in one place only.
func Guard(s storage.Storage, now func() time.Time) storage.Storage { return guard{s, now} }

type guard struct {
	storage.Storage
	now func() time.Time
}

func (g guard) GetUserIdentity(ctx context.Context, userID, connectorID string) (storage.UserIdentity, error) {
	u, err := g.Storage.GetUserIdentity(ctx, userID, connectorID)
	if err == nil && g.now().Before(u.BlockedUntil) {
		return storage.UserIdentity{}, fmt.Errorf("user is blocked until %s", u.BlockedUntil.Format(time.RFC3339))
	}
	return u, err
}
