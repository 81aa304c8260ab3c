package provider

import (
	"context"

	"gatehouse/provider/front"

	"github.com/dexidp/dex/storage"
)

// AccountURL is the page on which users see their sessions and end them.
func (p *Provider) AccountURL() string { return p.current.Load().front.AccountURL() }

// account is what the account page needs.
func (p *Provider) account() front.Account {
	return front.Account{
		Sessions: func(ctx context.Context, connectorID, userID string) ([]storage.AuthSession, error) {
			return p.store.SessionsOf(ctx, userID, connectorID)
		},
		EndOthers: func(ctx context.Context, connectorID, userID, except string) error {
			_, err := p.SignOutEverywhere(ctx, connectorID, userID, except, byUser)
			return err
		},
	}
}
