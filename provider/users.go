package provider

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"gatehouse/internal/config"
	"gatehouse/provider/store"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// A user of the file signs in once and is known by what is stored then. So what the file says later has to be stored
// too, or a user who is gone would stay signed in. A changed password is a matter of marks (marks.go): sessions that began before end.

// touchedUsers returns the user ids of those of whom the two files say something else.
func touchedUsers(before, after *config.Config) []string {
	describe := func(c *config.Config) map[string]storage.Password {
		users := map[string]storage.Password{}
		if !c.EnablePasswordDB {
			return users
		}
		for _, u := range staticUsers(c) {
			u.Hash = nil
			users[u.UserID] = u
		}
		return users
	}
	old, now := describe(before), describe(after)
	var touched []string
	for id, u := range old {
		if n, ok := now[id]; !ok || !reflect.DeepEqual(u, n) {
			touched = append(touched, id)
		}
	}
	for id := range now {
		if _, ok := old[id]; !ok {
			touched = append(touched, id) // who may be known from earlier
		}
	}
	slices.Sort(touched)
	return touched
}

// Reconcile makes what is stored of local users say what the configuration of New says, which may have changed while no
// process ran: who is not in it any more, or has another password, is signed out everywhere. What clients have that are gone, or have another secret, is
// revoked. It is for whoever is sure to serve. Records that cannot be read keep it from nothing else: they are logged, and nobody gets in by them.
func (p *Provider) Reconcile(ctx context.Context) error {
	ids, err := p.store.UsersOf(ctx, dexconnectors.LocalConnector)
	if err != nil {
		return fmt.Errorf("provider: list users: %w", err)
	}
	err = errors.Join(p.reconcileUsers(ctx, ids), p.reconcileSecrets(ctx, p.current.Load().config))
	if store.OnlyUnread(err) {
		p.log.ErrorContext(ctx, "some of what is stored of local users cannot be read, and stays as it is", "error", err)
		return nil
	}
	return err
}

// reconcileUsers makes what is stored of local users say what the current configuration says: who is not in it is
// signed out everywhere. An error about one keeps it from no other.
func (p *Provider) reconcileUsers(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	p.reconcile.Lock()
	defer p.reconcile.Unlock()
	g := p.acquire()
	defer g.release()
	all, missing := p.localUsers(ctx, g)
	if missing != nil && !store.OnlyUnread(missing) {
		return missing
	}
	users := map[string]storage.Password{}
	for _, u := range all {
		users[u.UserID] = u
	}
	var errs []error
	var unread store.Unreads
	for _, id := range ids {
		u, ok := users[id]
		var err error
		switch {
		case ok:
			err = p.restate(ctx, u)
		case missing == nil:
			err = p.endAll(ctx, g, dexconnectors.LocalConnector, id, cause{by: byFile}, always)
		default: // who was one of the file ends by their mark (reconcileSecrets)
			err = missing
		}
		if err != nil && !unread.Add(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, unread.Err())...)
}

// localUsers returns the users of the file, and those who are stored as Dex knows them. With an error that is store.OnlyUnread it returns all but those
// who cannot be read.
func (p *Provider) localUsers(ctx context.Context, g *generation) ([]storage.Password, error) {
	if !g.config.EnablePasswordDB {
		return nil, nil
	}
	all, err := g.storage.ListPasswords(ctx)
	return all, wrapped("list local users", err)
}

// restate stores what the configuration says of a user who has signed in before.
func (p *Provider) restate(ctx context.Context, u storage.Password) error {
	claims := claimsOf(u)
	known, err := p.store.GetUserIdentity(ctx, u.UserID, dexconnectors.LocalConnector)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("provider: read user: %w", err)
	}
	if !sameClaims(known.Claims, claims) {
		err = p.store.UpdateUserIdentity(ctx, u.UserID, dexconnectors.LocalConnector, func(i storage.UserIdentity) (storage.UserIdentity, error) {
			i.Claims = claims
			return i, nil
		})
		if err != nil {
			return fmt.Errorf("provider: store user: %w", err)
		}
	}
	if known.Claims.Email == u.Email {
		return nil
	}
	return p.restateTokens(ctx, claims)
}

// restateTokens gives the refresh tokens of a user the new e-mail address, by which they find the user again.
func (p *Provider) restateTokens(ctx context.Context, claims storage.Claims) error {
	o, err := p.store.GetOfflineSessions(ctx, claims.UserID, dexconnectors.LocalConnector)
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("provider: read refresh tokens: %w", err)
	}
	var errs []error
	for _, ref := range o.Refresh {
		err := p.store.UpdateRefreshToken(ctx, ref.ID, func(t storage.RefreshToken) (storage.RefreshToken, error) {
			t.Claims = claims
			return t, nil
		})
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			errs = append(errs, fmt.Errorf("provider: store refresh token: %w", err))
		}
	}
	return errors.Join(errs...)
}

// claimsOf is what a sign-in stores (Dex's server/connectors, password.go).
func claimsOf(u storage.Password) storage.Claims {
	c := storage.Claims{
		UserID: u.UserID, Username: u.Name, PreferredUsername: u.PreferredUsername, Email: u.Email, EmailVerified: true, Groups: u.Groups,
	}
	if c.Username == "" {
		c.Username = u.Username
	}
	if u.EmailVerified != nil {
		c.EmailVerified = *u.EmailVerified
	}
	return c
}

func sameClaims(a, b storage.Claims) bool {
	same := slices.Equal(a.Groups, b.Groups)
	a.Groups, b.Groups = nil, nil
	return same && reflect.DeepEqual(a, b)
}
