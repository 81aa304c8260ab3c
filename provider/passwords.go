package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatehouse/connectors"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// A directory tells when a user's password was set. With the user's identity it is kept which one was the latest, so that whoever hears of a later one, at
// a sign-in or when asked who the user is now, knows that the password is another one, and ends what began before. A directory's time is held against its
// other times only, and never against our clocks.

// Servers of a directory do not all know of a new password at once.
const (
	// serversLag is how long one may say what was before: as long as between two sites of Active Directory, by default.
	serversLag = 15 * time.Minute
	// resetLag is how long one may say that a password is to be changed that was: as within a site. That a server lags cannot be told from another
	// reset, whose effect is not to wait for longer.
	resetLag = time.Minute
	// justNow is how long ago the directory may have told of a change that is made here, before it is noted that it was: it is faster than a slow store.
	justNow = 5 * time.Second
)

// latest is what is known of a user's password once a connector has said when it was set; now is when that is stored. news says that it is another one than
// was known. Then all that there is by now is over, however long ago the connector was asked: whoever is let in with the later one stores that before
// anything is made for them. latest does not modify known, which may be nil, as what it returns may be.
func latest(known *store.KnownPassword, set connectors.PasswordSet, now time.Time) (next *store.KnownPassword, news bool) {
	if set == connectors.PasswordUnknown {
		return known, false
	}
	var k store.KnownPassword
	if known != nil {
		k = *known
	}
	first := k.Set == 0 && !k.Reset
	switch {
	case set == connectors.PasswordReset:
		if k.Reset || !first && within(now, k.Since, resetLag) {
			return known, false
		}
		k.Reset, news = true, !first
	case k.Reset && int64(set) == k.Set && !within(now, k.Since, serversLag): // the reset was taken back, or told by a server that lagged: the next one is news
		k.Reset = false
	case int64(set) <= k.Set: // a server that lags may say less
		return known, false
	default:
		news = !first && !ownUnseen(&k, now)
		k.Set, k.Reset, k.OwnUntil = int64(set), false, time.Time{}
	}
	if news {
		k.Since, k.Pending, k.Own, k.Except = overBy(now), true, false, ""
		k.TokensOver = k.Since
	}
	return &k, news
}

// overBy is until when began what is over at now: what is made in the same instant is later.
func overBy(now time.Time) time.Time { return now.Add(-1) }

// ownUnseen reports whether the password was changed here, and nobody has told its time since.
func ownUnseen(k *store.KnownPassword, now time.Time) bool {
	left := k.OwnUntil.Sub(now)
	return left > 0 && left <= serversLag
}

// within reports whether now is less than d after t.
func within(now, t time.Time, d time.Duration) bool {
	age := now.Sub(t)
	return age >= 0 && age < d
}

// former reports whether what somebody was let in with may have been a password from before the known one: it was looked at before that was noticed, or
// lately by a server that does not know of it yet. Whoever is refused for it may try again at once, or after a while.
func former(known *store.KnownPassword, e identity.Evidence, now time.Time) bool {
	if known == nil || known.Since.IsZero() || known.Since.After(now.Add(maxSkew)) {
		return false
	}
	set := int64(e.Set)
	if set > known.Set || set == known.Set && !known.Reset && !ownUnseen(known, now) {
		return false
	}
	lags := e.Set > connectors.PasswordNeverSet && (set < known.Set || known.Reset)
	return !e.Began.After(known.Since) || lags && within(now, known.Since, serversLag)
}

// maxSkew is how far the clocks of replicas may be apart.
const maxSkew = 10 * time.Second

var errFormerPassword = errors.New("provider: the password that was checked may not be the user's any more")

// bare is the identity of somebody of whom nothing else is known.
func bare(connectorID, userID string, now time.Time) store.Identity {
	return store.Identity{UserIdentity: storage.UserIdentity{
		UserID: userID, ConnectorID: connectorID, Claims: storage.Claims{UserID: userID}, Consents: map[string][]string{}, CreatedAt: now,
	}}
}

