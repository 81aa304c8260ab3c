package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/authz/session"
	"gatehouse/connectors"
	"gatehouse/provider"
	"gatehouse/provider/identity"
)

// A directory answers the same about everybody.
type directory struct {
	answer connectors.Answer
	err    error
}

func (d directory) Lookup(context.Context, []string) ([]connectors.Answer, error) {
	return []connectors.Answer{d.answer}, d.err
}

// What a directory says of a user reaches the gateway as what it makes of it: nothing, the end of the session, or 503.
func TestVoucher(t *testing.T) {
	disabled := connectors.Answer{Err: &connectors.Refusal{Reason: connectors.AccountDisabled}}
	for name, tt := range map[string]struct {
		directory directory
		want      func(error) bool
	}{
		"may go on":     {directory{answer: connectors.Answer{Identity: connectors.Identity{UserID: "ada"}}}, func(err error) bool { return err == nil }},
		"may not go on": {directory{answer: disabled}, func(err error) bool { return errors.Is(err, session.ErrNotFound) }},
		"nobody knows": {directory{err: errors.New("down")}, func(err error) bool {
			_, unavailable := errors.AsType[*session.UnavailableError](err)
			return unavailable && !errors.Is(err, session.ErrNotFound)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				live := identity.NewLive(ctx, identity.LiveOptions{
					Policy: identity.Policy{Every: time.Minute, Stale: time.Minute}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
					Asker: func(string) (identity.Asker, func(), error) { return tt.directory, func() {}, nil },
					Keep: func(context.Context, string, connectors.Identity, time.Time) (bool, time.Time, error) {
						return false, time.Time{}, nil
					},
					End:      func(context.Context, string, string, connectors.Reason, time.Time) error { return nil },
					Remember: func(context.Context, string, []string, time.Time) error { return nil },
					Recall:   func(context.Context, string, string) (time.Time, error) { return time.Time{}, nil },
				})
				at := time.Now().Add(-time.Hour)
				stored := &provider.Session{
					ID: "s", ConnectorID: "ldap", UserID: "ada", SignedInAt: at, LastActivity: time.Now(), IdleExpiry: at.Add(10 * time.Hour), AbsoluteExpiry: at.Add(10 * time.Hour),
					User: live.User("ldap", "ada", at),
				}
				view := session.NewView(oneStored{stored}, session.Options{Idle: time.Hour})
				_, err := view.Lookup(t.Context(), "s", time.Now())
				if !tt.want(err) {
					t.Errorf("got %v", err)
				}
				if err := view.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// oneStored shows one session as viewStore does.
type oneStored struct{ s *provider.Session }

func (o oneStored) Session(context.Context, string) (*session.Session, error) {
	return viewSession(o.s, nil)
}

func (o oneStored) Touch(context.Context, string, time.Time) (*session.Session, error) {
	return viewSession(o.s, nil)
}

func (o oneStored) Subscribe(func(session.Change)) (cancel func()) { return func() {} }
