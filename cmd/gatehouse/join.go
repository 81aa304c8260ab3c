package main

import (
	"context"
	"errors"
	"iter"
	"time"

	"gatehouse/authz"
	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/admin"
	"gatehouse/internal/audit"
	"gatehouse/provider"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"
	"gatehouse/web"
)

// viewStore shows the provider's sessions to the gateway.
type viewStore struct{ p *provider.Provider }

// Session implements session.Store.
func (v viewStore) Session(ctx context.Context, id string) (*session.Session, error) {
	return viewSession(v.p.Session(ctx, id))
}

// Touch implements session.Store.
func (v viewStore) Touch(ctx context.Context, id string, at time.Time) (*session.Session, error) {
	return viewSession(v.p.Touch(ctx, id, at))
}

// Subscribe implements session.Store.
func (v viewStore) Subscribe(f func(session.Change)) (cancel func()) {
	return v.p.Subscribe(func(c provider.Change) {
		f(session.Change{Session: c.SessionID, User: session.User{Connector: c.ConnectorID, ID: c.UserID}})
	})
}

func viewSession(s *provider.Session, err error) (*session.Session, error) {
	switch {
	case errors.Is(err, provider.ErrNoSession):
		return nil, session.ErrNotFound
	case err != nil:
		return nil, err
	}
	out := &session.Session{
		ID: s.ID, User: session.User{Connector: s.ConnectorID, ID: s.UserID},
		Identity: policy.Identity{
			Connector: s.ConnectorID, UserID: s.UserID, Email: s.Email, Name: s.Name, PreferredUsername: s.PreferredUsername, Groups: s.Groups,
			Expiry: s.AbsoluteExpiry,
		},
		SignedInAt: s.SignedInAt, LastActivity: s.LastActivity, IdleExpiry: s.IdleExpiry, AbsoluteExpiry: s.AbsoluteExpiry, BlockedUntil: s.BlockedUntil,
	}
	if s.User != nil {
		out.Voucher = voucher{s.User}
	}
	return out, nil
}

// A voucher vouches for a user of the provider's.
type voucher struct{ user *identity.User }

// Vouch implements session.Voucher.
func (v voucher) Vouch(ctx context.Context, signedIn, now time.Time) (waited bool, err error) {
	waited, err = v.user.Vouch(ctx, signedIn, now)
	if err != nil && errors.Is(err, identity.ErrEnded) {
		return waited, session.ErrNotFound
	}
	return waited, err
}

// appTokens signs the gateway's tokens for apps with the provider's key.
type appTokens struct{ p *provider.Provider }

// SignAppToken implements authz.Signer.
func (a appTokens) SignAppToken(c *authz.TokenClaims) (string, error) {
	return a.p.SignAppToken(&provider.AppToken{
		ConnectorID: c.Connector, UserID: c.UserID, Email: c.Email, Name: c.Name, PreferredUsername: c.PreferredUsername, Groups: c.Groups,
		Audience: c.Audience, IssuedAt: c.IssuedAt, Expiry: c.Expiry,
	})
}

// operatorSessions shows the provider's sessions to the admin listener.
type operatorSessions struct{ p *provider.Provider }

// List implements admin.Sessions.
func (o operatorSessions) List(ctx context.Context) iter.Seq2[admin.Session, error] {
	return func(yield func(admin.Session, error) bool) {
		for s, err := range o.p.AllSessions(ctx) {
			shown := adminSession(s)
			if store.OnlyUnread(err) {
				shown.Error, err = err.Error(), nil
			}
			if !yield(shown, err) || err != nil {
				return
			}
		}
	}
}

func adminSession(s *provider.Session) admin.Session {
	expires := s.AbsoluteExpiry
	if s.IdleExpiry.Before(expires) {
		expires = s.IdleExpiry
	}
	return admin.Session{
		ID: audit.Hash(s.ID), User: s.Email, Connector: s.ConnectorID, UserID: s.UserID, Groups: noNull(s.Groups),
		SignedInAt: s.SignedInAt, LastActivity: s.LastActivity, ExpiresAt: expires, Address: s.IPAddress, UserAgent: s.UserAgent,
	}
}

// Revoke implements admin.Sessions.
func (o operatorSessions) Revoke(ctx context.Context, hash string) error {
	err := o.p.RevokeHashed(ctx, hash)
	if errors.Is(err, provider.ErrNoSession) {
		return admin.ErrNotFound
	}
	return err
}

// noNull is a list that JSON writes as [] where it is empty, as programs that read it want.
func noNull(list []string) []string { return append([]string{}, list...) }

// operatorUsers shows the provider's users to the admin listener.
type operatorUsers struct{ p *provider.Provider }

// Users implements admin.Users.
func (o operatorUsers) Users(ctx context.Context, blocked bool) iter.Seq2[admin.User, error] {
	return func(yield func(admin.User, error) bool) {
		for u, err := range o.p.Users(ctx) {
			if err != nil && !store.OnlyUnread(err) {
				yield(admin.User{}, err)
				return
			}
			shown := adminUser(u)
			switch {
			case err != nil: // who may be blocked
				shown.Error = err.Error()
			case blocked && shown.BlockedUntil.IsZero():
				continue
			}
			if !yield(shown, nil) {
				return
			}
		}
	}
}