// upsert updates an identity, and makes it where there is none.
func upsert(ctx context.Context, s *store.Store, connectorID, userID string, now time.Time, updater func(store.Identity) (store.Identity, error)) error {
	for {
		err := s.UpdateIdentity(ctx, userID, connectorID, updater)
		if !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		fresh, err := updater(bare(connectorID, userID, now))
		if err == nil {
			err = s.CreateIdentity(ctx, fresh)
		}
		if !errors.Is(err, storage.ErrAlreadyExists) { // else somebody was faster
			return err
		}
	}
}

// CreateUserIdentity implements storage.Storage: of whoever signs in for the first time, and of that in several browsers at once, which Dex does not expect.
func (s cutoffs) CreateUserIdentity(ctx context.Context, v storage.UserIdentity) error {
	i := store.Identity{UserIdentity: v}
	if e, ok := identity.EvidenceOf(ctx, v.ConnectorID); ok {
		i.Password, _ = latest(nil, e.Set, s.now())
	}
	err := s.store.CreateIdentity(ctx, i)
	if !errors.Is(err, storage.ErrAlreadyExists) {
		return err
	}
	return s.UpdateUserIdentity(ctx, v.UserID, v.ConnectorID, func(u storage.UserIdentity) (storage.UserIdentity, error) {
		if s.now().Before(u.BlockedUntil) { // a block was faster: what it has made stays so
			return u, errCutOff
		}
		u.Claims, u.LastLogin = v.Claims, v.LastLogin
		return u, nil
	})
}

// UpdateUserIdentity implements storage.Storage. Of a sign-in it stores which password it was, before there is a session; and ends those of a former one.
// Whether it was itself a former one is looked at once there is a session: see allowed.
func (s cutoffs) UpdateUserIdentity(ctx context.Context, userID, connectorID string, updater func(storage.UserIdentity) (storage.UserIdentity, error)) error {
	news := false
	err := s.store.UpdateIdentity(ctx, userID, connectorID, func(i store.Identity) (_ store.Identity, err error) {
		if i.UserIdentity, err = updater(i.UserIdentity); err != nil {
			return i, err
		}
		if e, ok := identity.EvidenceOf(ctx, connectorID); ok {
			i.Password, news = latest(i.Password, e.Set, s.now())
		}
		return i, nil
	})
	if err == nil && news {
		s.outdated(ctx, connectorID, userID)
	}
	return err
}

// seenGranted does for the password grant, which is no sign-in and leaves no identity, what UpdateUserIdentity does.
func (s cutoffs) seenGranted(ctx context.Context, userID, connectorID string) error {
	e, ok := identity.EvidenceOf(ctx, connectorID)
	if !ok || identity.Proves(ctx) || e.Set == connectors.PasswordUnknown {
		return nil
	}
	errSame, news := errors.New("nothing to store"), false
	err := upsert(ctx, s.store, connectorID, userID, s.now(), func(i store.Identity) (store.Identity, error) {
		before := i.Password
		if i.Password, news = latest(before, e.Set, s.now()); i.Password == before {
			return i, errSame
		}
		return i, nil
	})
	switch {
	case errors.Is(err, errSame):
		return nil
	case err != nil:
		return fmt.Errorf("provider: store which password it was: %w", err)
	case news:
		s.outdated(ctx, connectorID, userID)
	}
	return nil
}

// letIn implements front.Options.LetIn. What the password grant leaves in the store is looked at by its maker (see allowed); a token alone leaves nothing there.
func (p *Provider) letIn(ctx context.Context, connectorID, userID string) error {
	e, _ := identity.EvidenceOf(ctx, connectorID)
	i, err := p.store.GetIdentity(store.Fresh(ctx), userID, connectorID)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err != nil:
		return wrapped("read user", err)
	case former(i.Password, e, p.now()):
		return errFormerPassword
	}
	return nil
}

// endFormerSoon ends what began with a former password, now or as soon as it can be. Until then it is refused by whoever asks about the user.
func (p *Provider) endFormerSoon(ctx context.Context, connectorID, userID string) {
	err := p.endFormer(context.WithoutCancel(ctx), connectorID, userID) // whoever has signed in may be gone
	if err == nil {
		return
	}
	p.log.ErrorContext(ctx, "sessions from before a change of password could not be ended; it is tried again", "connector", connectorID, "user_id", userID, "error", err)
	go p.untilStored(func() error { return p.endFormer(p.life, connectorID, userID) })
}

