package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatehouse/provider/front"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// Forever is until when somebody is blocked who stays so until they are unblocked: the last second that RFC 3339 can tell. It is never assigned to.
var Forever = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Block refuses a user until a time and ends all that they have: sessions and refresh tokens. The block is stored first: whatever a
// sign-in under way makes after that is ended by its maker (identity.Guard). A user who never signed in is refused at the
// first time. ended is how many sessions there were; after an error the user is blocked all the same if the block could be stored.
func (p *Provider) Block(ctx context.Context, connectorID, userID string, until time.Time) (ended int, err error) {
	ctx = context.WithoutCancel(ctx) // whoever asked for it may be gone: half a block is none
	if err := p.setBlocked(ctx, connectorID, userID, until); err != nil {
		return 0, err
	}
	p.audit.InfoContext(ctx, "user blocked", "by", byOperator, "connector", connectorID, "user_id", userID, "until", until)
	if !p.now().Before(until) {
		return 0, nil
	}
	g := p.acquire()
	defer g.release()
	if ended, err = p.endSessions(ctx, g, connectorID, userID, cause{by: byOperator}, ending{until: always}); err != nil {
		err = fmt.Errorf("provider: the user is blocked, but not all that they had could be ended: %w", err)
	}
	return ended, err
}

// setBlocked stores a block. The identity of somebody who never signed in is made for it: Dex's first sign-in finds it, is refused, and once the block
// is over fills it as it would another's.
func (p *Provider) setBlocked(ctx context.Context, connectorID, userID string, until time.Time) error {
	if connectorID == "" || userID == "" {
		return errors.New("provider: block: a user has a connector and an id")
	}
	block := func(u storage.UserIdentity) (storage.UserIdentity, error) {
		u.BlockedUntil = until
		return u, nil
	}
	for {
		err := p.store.UpdateUserIdentity(ctx, userID, connectorID, block)
		if !errors.Is(err, storage.ErrNotFound) {
			return wrapped("block", err)
		}
		err = p.store.CreateUserIdentity(ctx, storage.UserIdentity{
			UserID: userID, ConnectorID: connectorID, Claims: storage.Claims{UserID: userID}, Consents: map[string][]string{},
			CreatedAt: p.now(), BlockedUntil: until,
		})
		if !errors.Is(err, storage.ErrAlreadyExists) { // else their first sign-in was faster
			return wrapped("block", err)
		}
	}
}

// Unblock lets a user sign in again. What the block has ended stays so, tokens that were issued before among it. It fails with ErrNoUser for somebody who neither
// signed in nor was blocked.
func (p *Provider) Unblock(ctx context.Context, connectorID, userID string) error {
	now := p.now()
	err := p.store.UpdateIdentity(ctx, userID, connectorID, func(i store.Identity) (store.Identity, error) {
		if i.BlockOver = blockEnd(&i); now.Before(i.BlockOver) {
			i.BlockOver = now
		}
		i.BlockedUntil = time.Time{}
		return i, nil
	})
	if errors.Is(err, storage.ErrNotFound) {
		return ErrNoUser
	}
	if err != nil {
		return wrapped("unblock", err)
	}
	p.audit.InfoContext(ctx, "user unblocked", "by", byOperator, "connector", connectorID, "user_id", userID)
	return nil
}

// blockEnd is when the last block of a user ended, or ends; the zero time: there was none.
func blockEnd(i *store.Identity) time.Time {
	if i.BlockedUntil.After(i.BlockOver) {
		return i.BlockedUntil
	}
	return i.BlockOver
}

// beforeBlock reports whether something of a user was issued before a block of theirs that is over. Tokens know whole seconds.
func beforeBlock(i *store.Identity, issued, now time.Time) bool {
	end := blockEnd(i)
	return !end.After(now) && issued.Before(end.Truncate(time.Second))
}

// SignOutEverywhere ends the sessions of a user but for one ("": for none), and all refresh tokens, those of that session included. by is who
// wants it, for the audit log: byUser or byOperator. It returns how many sessions there were.
func (p *Provider) SignOutEverywhere(ctx context.Context, connectorID, userID, exceptSession, by string) (ended int, err error) {
	g := p.acquire()
	defer g.release()
	return p.signOutEverywhere(context.WithoutCancel(ctx), g, connectorID, userID, exceptSession, cause{by: by}) // half of it is none
}

func (p *Provider) signOutEverywhere(ctx context.Context, g *generation, connectorID, userID, exceptSession string, why cause) (ended int, err error) {
	ended, err = p.endSessions(ctx, g, connectorID, userID, why, ending{until: always, except: exceptSession})
	if err != nil {
		return ended, fmt.Errorf("provider: sign out everywhere: %w", err)
	}
	p.audit.InfoContext(ctx, "sign-out everywhere", "by", why.by, "connector", connectorID, "user_id", userID, "sessions", ended, "kept", hashOf(exceptSession))
	return ended, nil
}

