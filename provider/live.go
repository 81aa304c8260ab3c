package provider

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"

	"gatehouse/connectors"
	"gatehouse/internal/config"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// How often somebody is asked about a user in use where the configuration does not say: a directory and the file, which are near and are asked
// about many at once, and an upstream identity provider.
const (
	defaultRevalidate  = time.Minute
	upstreamRevalidate = 10 * time.Minute
)

func livePolicy(c *config.Config) identity.Policy {
	p := identity.Policy{Every: defaultRevalidate, Stale: 15 * time.Minute, Of: map[string]identity.Pace{}}
	upstream := upstreamRevalidate
	if g := c.Gateway; g != nil {
		p.Stale = g.Session.StaleIfUnavailable.Std()
		if g.Session.Revalidate > 0 {
			p.Every = g.Session.Revalidate.Std()
			upstream = p.Every
		}
	}
	for _, k := range c.Connectors {
		if identity.AsksUpstream(k.Type) {
			p.Of[k.ID] = identity.UpstreamPace(upstream)
		}
	}
	return p
}

// newUpstream returns who asks upstream identity providers.
func (p *Provider) newUpstream() *identity.Upstream {
	return identity.NewUpstream(identity.UpstreamOptions{
		Store: p.store, Now: p.now, Log: p.log,
		Every: func(connector string) time.Duration { return p.live.Every(connector) },
		Life:  func() time.Duration { return grantsFor(p.current.Load().config) },
	})
}

// grantsFor is how long it is kept what an upstream gave to ask about a user with, since the last answer: as long as the user may come back without
// signing in.
func grantsFor(c *config.Config) time.Duration {
	const longest = 90 * 24 * time.Hour // where refresh tokens have no end
	life := c.Sessions.AbsoluteLifetime.Std()
	switch r := c.Expiry.RefreshTokens; {
	case r.ValidIfNotUsedFor > 0:
		life = max(life, r.ValidIfNotUsedFor.Std())
	case r.AbsoluteLifetime > 0:
		life = max(life, r.AbsoluteLifetime.Std())
	default:
		life = max(life, longest)
	}
	return life + time.Hour
}

// Finish waits until all that identity providers have said is stored, or until ctx ends. Call it between the last request and the end of the store.
func (p *Provider) Finish(ctx context.Context) { p.upstream.Wait(ctx) }

// asksUpstream reports whether users of a connector are asked about with what their sign-ins brought.
func (p *Provider) asksUpstream(connectorID string) bool {
	_, asked := livePolicy(p.current.Load().config).Of[connectorID]
	return asked
}

// forget drops what an upstream gave to ask about a user with, when nothing is left that it could be needed for.
func (p *Provider) forget(ctx context.Context, connectorID, userID string) {
	if !p.asksUpstream(connectorID) {
		return
	}
	left, err := p.store.SessionsOf(ctx, userID, connectorID)
	if err == nil && len(left) == 0 {
		var tokens storage.OfflineSessions
		if tokens, err = p.store.GetOfflineSessions(ctx, userID, connectorID); errors.Is(err, storage.ErrNotFound) || err == nil && len(tokens.Refresh) == 0 {
			err = p.upstream.Forget(ctx, connectorID, userID)
		}
	}
	if err != nil { // it expires by itself
		p.log.WarnContext(ctx, "what an identity provider gave to ask about a user with is kept for now", "connector", connectorID, "error", err)
	}
}

func (p *Provider) newLive(c *config.Config) *identity.Live {
	return identity.NewLive(p.life, identity.LiveOptions{
		Policy: livePolicy(c), Now: p.now, Log: p.log, Asker: p.asker, Keep: p.keep, End: p.endRefused,
		Remember: p.remember, Recall: p.recall, Wait: p.options.patience,
	})
}

// refollow makes a new configuration true for whoever is asked about: users of connectors that are new are asked about at once.
func (p *Provider) refollow(old, now *generation) {
	p.live.SetPolicy(livePolicy(now.config))
	for _, id := range now.doors.Replaced(old.doors) {
		p.live.Changed(id, connectors.Change{})
	}
	select {
	case p.reloaded <- struct{}{}:
	default:
	}
}