// endFormer ends what a user has that began with a former password, if that is still to be done.
func (p *Provider) endFormer(ctx context.Context, connectorID, userID string) error {
	i, err := p.store.GetIdentity(ctx, userID, connectorID)
	switch {
	case errors.Is(err, storage.ErrNotFound), err == nil && !pending(i.Password):
		return nil
	case err != nil:
		return wrapped("read user", err)
	}
	g := p.acquire()
	defer g.release()
	why := cause{by: byDirectory, reason: connectors.PasswordChanged}
	if i.Password.Own {
		why = cause{by: byUser}
	}
	ended, err := p.endSessions(ctx, g, connectorID, userID, why, ending{until: i.Password.Since, except: i.Password.Except})
	if err != nil {
		return err
	}
	settled, err := p.settlePassword(ctx, connectorID, userID, i.Password.Since)
	if settled && !i.Password.Own {
		p.audit.InfoContext(ctx, "password changed", "by", byDirectory, "connector", connectorID, "user_id", userID, "sessions", ended)
	}
	return err
}

func pending(k *store.KnownPassword) bool { return k != nil && k.Pending }

// settlePassword notes that what began until then was ended, and reports whether nobody had yet.
func (p *Provider) settlePassword(ctx context.Context, connectorID, userID string, since time.Time) (news bool, err error) {
	errSettled := errors.New("settled already")
	err = p.store.UpdateIdentity(ctx, userID, connectorID, func(i store.Identity) (store.Identity, error) {
		if !pending(i.Password) || !i.Password.Since.Equal(since) {
			return i, errSettled
		}
		k := *i.Password
		k.Pending, k.Except = false, ""
		i.Password = &k
		return i, nil
	})
	if errors.Is(err, errSettled) || errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return err == nil, wrapped("store user", err)
}

// changedHere notes that a user has just chosen another password on our page: what was proven before, and what began before, is over but for
// one session. The directory will tell of it, and that is no news then. until is when began what is over; zero: by now, which it returns.
func (p *Provider) changedHere(ctx context.Context, connectorID, userID, kept string, until time.Time) (since time.Time, err error) {
	errLater := errors.New("there was another change since")
	err = upsert(ctx, p.store, connectorID, userID, p.now(), func(i store.Identity) (store.Identity, error) {
		var k store.KnownPassword
		if i.Password != nil {
			k = *i.Password
		}
		now := p.now()
		if since = until; since.IsZero() {
			since = overBy(now)
		} else if k.Since.After(since) && !k.Since.After(now) {
			return i, errLater
		}
		told := !k.Own && !k.Reset && !k.Since.IsZero() && within(now, k.Since, justNow)
		k.Since, k.Pending, k.Own, k.Except, k.Reset = since, true, true, kept, false
		if k.OwnUntil = since.Add(serversLag); told {
			k.OwnUntil = time.Time{}
		}
		i.Password = &k
		return i, nil
	})
	if errors.Is(err, errLater) {
		err = nil
	}
	return since, wrapped("store user", err)
}

// keepPassword takes what a connector has said into what is known of a user's password.
func (p *Provider) keepPassword(known *store.KnownPassword, set connectors.PasswordSet) (next *store.KnownPassword, same bool) {
	next, _ = latest(known, set, p.now())
	return next, next == known
}

// overOf is until when a user's sessions began that are still to be ended, since the password is another one. Those of a change that was made here end with
// the request that made it: where that process has died they are ended now.
func (p *Provider) overOf(ctx context.Context, connectorID, userID string, k *store.KnownPassword) (over time.Time, err error) {
	switch {
	case !pending(k):
		return time.Time{}, nil
	case k.Own:
		return time.Time{}, p.endFormer(ctx, connectorID, userID)
	}
	return k.Since, nil
}

// tokenOver reports whether a token of a user was issued before it was noticed that the password is another one. Tokens know whole seconds. That the user
// then chooses yet another one here, as after a reset, brings none of them back.
func tokenOver(k *store.KnownPassword, issued, now time.Time) bool {
	return k != nil && !k.TokensOver.After(now) && issued.Before(k.TokensOver.Truncate(time.Second))
}
