package provider

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"gatehouse/connectors"
	"gatehouse/provider/front"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// ErrNoSession means that a session does not exist: it never did, has ended or was collected.
var ErrNoSession = errors.New("provider: no such session")

// A Session is one signed-in browser with the identity of its user as it is known now.
type Session struct {
	ID, UserID, ConnectorID        string
	Email, Name, PreferredUsername string
	Groups                         []string
	SignedInAt, LastActivity       time.Time
	IdleExpiry, AbsoluteExpiry     time.Time
	BlockedUntil                   time.Time
	IPAddress, UserAgent           string // as at the last sign-in; hostile text

	User *identity.User // goes on being asked about, as long as the session is used; nil in a list
}

// Session reads a stored session, expired or not, or fails with ErrNoSession.
func (p *Provider) Session(ctx context.Context, id string) (*Session, error) {
	s, err := p.store.GetAuthSession(ctx, id)
	if err != nil {
		return nil, sessionError(err)
	}
	return p.inUse(ctx, s)
}

// inUse describes a session that somebody uses: its user is one to ask about.
func (p *Provider) inUse(ctx context.Context, s storage.AuthSession) (*Session, error) {
	d, lastLogin, err := p.describe(ctx, s)
	if err != nil {
		return nil, err
	}
	if d.SignedInAt.After(lastLogin) {
		lastLogin = d.SignedInAt
	}
	d.User = p.live.User(s.ConnectorID, s.UserID, lastLogin)
	return d, nil
}

// describe adds the identity, read past the guard: whether a user is blocked is for the gateway to see.
// lastLogin is when the user last proved who they are, in any browser.
func (p *Provider) describe(ctx context.Context, s storage.AuthSession) (_ *Session, lastLogin time.Time, err error) {
	u, err := p.store.GetUserIdentity(ctx, s.UserID, s.ConnectorID)
	if err != nil {
		return nil, time.Time{}, sessionError(err)
	}
	name := u.Claims.Username
	return &Session{
		ID: s.ID, UserID: s.UserID, ConnectorID: s.ConnectorID,
		Email: u.Claims.Email, Name: name, PreferredUsername: u.Claims.PreferredUsername, Groups: u.Claims.Groups,
		SignedInAt: front.AuthenticatedAt(&s), LastActivity: s.LastActivity, IdleExpiry: s.IdleExpiry, AbsoluteExpiry: s.AbsoluteExpiry,
		BlockedUntil: u.BlockedUntil, IPAddress: s.IPAddress, UserAgent: s.UserAgent,
	}, u.LastLogin, nil
}

func sessionError(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return ErrNoSession
	}
	return fmt.Errorf("provider: read session: %w", err)
}

// AllSessions yields every stored session whose user's identity is known, in no particular order, one after the other: it holds none while the caller looks at
// another. With an error that is store.OnlyUnread comes a session of which nothing is known but its ID and whose it is, and the others follow; after any other
// it ends.
func (p *Provider) AllSessions(ctx context.Context) iter.Seq2[*Session, error] {
	return func(yield func(*Session, error) bool) {
		for s, err := range p.store.AllSessions(ctx) {
			d := &Session{ID: s.ID, UserID: s.UserID, ConnectorID: s.ConnectorID}
			if err == nil {
				var known *Session
				if known, _, err = p.describe(ctx, s); err == nil {
					d = known
				}
			}
			if errors.Is(err, ErrNoSession) {
				continue
			}
			if !yield(d, wrapped("list sessions", err)) || err != nil && !store.OnlyUnread(err) {
				return
			}
		}
	}
}