// askedLately keeps in memory what is known of users whom no session of the gateway refers to, or each of their requests would ask anew. Each
// place has the last one that fell on it.
type askedLately [1024]atomic.Pointer[identity.User]

// vouch implements front.Options.Vouch.
func (p *Provider) vouch(ctx context.Context, connectorID, userID string, since time.Time) error {
	proven := since
	u, err := p.store.GetIdentity(ctx, userID, connectorID)
	switch {
	case err == nil && (tokenOver(u.Password, since, p.now()) || beforeBlock(&u, since, p.now())):
		return identity.ErrEnded
	case err == nil && !u.LastLogin.IsZero(): // else a block has made it
		proven = u.LastLogin
	case err == nil:
	case !errors.Is(err, storage.ErrNotFound): // as after the password grant, which is no sign-in
		return fmt.Errorf("provider: read user: %w", err)
	}
	user := p.live.User(connectorID, userID, proven)
	p.asked[maphash.Comparable(placeSeed, [2]string{connectorID, userID})%uint64(len(p.asked))].Store(user)
	_, err = user.Vouch(ctx, since, p.now())
	return err
}

// placeSeed is never assigned to.
var placeSeed = maphash.MakeSeed()

// asker implements identity.LiveOptions.Asker: who answers for a connector in the current configuration.
func (p *Provider) asker(connector string) (identity.Asker, func(), error) {
	if connector == dexconnectors.LocalConnector {
		g := p.acquire()
		return fileUsers{g}, g.release, nil
	}
	for {
		g := p.current.Load()
		a, release, err := g.doors.Asker(connector)
		switch {
		case errors.Is(err, identity.ErrClosed) && p.life.Err() == nil:
			continue
		case g.doors.Configured(connector):
			p.missing.Delete(connector)
		case err == nil && p.missingFor(connector) >= livePolicy(g.config).Stale:
			return nobody{}, func() {}, nil
		}
		return a, release, err
	}
}

// missingFor is how long it is known that there is no such connector. A replica that has the next configuration already may have one.
func (p *Provider) missingFor(connector string) time.Duration {
	now := p.now()
	since, _ := p.missing.LoadOrStore(connector, now)
	if since.(time.Time).After(now) { // the clock was set back
		p.missing.Store(connector, now)
		return 0
	}
	return now.Sub(since.(time.Time))
}

// nobody answers for a connector that is not configured any more.
type nobody struct{}

// Lookup implements identity.Asker.
func (nobody) Lookup(_ context.Context, ids []string) ([]connectors.Answer, error) {
	answers := make([]connectors.Answer, len(ids))
	for i := range answers {
		answers[i].Err = &connectors.Refusal{Reason: connectors.Gone, Err: errors.New("the connector is not configured any more")}
	}
	return answers, nil
}

// fileUsers answers for local users: those of a configuration, which needs no store, and those that are stored.
type fileUsers struct{ g *generation }

// Lookup implements identity.Asker.
func (f fileUsers) Lookup(ctx context.Context, ids []string) ([]connectors.Answer, error) {
	users := map[string]storage.Password{}
	var unknown error
	if f.g.config.EnablePasswordDB {
		for _, u := range staticUsers(f.g.config) {
			users[u.UserID] = u
		}
		if slices.ContainsFunc(ids, func(id string) bool { _, ok := users[id]; return !ok }) {
			var stored []storage.Password
			stored, unknown = f.g.storage.ListPasswords(ctx)
			for _, u := range stored {
				if _, ok := users[u.UserID]; !ok {
					users[u.UserID] = u
				}
			}
		}
	}
	answers := make([]connectors.Answer, len(ids))
	for i, id := range ids {
		u, ok := users[id]
		switch {
		case ok:
			c := claimsOf(u)
			answers[i].Identity = connectors.Identity{
				UserID: c.UserID, Name: c.Username, PreferredUsername: c.PreferredUsername, Email: c.Email, EmailVerified: c.EmailVerified, Groups: c.Groups,
			}
		case unknown != nil:
			answers[i].Err = &connectors.Refusal{Reason: connectors.Unavailable, Err: unknown}
		default:
			answers[i].Err = &connectors.Refusal{Reason: connectors.Gone}
		}
	}
	return answers, nil
}

