package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatehouse/internal/audit"
	"gatehouse/provider/front"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// By what a session is linked to an upstream's, and what a logout token names.
const (
	claimSession = "sid"
	claimSubject = "sub"
)

// maxLinked bounds the names that are kept with a session, in bytes. Longer ones no logout token may have.
const maxLinked = 255

// claimUnnamed is the subject of a logout token with "sid", for sessions of that subject of which nobody knows where they came from.
const claimUnnamed = "sub without sid"

const (
	// signInTime is for how long it is remembered what an upstream has ended: longer than the request may take in which a sign-in comes back from there.
	signInTime = 2 * time.Minute
	// signInSkew is how far the clocks of the replica that was told and of the one where somebody signs in may be apart.
	signInSkew = time.Second
)

var errLoggedOut = errors.New("provider: the identity provider has ended its session meanwhile")

// link implements front.Options.Link. It stores first and then looks whether the upstream has ended that session meanwhile; upstreamLogout remembers that, and then
// looks for sessions: whichever is later sees the other.
func (p *Provider) link(ctx context.Context, sessionID, connectorID, userID string, from identity.UpstreamSession) error {
	if err := p.storeLink(ctx, sessionID, connectorID, userID, from); err != nil {
		return err
	}
	over, err := p.loggedOut(ctx, connectorID, from)
	if err != nil {
		return fmt.Errorf("provider: did the upstream end its session meanwhile: %w", err)
	}
	if !over {
		return nil
	}
	g := p.acquire()
	defer g.release()
	_, err = p.end(context.WithoutCancel(ctx), g, sessionID, cause{by: byUpstream})
	return errors.Join(errLoggedOut, err)
}

// loggedOut reports whether the upstream has ended a session that somebody has just come back from.
func (p *Provider) loggedOut(ctx context.Context, connectorID string, from identity.UpstreamSession) (bool, error) {
	named := map[string]string{claimSubject: from.Subject, claimSession: from.ID}
	if from.ID == "" {
		named = map[string]string{claimSubject: from.Subject, claimUnnamed: from.Subject}
	}
	for claim, value := range named {
		at, err := p.store.LoggedOutAt(ctx, connectorID, claim, value)
		if err != nil || !at.IsZero() && at.Add(signInSkew).After(from.Began) { // else it is of a sign-in there since
			return err == nil, err
		}
	}
	return false, nil
}

// markLoggedOut remembers, for sign-ins under way, what a logout token names.
func (p *Provider) markLoggedOut(ctx context.Context, connectorID string, l identity.UpstreamLogout) error {
	named := map[string]string{claimSubject: l.Subject}
	if l.SessionID != "" {
		named = map[string]string{claimSession: l.SessionID, claimUnnamed: l.Subject}
	}
	now := p.now()
	for claim, value := range named {
		if value == "" {
			continue
		}
		if err := p.store.MarkLoggedOut(ctx, connectorID, claim, value, now, now.Add(signInTime)); err != nil {
			return err
		}
	}
	return nil
}

func (p *Provider) storeLink(ctx context.Context, sessionID, connectorID, userID string, from identity.UpstreamSession) error {
	s, err := p.store.GetAuthSession(ctx, sessionID)
	if err != nil {
		return fmt.Errorf("provider: link to the upstream's session: %w", err)
	}
	for claim, value := range map[string]string{claimSession: from.ID, claimSubject: from.Subject} {
		switch {
		case value == "", len(value) > maxLinked, claim == claimSubject && value == userID: // found without
			err = p.dropLink(ctx, sessionID, claim) // of an earlier sign-in in this session
		default:
			err = p.store.PutUpstreamSession(ctx, store.UpstreamSession{
				SessionID: sessionID, ConnectorID: connectorID, Claim: claim, Value: value, Expiry: s.AbsoluteExpiry,
			})
		}
		if err != nil {
			return fmt.Errorf("provider: link to the upstream's session: %w", err)
		}
	}
	return nil
}

// unlink forgets what link has stored. What is left expires with the session.
func (p *Provider) unlink(ctx context.Context, g *generation, connectorID, sessionID string) {
	if d, ok := g.doors.Door(connectorID); !ok || !d.HearsLogout() {
		return
	}
	for _, claim := range []string{claimSession, claimSubject} {
		if err := p.dropLink(ctx, sessionID, claim); err != nil {
			p.log.WarnContext(ctx, "the link to an upstream's session is kept for now", "connector", connectorID, "error", err)
		}
	}
}

