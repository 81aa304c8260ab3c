package provider

import (
	"context"
	"time"

	"github.com/dexidp/dex/storage"
)

// Block refuses a user until a time and ends all that they have: sessions and refresh tokens.
// It fails with ErrNoSession for a user who never signed in.
func (p *Provider) Block(ctx context.Context, connectorID, userID string, until time.Time) error {
	err := p.store.UpdateUserIdentity(ctx, userID, connectorID, func(u storage.UserIdentity) (storage.UserIdentity, error) {
		u.BlockedUntil = until
		return u, nil
	})
	if err != nil {
		return sessionError(err)
	}
	p.audit.InfoContext(ctx, "user blocked", "connector", connectorID, "user_id", userID, "until", until)
	if !p.now().Before(until) {
		return nil
	}
	g := p.acquire()
	defer g.release()
	return p.endAll(ctx, g, connectorID, userID, cause{by: byOperator}, always)
}