// errNewer means that a user has signed in since a question was asked: that knows better.
var errNewer = errors.New("provider: a later sign-in knows better")

// keep implements identity.LiveOptions.Keep. Nothing is written where nothing has changed.
func (p *Provider) keep(ctx context.Context, connector string, id connectors.Identity, asOf time.Time) (news bool, over time.Time, err error) {
	claims := storage.Claims{
		UserID: id.UserID, Username: id.Name, PreferredUsername: id.PreferredUsername, Email: id.Email, EmailVerified: id.EmailVerified, Groups: id.Groups,
	}
	known, err := p.store.GetIdentity(ctx, id.UserID, connector)
	password, same := p.keepPassword(known.Password, id.PasswordSet)
	switch {
	case errors.Is(err, storage.ErrNotFound): // the sessions have no identity either
		return false, over, nil
	case err != nil:
		return false, over, fmt.Errorf("provider: read user: %w", err)
	case sameUser(known.Claims, claims) && same:
		over, err = p.overOf(ctx, connector, id.UserID, password)
		return false, over, err
	case connector == dexconnectors.LocalConnector: // what the file says by now
		return true, over, p.reconcileUsers(ctx, []string{id.UserID})
	}
	err = p.store.UpdateIdentity(ctx, id.UserID, connector, func(u store.Identity) (store.Identity, error) {
		password, same = p.keepPassword(u.Password, id.PasswordSet)
		u.Password = password
		newer := u.LastLogin.After(asOf) && !u.LastLogin.After(p.now()) // a later one is of a clock that was ahead
		news = !newer && !sameUser(u.Claims, claims)
		switch {
		case news:
			u.Claims = claims
		case same:
			return u, errNewer
		}
		return u, nil
	})
	if err != nil && !errors.Is(err, errNewer) {
		return false, over, fmt.Errorf("provider: store user: %w", err)
	}
	over, err = p.overOf(ctx, connector, id.UserID, password)
	return news, over, err
}

// sameUser is sameClaims, but for the order of the groups, which directories do not keep.
func sameUser(a, b storage.Claims) bool {
	a.Groups, b.Groups = slices.Sorted(slices.Values(a.Groups)), slices.Sorted(slices.Values(b.Groups))
	return sameClaims(a, b)
}

// endRefused implements identity.LiveOptions.End.
func (p *Provider) endRefused(ctx context.Context, connector, userID string, reason connectors.Reason, until time.Time) error {
	if connector == dexconnectors.LocalConnector { // what the file says by now
		return p.reconcileUsers(ctx, []string{userID})
	}
	if reason == connectors.PasswordChanged {
		return p.endFormer(ctx, connector, userID)
	}
	g := p.acquire()
	defer g.release()
	return p.endAll(ctx, g, connector, userID, cause{by: byDirectory, reason: reason}, until)
}

// vouchedFor is how long it is kept when a user was vouched for: longer than an answer can serve.
const vouchedFor = 25 * time.Hour

// remember implements identity.LiveOptions.Remember. Users of the file can always be asked about, and an upstream's answer is kept in any case.
func (p *Provider) remember(ctx context.Context, connector string, userIDs []string, at time.Time) error {
	if connector == dexconnectors.LocalConnector || p.asksUpstream(connector) {
		return nil
	}
	list := make([]store.Vouched, len(userIDs))
	for i, id := range userIDs {
		list[i] = store.Vouched{UserID: id, ConnectorID: connector, At: at, Expiry: at.Add(vouchedFor)}
	}
	return p.store.Vouch(ctx, list)
}

// recall implements identity.LiveOptions.Recall.
func (p *Provider) recall(ctx context.Context, connector, userID string) (time.Time, error) {
	at, err := p.store.VouchedAt(ctx, userID, connector)
	if err != nil {
		return at, err
	}
	g, err := p.store.GrantsOf(ctx, userID, connector) // an upstream's last answer is in there
	switch {
	case errors.Is(err, storage.ErrNotFound), err == nil && g.Refused != "":
		return at, nil
	case err == nil && g.Asked.After(at):
		at = g.Asked
	}
	return at, err
}
