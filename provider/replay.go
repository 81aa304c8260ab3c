package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"gatehouse/internal/audit"
	"gatehouse/provider/front"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/server/oauth2"
	"github.com/dexidp/dex/storage"
)

// replays is a storage that notices when an authorization code is used a second time, and ends what the first time led to
// (RFC 6749 section 4.1.2): the refresh token, and the access and ID Tokens of the family at userinfo and introspection. The
// session goes on, since it was there before the code.
//
// A spent code is shown to Dex again until it expires: so Dex checks the second request as it did the first, by client, redirect_uri and
// PKCE, and only one that would have been good counts. Whoever just read a code in a log ends nothing.
type replays struct {
	storage.Storage // guarded, and with flights

	store  *store.Store
	now    func() time.Time
	tokens time.Duration // lifetime of ID Tokens and access tokens
	audit  *slog.Logger
}

var errReplayed = errors.New("the authorization code was used twice: what it led to is revoked")

// GetAuthCode implements storage.Storage.
func (s replays) GetAuthCode(ctx context.Context, id string) (storage.AuthCode, error) {
	c, err := s.Storage.GetAuthCode(ctx, id)
	if e := front.ExchangeOf(ctx); e != nil && err == nil {
		e.Read = &c
	}
	if !errors.Is(err, storage.ErrNotFound) {
		return c, err
	}
	v, err := s.store.GetSpentCode(ctx, store.SpentCodeID(id))
	if err != nil {
		return storage.AuthCode{}, err
	}
	return storage.AuthCode{
		ID: id, ClientID: v.ClientID, RedirectURI: v.RedirectURI, PKCE: v.PKCE, Expiry: v.Expiry,
		ConnectorID: v.ConnectorID, SessionID: v.SessionID, Nonce: v.Nonce, Claims: storage.Claims{UserID: v.UserID},
	}, nil
}

// DeleteAuthCode implements storage.Storage. A code that is spent already is ErrNotFound, as Dex wants it.
func (s replays) DeleteAuthCode(ctx context.Context, id string) error {
	if front.CodeInFlight(ctx, id) {
		return s.Storage.DeleteAuthCode(ctx, id)
	}
	c, err := s.readCode(ctx, id)
	if err == nil && !recorded(&c) {
		return s.Storage.DeleteAuthCode(ctx, id)
	}
	if err == nil {
		err = s.store.SpendAuthCode(ctx, id, store.SpentCode{
			ClientID: c.ClientID, RedirectURI: c.RedirectURI, PKCE: c.PKCE, UserID: c.Claims.UserID, ConnectorID: c.ConnectorID,
			SessionID: c.SessionID, Nonce: c.Nonce, Spent: s.now(), Expiry: c.Expiry, TokensFor: s.tokens,
		})
	}
	if err == nil {
		if e := front.ExchangeOf(ctx); e != nil {
			e.Code = store.SpentCodeID(id)
		}
		return nil
	}
	if !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	switch err := s.end(ctx, store.SpentCodeID(id)); {
	case errors.Is(err, storage.ErrNotFound): // never there, or within the sign-in of one request
		return s.Storage.DeleteAuthCode(ctx, id)
	case err != nil:
		return fmt.Errorf("revoke what a replayed code led to: %w", err)
	}
	return storage.ErrNotFound
}

// readCode returns a code that is about to be deleted. Whether it is still there the deletion tells.
func (s replays) readCode(ctx context.Context, id string) (storage.AuthCode, error) {
	if e := front.ExchangeOf(ctx); e != nil && e.Read != nil && e.Read.ID == id {
		return *e.Read, nil
	}
	return s.store.GetAuthCode(ctx, id)
}

// recorded reports whether a client could use a code twice. The gateway's own code and a device's never leave the browser and
// this process; a page that is loaded again is no attack.
func recorded(c *storage.AuthCode) bool {
	return c.ClientID != front.GatewayClient && !strings.HasSuffix(c.RedirectURI, oauth2.DeviceCallbackURI)
}