// passwordChanged ends what a user has who has chosen another password here, but for one session. Where that fails it is tried again until it
// is done: whoever knew the old password is not to stay.
func (p *Provider) passwordChanged(ctx context.Context, g *generation, connectorID, userID, kept string) {
	ctx = context.WithoutCancel(ctx)
	until := overBy(p.now())
	since, noted := p.changedHere(ctx, connectorID, userID, kept, time.Time{})
	_, err := p.signOutEverywhere(ctx, g, connectorID, userID, kept, cause{by: byUser})
	if err == nil && noted == nil {
		_, err = p.settlePassword(ctx, connectorID, userID, since)
	}
	// Nobody may sign in now, and another change, after this one, is not to be taken for it.
	p.live.Ask(connectorID, userID) //nolint:contextcheck // a Lookup is for all who wait: no caller ends it
	if err = errors.Join(noted, err); err == nil {
		return
	}
	p.log.ErrorContext(ctx, "sessions from before a change of password could not be ended; it is tried again", "connector", connectorID, "user_id", userID, "error", err)
	go p.untilStored(func() error {
		if noted != nil {
			if _, noted = p.changedHere(p.life, connectorID, userID, kept, until); noted != nil {
				return noted
			}
		}
		return p.endFormer(p.life, connectorID, userID)
	})
}

// RevokeUser is SignOutEverywhere by an operator.
func (p *Provider) RevokeUser(ctx context.Context, connectorID, userID string) (ended int, err error) {
	return p.SignOutEverywhere(ctx, connectorID, userID, "", byOperator)
}

// RevokeHashed is Revoke for a session that is known by the hash of its id, as logs have it. It fails with ErrNoSession.
func (p *Provider) RevokeHashed(ctx context.Context, hash string) error {
	for id, err := range p.store.SessionIDs(ctx) {
		if err != nil {
			return fmt.Errorf("provider: list sessions: %w", err)
		}
		if hashID(id) == hash {
			return p.Revoke(ctx, id)
		}
	}
	return ErrNoSession
}

func hashOf(session string) string {
	if session == "" {
		return ""
	}
	return hashID(session)
}

func wrapped(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("provider: %s: %w", what, err)
}

// An ending says which sessions of a user end: those that began until then, or are of the future, but for one.
type ending struct {
	until  time.Time
	except string // id; "": none
}

// endSessions ends sessions of a user, and all refresh tokens. What fails does not stop the rest.
func (p *Provider) endSessions(ctx context.Context, g *generation, connectorID, userID string, why cause, which ending) (ended int, err error) {
	all, err := p.store.SessionsOf(ctx, userID, connectorID)
	errs := []error{wrapped("sessions of a user", err)} // one that cannot be read keeps no other from its end
	for i := range all {
		at := front.AuthenticatedAt(&all[i])
		if all[i].ID == which.except || at.After(which.until) && !at.After(p.now()) { // a later one is of a clock that was ahead
			continue
		}
		if _, err := p.end(ctx, g, all[i].ID, why); err != nil {
			errs = append(errs, err)
		} else {
			ended++
		}
	}
	errs = append(errs, p.revokeRefresh(ctx, connectorID, userID)) // afterwards: a session gives new ones
	if deviceFlow(g.config) {
		errs = append(errs, p.forgetDevices(ctx, connectorID, userID))
	}
	p.forget(ctx, connectorID, userID) // a refresh token may have been the last that it was kept for
	return ended, errors.Join(errs...)
}

// revokeRefresh deletes a user's refresh tokens: first each token, which decides, then what refers to it, so that nothing is forgotten where it
// stops half way. Dex's own way only logs what fails, and may leave a token that nothing refers to.
func (p *Provider) revokeRefresh(ctx context.Context, connectorID, userID string) error {
	o, err := p.store.GetOfflineSessions(ctx, userID, connectorID)
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("provider: read refresh tokens: %w", err)
	}
	gone := map[string]bool{}
	for _, ref := range o.Refresh {
		if err := p.store.DeleteRefresh(ctx, ref.ID); err != nil && !errors.Is(err, storage.ErrNotFound) {
			return fmt.Errorf("provider: revoke refresh token: %w", err)
		}
		gone[ref.ID] = true
	}
	if len(gone) == 0 {
		return nil
	}
	err = p.store.UpdateOfflineSessions(ctx, userID, connectorID, func(o storage.OfflineSessions) (storage.OfflineSessions, error) {
		for client, ref := range o.Refresh {
			if gone[ref.ID] {
				delete(o.Refresh, client)
			}
		}
		return o, nil
	})
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return fmt.Errorf("provider: revoke refresh tokens: %w", err)
	}
	return nil
}

// forgetDevices deletes the tokens that a user's devices have not fetched yet. There are few: they wait for some minutes.
func (p *Provider) forgetDevices(ctx context.Context, connectorID, userID string) error {
	err := p.store.DeleteDeviceTokens(ctx, func(t *storage.DeviceToken) bool {
		made, err := readDeviceToken(t.Token)
		if t.Token == "" || err != nil {
			return false
		}
		user, connector, ok := front.ParseSubject(made.Subject)
		return ok && user == userID && connector == connectorID
	})
	return wrapped("tokens of devices", err)
}