// dropLink deletes a link if there is one. Mostly there is none, and reading is cheaper.
func (p *Provider) dropLink(ctx context.Context, sessionID, claim string) error {
	_, err := p.store.GetUpstreamSession(ctx, sessionID, claim)
	if err == nil {
		err = p.store.DeleteUpstreamSession(ctx, sessionID, claim)
	}
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	return err
}

// upstreamLogout implements front.Options.UpstreamLogout. The sessions end before the token counts as used: what fails half way can be tried again.
func (p *Provider) upstreamLogout(ctx context.Context, g *generation, connectorID, token string) error {
	door, ok := g.doors.Door(connectorID)
	if !ok {
		return front.ErrNoUpstream
	}
	l, ok, err := door.VerifyLogout(ctx, token)
	switch {
	case !ok:
		return front.ErrNoUpstream
	case errors.Is(err, identity.ErrUpstreamKeys):
		return errors.Join(front.ErrLogoutUnknown, err)
	case err != nil:
		return err
	}
	once := "logout token of " + connectorID
	used, err := p.store.Seen(ctx, once, l.ID)
	switch {
	case err != nil:
		return errors.Join(front.ErrLogoutUnknown, err)
	case used:
		return errors.New("logout token: it was used before (jti)")
	}
	if err := p.markLoggedOut(ctx, connectorID, l); err != nil {
		return errors.Join(front.ErrLogoutUnknown, err)
	}
	ended, err := p.endNamed(ctx, g, connectorID, l)
	if err != nil {
		return errors.Join(front.ErrLogoutUnknown, err)
	}
	if _, err := p.store.MarkSeen(ctx, once, l.ID, l.Expiry); err != nil {
		return errors.Join(front.ErrLogoutUnknown, err)
	}
	p.audit.InfoContext(ctx, "upstream logout", "connector", connectorID, "sub", clipped(l.Subject), "upstream_session", hashed(l.SessionID), "sessions", ended)
	return nil
}

func hashed(id string) string {
	if id == "" {
		return ""
	}
	return audit.Hash(id)
}

// clipped is a name as the log has it: an upstream's user is no secret, and no novel.
func clipped(s string) string { return s[:min(len(s), maxLinked)] }

// endNamed ends the sessions that a logout token names: with "sid" those that came from that session of the upstream, and those of its subject of which nobody
// knows where they came from; with "sub" alone all of the subject (OpenID Connect Back-Channel Logout 1.0 section 2.7). Refresh tokens that are not bound to a
// session stay, as that section wants it of those for offline access.
func (p *Provider) endNamed(ctx context.Context, g *generation, connectorID string, l identity.UpstreamLogout) (ended int, err error) {
	ids, err := p.namedBySession(ctx, connectorID, l.SessionID)
	errs := []error{err} // what cannot be read keeps nothing else from its end
	subjects, err := p.namedBySubject(ctx, connectorID, l)
	errs = append(errs, err)
	for _, id := range subjects {
		if l.SessionID != "" {
			_, err := p.store.GetUpstreamSession(ctx, id, claimSession)
			if err == nil { // of another session of the upstream, or found already
				continue
			}
			if !errors.Is(err, storage.ErrNotFound) {
				errs = append(errs, err)
				continue
			}
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		s, err := p.store.GetAuthSession(ctx, id)
		if errors.Is(err, storage.ErrNotFound) || err == nil && s.ConnectorID != connectorID {
			continue
		}
		if err == nil {
			_, err = p.end(ctx, g, id, cause{by: byUpstream})
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ended++
	}
	return ended, errors.Join(errs...)
}

func (p *Provider) namedBySession(ctx context.Context, connectorID, sid string) (ids []string, err error) {
	if sid == "" {
		return nil, nil
	}
	links, err := p.store.UpstreamSessions(ctx, connectorID, claimSession, sid)
	for _, v := range links {
		ids = append(ids, v.SessionID)
	}
	return ids, err
}

func (p *Provider) namedBySubject(ctx context.Context, connectorID string, l identity.UpstreamLogout) (ids []string, err error) {
	if l.Subject == "" {
		return nil, nil
	}
	if l.SubjectIsUser {
		all, err := p.store.SessionsOf(ctx, l.Subject, connectorID)
		for i := range all {
			ids = append(ids, all[i].ID)
		}
		return ids, err
	}
	links, err := p.store.UpstreamSessions(ctx, connectorID, claimSubject, l.Subject)
	for _, v := range links {
		ids = append(ids, v.SessionID)
	}
	return ids, err
}