// end revokes what a spent code led to. It may be called again.
func (s replays) end(ctx context.Context, id string) error {
	ctx = context.WithoutCancel(ctx) // whoever replays must not be able to stop it half way
	var v store.SpentCode
	first := false
	err := s.store.UpdateSpentCode(ctx, id, func(old store.SpentCode) (store.SpentCode, error) {
		first = !old.Replayed
		old.Replayed = true
		v = old
		return old, nil
	})
	if err != nil {
		return err
	}
	now := s.now()
	if first {
		s.audit.WarnContext(ctx, "code replayed", "client", v.ClientID, "connector", v.ConnectorID, "user_id", v.UserID, "session", audit.Hash(v.SessionID))
	}
	err = s.store.CreateReplay(ctx, store.Replay{
		ID: v.ID, ClientID: v.ClientID, UserID: v.UserID, ConnectorID: v.ConnectorID, SessionID: v.SessionID, Nonce: v.Nonce,
		From: v.Spent, Until: until(&v, now), Expiry: now.Add(max(v.TokensFor, s.tokens)),
	})
	if errors.Is(err, storage.ErrAlreadyExists) {
		err = nil
	}
	return errors.Join(err, s.endRefresh(ctx, &v))
}

// underWay is how long after a replay a token may still be issued by a request that began before it.
const underWay = 10 * time.Second

// until is the time of issue, in whole seconds as in a token, of the last token that a code led to. The nonce tells its family
// from others. A client without one may have begun anew at once, in the same session, by the time of the replay: of the second in which
// that was, only tokens of the exchange itself are taken.
func until(v *store.SpentCode, now time.Time) time.Time {
	if v.Nonce != "" {
		return now.Add(underWay)
	}
	if last := now.Truncate(time.Second).Add(-time.Second); last.After(v.Spent) {
		return last
	}
	return v.Spent
}

// endRefresh deletes the refresh token that a code led to, whatever generation it is of: rotation keeps its id.
func (s replays) endRefresh(ctx context.Context, v *store.SpentCode) error {
	if v.RefreshID == "" {
		return nil
	}
	err := s.store.UpdateOfflineSessions(ctx, v.UserID, v.ConnectorID, func(o storage.OfflineSessions) (storage.OfflineSessions, error) {
		if ref := o.Refresh[v.ClientID]; ref != nil && ref.ID == v.RefreshID {
			delete(o.Refresh, v.ClientID)
		}
		return o, nil
	})
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if err := s.store.DeleteRefresh(ctx, v.RefreshID); err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	return nil
}

// CreateRefresh implements storage.Storage. The token of an exchange is known to its code first: whoever replays that code from then
// on finds the token, and one whose code was replayed before is not issued.
func (s replays) CreateRefresh(ctx context.Context, t storage.RefreshToken) error {
	if e := front.ExchangeOf(ctx); e != nil && e.Code != "" {
		err := s.store.UpdateSpentCode(ctx, e.Code, func(v store.SpentCode) (store.SpentCode, error) {
			if v.Replayed {
				return v, errReplayed
			}
			v.RefreshID = t.ID
			return v, nil
		})
		if err != nil && !errors.Is(err, storage.ErrNotFound) { // not found: it has expired meanwhile
			return err
		}
	}
	return s.Storage.CreateRefresh(ctx, t)
}

// UpdateRefreshToken implements storage.Storage. It tells a token that is used up from a storage that fails.
func (s replays) UpdateRefreshToken(ctx context.Context, id string, updater func(storage.RefreshToken) (storage.RefreshToken, error)) error {
	var refused error
	err := s.Storage.UpdateRefreshToken(ctx, id, func(old storage.RefreshToken) (v storage.RefreshToken, err error) {
		v, err = updater(old)
		refused = err
		return v, err
	})
	if e := front.ExchangeOf(ctx); e != nil && err != nil {
		e.Claimed = refused != nil || errors.Is(err, storage.ErrNotFound)
	}
	return err
}

// replayed reports whether a token of a user is of a family whose code was used twice.
func (p *Provider) replayed(ctx context.Context, t front.Token, userID, connectorID string) (bool, error) {
	all, err := p.store.ReplaysOf(ctx, userID, connectorID)
	if err != nil {
		return false, fmt.Errorf("provider: replayed codes: %w", err)
	}
	for i := range all {
		r := &all[i]
		if r.ClientID == t.Client && r.SessionID == t.SessionID && r.Nonce == t.Nonce &&
			!t.IssuedAt.Before(r.From.Truncate(time.Second)) && !t.IssuedAt.After(r.Until) {
			return true, nil
		}
	}
	return false, nil
}