func adminUser(u *provider.User) admin.User {
	out := admin.User{
		User: u.Email, Name: u.Name, Connector: u.ConnectorID, UserID: u.UserID, Groups: noNull(u.Groups),
		LastSignIn: u.LastLogin, Sessions: u.Sessions,
	}
	if u.BlockedUntil.After(utc()) {
		out.BlockedUntil = u.BlockedUntil
	}
	return out
}

// find returns the one user of a name, as the outcome of what is yet to be done.
func (o operatorUsers) find(ctx context.Context, name string) (admin.Outcome, error) {
	u, err := o.p.FindUser(ctx, name)
	if several, ok := errors.AsType[*provider.AmbiguousError](err); ok {
		out := &admin.AmbiguousError{}
		for _, c := range several.Users {
			out.Candidates = append(out.Candidates, adminUser(c))
		}
		return admin.Outcome{}, out
	}
	if err != nil {
		return admin.Outcome{}, userError(err)
	}
	return admin.Outcome{User: adminUser(u), Overlooked: u.Overlooked}, nil
}

func userError(err error) error {
	if errors.Is(err, provider.ErrNoUser) {
		return admin.ErrNoUser
	}
	return err
}

// Block implements admin.Users.
func (o operatorUsers) Block(ctx context.Context, name string, until time.Time) (admin.Outcome, error) {
	if until.IsZero() || until.After(provider.Forever) {
		until = provider.Forever
	}
	done, err := o.find(ctx, name)
	if err != nil {
		return admin.Outcome{}, err
	}
	if done.Ended, err = o.p.Block(ctx, done.User.Connector, done.User.UserID, until); err != nil {
		return admin.Outcome{}, err
	}
	done.User.BlockedUntil = until
	return done, nil
}

// Unblock implements admin.Users.
func (o operatorUsers) Unblock(ctx context.Context, name string) (admin.Outcome, error) {
	done, err := o.find(ctx, name)
	if err != nil {
		return admin.Outcome{}, err
	}
	if err := o.p.Unblock(ctx, done.User.Connector, done.User.UserID); err != nil {
		return admin.Outcome{}, userError(err)
	}
	done.User.BlockedUntil = time.Time{}
	return done, nil
}

// SignOut implements admin.Users.
func (o operatorUsers) SignOut(ctx context.Context, name string) (admin.Outcome, error) {
	done, err := o.find(ctx, name)
	if err != nil {
		return admin.Outcome{}, err
	}
	done.Ended, err = o.p.RevokeUser(ctx, done.User.Connector, done.User.UserID)
	return done, err
}

// operatorKeys rotates the provider's signing keys for the admin listener.
type operatorKeys struct{ p *provider.Provider }

// RotateKeys implements admin.Keys.
func (o operatorKeys) RotateKeys(ctx context.Context, now bool) (admin.Rotation, error) {
	r, err := o.p.RotateKeys(ctx, now)
	return admin.Rotation{KeyID: r.KeyID, SignsFrom: r.SignsFrom, Withdrawn: noNull(r.Withdrawn)}, err
}

// gatewayPages are the pages of package web as the authorizer shows them on app hosts.
type gatewayPages struct {
	web     *web.Pages
	signOut string // path
	account string // URL
}

// Page implements authz.Pages.
func (g gatewayPages) Page(kind authz.PageKind, d authz.PageData, accept string) []byte {
	lang := g.web.Language(accept)
	switch {
	case kind == authz.PageDenied && (d.Problem == authz.ProblemDenied || d.Problem == authz.ProblemBlocked):
		page := web.Denied{User: d.User, Rule: d.Rule, RequestID: d.RequestID}
		if d.User != "" {
			page.SignOutURL, page.AccountURL = g.signOut, g.account
		}
		return g.web.Denied(lang, page).Body
	case kind == authz.PageSignedOut:
		return g.web.SignedOut(lang, web.SignedOut{SignInURL: d.SignIn, ContinueURL: d.Next}).Body
	case kind == authz.PageSignOut:
		return g.web.SignOutConfirm(lang, web.SignOutConfirm{Action: d.Action, User: d.User, AccountURL: g.account, BackURL: "/"}).Body
	}
	page := web.Error{Code: problemCode(d.Problem), Status: d.Status, RequestID: d.RequestID}
	if page.Code != web.NotFound {
		page.RetryURL = d.SignIn
	}
	return g.web.Error(lang, page).Body
}

func problemCode(p authz.Problem) web.Code {
	switch p {
	case authz.ProblemUnlistedHost:
		return web.UnknownHost
	case authz.ProblemBadRequest:
		return web.AmbiguousPath
	case authz.ProblemUnavailable:
		return web.Unavailable
	case authz.ProblemLoop:
		return web.Loop
	case authz.ProblemNoCookies:
		return web.CookiesBlocked
	case authz.ProblemLink:
		return web.ExpiredLink
	case authz.ProblemForm:
		return web.CrossSite
	case authz.ProblemNotFound:
		return web.NotFound
	case authz.ProblemSession:
		return web.NotSignedIn
	case authz.ProblemMethod, authz.ProblemDenied, authz.ProblemBlocked, authz.ProblemBearer:
		return web.BadRequest
	}
	return web.Internal
}
