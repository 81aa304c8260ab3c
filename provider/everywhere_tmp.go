package provider

import (
	"context"
	"errors"

	"gatehouse/provider/front"

	"github.com/dexidp/dex/server/tokens"
)

var _ = front.GatewayClient

// SignOutEverywhere is a stand-in until s-cutoff is merged.
func (p *Provider) SignOutEverywhere(ctx context.Context, connectorID, userID, exceptSession, by string) error {
	g := p.acquire()
	defer g.release()
	all, err := p.store.SessionsOf(ctx, userID, connectorID)
	if err != nil {
		return err
	}
	var errs []error
	for i := range all {
		if all[i].ID == exceptSession {
			continue
		}
		if _, err := p.end(ctx, g, all[i].ID, cause{by: by}); err != nil {
			errs = append(errs, err)
		}
	}
	tokens.NewRefreshStore(g.storage, p.now, p.dexLog).RevokeAll(ctx, userID, connectorID)
	return errors.Join(errs...)
}
