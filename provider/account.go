package provider

import (
	"context"

	"gatehouse/provider/front"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// AccountURL is the page on which users see their sessions and end them.
func (p *Provider) AccountURL() string { return p.current.Load().front.AccountURL() }

// account is what the account page needs.
func (p *Provider) account() front.Account {
	return front.Account{
		Sessions: func(ctx context.Context, connectorID, userID string) ([]storage.AuthSession, error) {
			all, err := p.store.SessionsOf(ctx, userID, connectorID)
			if store.OnlyUnread(err) { // by which nobody gets in: the user can still see the others, and end them
				p.log.WarnContext(ctx, "the account page leaves out sessions that cannot be read", "connector", connectorID, "user_id", userID, "error", err)
				err = nil
			}
			return all, err
		},
		EndOthers: func(ctx context.Context, connectorID, userID, except string) error {
			_, err := p.SignOutEverywhere(ctx, connectorID, userID, except, byUser)
			return err
		},
	}
}
