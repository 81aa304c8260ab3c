package provider

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"gatehouse/provider/store"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// ErrNoUser means that nobody is known by a name.
var ErrNoUser = errors.New("provider: no such user")

// An AmbiguousError means that several users are known by a name. Users are some of them, at most maxCandidates.
type AmbiguousError struct{ Users []*User }

func (e *AmbiguousError) Error() string { return "provider: several users are known by this name" }

// maxCandidates is how many users of one name are told apart for an operator.
const maxCandidates = 20

// A User is somebody who signed in through a connector, or whom an operator blocked.
type User struct {
	ConnectorID, UserID            string
	Email, Name, PreferredUsername string
	Groups                         []string
	LastLogin                      time.Time // zero: never
	BlockedUntil                   time.Time
	Sessions                       int // that live; of Users only
	// Overlooked is how many users cannot be read, any of whom may have the e-mail address that this one was found by; of FindUser only.
	Overlooked int
}

func userOf(u *storage.UserIdentity) *User {
	return &User{
		ConnectorID: u.ConnectorID, UserID: u.UserID, Email: u.Claims.Email, Name: u.Claims.Username, PreferredUsername: u.Claims.PreferredUsername,
		Groups: u.Claims.Groups, LastLogin: u.LastLogin, BlockedUntil: u.BlockedUntil,
	}
}

// Users yields everybody who signed in or was blocked, in no particular order, one after the other: it holds none while the caller looks at
// another. With an error that is store.OnlyUnread comes a user of whom nothing is known but who it is, and the others follow; after any other it ends.
func (p *Provider) Users(ctx context.Context) iter.Seq2[*User, error] {
	return func(yield func(*User, error) bool) {
		tally, err := p.store.TallySessions(ctx, p.now())
		if err != nil {
			yield(nil, fmt.Errorf("provider: count sessions: %w", err))
			return
		}
		for i, err := range p.store.Users(ctx) {
			u := userOf(&i)
			u.Sessions = tally.Of(u.UserID, u.ConnectorID)
			if !yield(u, wrapped("list users", err)) {
				return
			}
		}
	}
}

// FindUser returns the one user of a name: "connector:user id", or an e-mail address, whose case does not matter as it does not when a local user signs
// in. It fails with ErrNoUser, or with an *AmbiguousError: it never chooses. A user who never signed in is found by connector and id, and a local
// one by e-mail, too. Users who cannot be read are no obstacle to finding another one: see User.Overlooked.
func (p *Provider) FindUser(ctx context.Context, name string) (*User, error) {
	known, possible, err := p.byID(ctx, name)
	if err != nil {
		return nil, err
	}
	var unread store.Unreads
	if len(known) == 0 {
		if known, err = p.byEmail(ctx, name, &unread); err != nil {
			return nil, err
		}
		known = append(known, possible...) // an upstream may say what it likes of an address
	}
	switch {
	case len(known) == 0 && unread.N() > 0:
		return nil, fmt.Errorf("provider: nobody of this name can be read: %w", unread.Err())
	case len(known) == 0:
		return nil, ErrNoUser
	case len(known) == 1:
		known[0].Overlooked = unread.N()
		return known[0], nil
	}
	return nil, &AmbiguousError{known[:min(len(known), maxCandidates)]}
}

// byID reads name as "connector:user id", in every way that is possible: ids may have colons. known are users who are stored, possible
// those of a connector that is configured.
func (p *Provider) byID(ctx context.Context, name string) (known, possible []*User, err error) {
	g := p.acquire()
	defer g.release()
	for i, c := range name {
		if c != ':' {
			continue
		}
		connector, id := name[:i], name[i+1:]
		if connector == "" || id == "" {
			continue
		}
		u, err := p.store.GetUserIdentity(ctx, id, connector)
		switch {
		case err == nil:
			known = append(known, userOf(&u))
		case !errors.Is(err, storage.ErrNotFound):
			return nil, nil, fmt.Errorf("provider: read user: %w", err)
		case g.doors.Configured(connector):
			possible = append(possible, &User{ConnectorID: connector, UserID: id})
		}
	}
	return known, possible, nil
}

// byEmail reads every user, since an address may be that of several. It notes those who cannot be read.
func (p *Provider) byEmail(ctx context.Context, email string, unread *store.Unreads) (found []*User, err error) {
	if email == "" {
		return nil, nil
	}
	same := func(other string) bool { return strings.ToLower(other) == strings.ToLower(email) } //nolint:staticcheck // SA6005: as the store has it; folding knows more letters that are one
	for u, err := range p.store.Users(ctx) {
		if unread.Add(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("provider: list users: %w", err)
		}
		if same(u.Claims.Email) && len(found) <= maxCandidates {
			found = append(found, userOf(&u))
		}
	}
	g := p.acquire()
	defer g.release()
	local, err := p.localUsers(ctx, g)
	if err != nil && !unread.Add(err) {
		return nil, err
	}
	for _, l := range local {
		if !same(l.Email) || slices.ContainsFunc(found, func(u *User) bool { return u.ConnectorID == dexconnectors.LocalConnector && u.UserID == l.UserID }) {
			continue
		}
		found = append(found, &User{ConnectorID: dexconnectors.LocalConnector, UserID: l.UserID, Email: l.Email, Name: l.Username, Groups: l.Groups})
	}
	return found, nil
}