// Sessions is AllSessions as a list, for few; an error if one of them cannot be read.
func (p *Provider) Sessions(ctx context.Context) (all []*Session, _ error) {
	for s, err := range p.AllSessions(ctx) {
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// Touch records activity in a session at a time. It never revives one that has ended: ErrNoSession.
func (p *Provider) Touch(ctx context.Context, id string, at time.Time) (*Session, error) {
	idle := p.current.Load().sessions.ValidIfNotUsedFor
	var touched storage.AuthSession
	err := p.store.UpdateAuthSession(ctx, id, func(s storage.AuthSession) (storage.AuthSession, error) {
		if !at.Before(s.IdleExpiry) || !at.Before(s.AbsoluteExpiry) {
			return s, storage.ErrNotFound
		}
		if at.After(s.LastActivity) {
			s.LastActivity = at
			s.IdleExpiry = at.Add(idle)
			if s.IdleExpiry.After(s.AbsoluteExpiry) {
				s.IdleExpiry = s.AbsoluteExpiry
			}
		}
		touched = s
		return s, nil
	})
	if err != nil {
		return nil, sessionError(err)
	}
	return p.inUse(ctx, touched)
}

// A Change says that a session (SessionID set) or all sessions of a user are no longer what they were. With
// everything empty anything may have changed.
type Change struct{ SessionID, UserID, ConnectorID string }

// Subscribe calls f for every change of a session or an identity, after it is stored and before the call that made
// it returns; and for those of other processes as soon as they are seen.
func (p *Provider) Subscribe(f func(Change)) (cancel func()) {
	return p.store.Subscribe(func(c store.Change) {
		switch c.Kind {
		case store.KindSession:
			f(Change{SessionID: c.ID})
		case store.KindIdentity, store.KindPassword:
			f(Change{UserID: c.UserID, ConnectorID: c.ConnectorID})
		case "":
			f(Change{})
		case store.KindAuthRequest, store.KindAuthCode, store.KindRefreshToken, store.KindOffline, store.KindDeviceRequest,
			store.KindDeviceToken, store.KindClient, store.KindConnector, store.KindKeys, store.KindSecret,
			store.KindSpentCode, store.KindReplay, store.KindVouched, store.KindMark, store.KindGrants, store.KindOutbox, store.KindUpstream, store.KindSeen:
		}
	})
}

// Who ends a session, in the audit log.
const (
	byUser      = "user"
	byOperator  = "operator"
	byFile      = "configuration" // the user is not in the file any more
	byDirectory = "directory"     // the connector says that the user may not go on
	byUpstream  = "upstream"      // the identity provider says that its session has ended
)

// A cause is who ended a session, and why where that is not said by it.
type cause struct {
	by     string
	reason connectors.Reason
}

// SignOut ends a session: first the session itself, since it is the truth, then what is bound to it, then the other
// Relying Parties are told. next is where the browser has to go for the rest, such as the upstream identity provider, to end its own session, or "".
// A session that is already gone is no error.
func (p *Provider) SignOut(ctx context.Context, id string) (next string, err error) {
	g := p.acquire()
	defer g.release()
	return p.end(ctx, g, id, cause{by: byUser})
}

// Revoke is SignOut by an operator.
func (p *Provider) Revoke(ctx context.Context, id string) error {
	g := p.acquire()
	defer g.release()
	_, err := p.end(ctx, g, id, cause{by: byOperator})
	return err
}

func (p *Provider) end(ctx context.Context, g *generation, id string, why cause) (next string, err error) {
	s, err := p.store.GetAuthSession(ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("provider: sign out: %w", err)
	}
	email := ""
	if u, err := p.store.GetUserIdentity(ctx, s.UserID, s.ConnectorID); err == nil {
		email = u.Claims.Email
	}
	switch err := p.store.EndSession(ctx, id, g.notices(ctx, &s, p.now())); {
	case errors.Is(err, storage.ErrNotFound): // somebody else was faster, and does the rest
		return "", nil
	case err != nil:
		return "", fmt.Errorf("provider: sign out: %w", err)
	}
	p.outbox.look()
	p.ended.WithLabelValues(why.by, string(why.reason)).Inc()
	log := p.audit
	if why.reason != "" {
		log = log.With("reason", string(why.reason))
	}
	log.InfoContext(ctx, "sign-out", "by", why.by, "connector", s.ConnectorID, "user", email, "user_id", s.UserID, "session", hashID(id))

	ctx = context.WithoutCancel(ctx)                  // the session is over: what follows from it is not to be lost to a closed connection
	if err := p.revokeBound(ctx, g, &s); err != nil { // they are refused all the same: their session is over
		p.log.WarnContext(ctx, "refresh tokens that end with a session are kept for now", "connector", s.ConnectorID, "user_id", s.UserID, "error", err)
	}
	p.forget(ctx, s.ConnectorID, s.UserID)
	p.unlink(ctx, g, s.ConnectorID, id)

	door, ok := g.doors.Door(s.ConnectorID)
	if !ok {
		return "", nil
	}
	next, err = door.LogoutURL(ctx, p.issuer.String()+"/logout/callback")
	if err != nil {
		p.log.WarnContext(ctx, "upstream logout is not possible", "connector", s.ConnectorID, "error", err)
		return "", nil
	}
	if next == "" && door.Negotiates() { // that page lets somebody else sign in next: a browser with a ticket would be signed in again at once
		next = p.issuer.String() + "/logout/callback"
	}
	return next, nil
}

// revokeBound deletes the refresh tokens that end with a session: each token first, then what refers to it. Dex's own way is the other way
// round, and leaves a token that it then fails at (500). That of another session of the user is not touched.
func (p *Provider) revokeBound(ctx context.Context, g *generation, s *storage.AuthSession) error {
	o, err := p.store.GetOfflineSessions(ctx, s.UserID, s.ConnectorID)
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for id := range s.ClientStates {
		ref := o.Refresh[id]
		if ref == nil || ref.SessionID != "" && ref.SessionID != s.ID {
			continue
		}
		if c, err := g.storage.GetClient(ctx, id); err == nil && c.RefreshBoundToSession() {
			errs = append(errs, revokeToken(ctx, p.store, s.UserID, s.ConnectorID, *ref))
		}
	}
	return errors.Join(errs...)
}

// always is the end of time, for endAll. It is never assigned to.
var always = time.Unix(1<<40, 0)

// endAll ends what a user has: the sessions that began until then, or are of the future, and all refresh tokens.
func (p *Provider) endAll(ctx context.Context, g *generation, connectorID, userID string, why cause, until time.Time) error {
	_, err := p.endSessions(ctx, g, connectorID, userID, why, ending{until: until})
	return err
}
