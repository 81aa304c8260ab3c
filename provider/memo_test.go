package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwt"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
)

// Whoever looks after a write sees what is true then, whatever the request has read before.
func TestLooksAreFresh(t *testing.T) {
	looks := map[string]func(ctx context.Context, c cutoffs, w *world) error{
		"at a session": func(ctx context.Context, c cutoffs, _ *world) error {
			return c.keepSession(ctx, "no session", robotID, "fast")
		},
		"at a refresh token": func(ctx context.Context, c cutoffs, _ *world) error {
			return c.tokenStands(ctx, robotID, "fast", storage.RefreshTokenRef{ClientID: "web"})
		},
		"at a device": func(ctx context.Context, c cutoffs, w *world) error {
			sub, err := tokens.GenSubject(robotID, "fast")
			tok := w.signedInner(w.provider.inner, func(claims map[string]any) { claims["sub"], claims["aud"] = sub, "tv" }) // by which key is not asked
			return errors.Join(err, c.deviceStands(ctx, &storage.DeviceToken{Token: `{"id_token":"` + tok + `"}`}))
		},
	}
	for name, look := range looks {
		t.Run(name, func(t *testing.T) {
			clk := &clock{}
			clk.stop() // nothing is remembered for longer than a second
			w := newWorld(t, quickConfig, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
			b := w.browser().get("https://app.example.com/")
			b.signIn("robot", "not-a-default-5591")
			c := w.provider.current.Load().cutoffs
			ctx, done := store.Remember(t.Context())
			defer done()
			if u, err := c.GetUserIdentity(ctx, robotID, "fast"); err != nil || !u.BlockedUntil.IsZero() {
				t.Fatal(u, err)
			}
			if err := look(ctx, c, w); err != nil {
				t.Fatalf("before the block: %v", err)
			}
			if _, err := c.GetUserIdentity(ctx, robotID, "fast"); err != nil { // it is remembered
				t.Fatal(err)
			}
			if _, err := w.provider.Block(t.Context(), "fast", robotID, Forever); err != nil {
				t.Fatal(err)
			}
			if _, err := c.GetUserIdentity(ctx, robotID, "fast"); err != nil {
				t.Fatalf("it is not remembered (%v): the test shows nothing", err)
			}
			if err := look(ctx, c, w); !errors.Is(err, errCutOff) {
				t.Errorf("after the block: %v", err)
			}
		})
	}
}

// A sessionsDriver keeps the kinds of what is written, and the sessions.
type sessionsDriver struct {
	store.Driver

	mu       sync.Mutex
	kinds    []store.Kind
	sessions []store.Record
}

// Write implements store.Backend.
func (d *sessionsDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	d.mu.Lock()
	d.kinds = append(d.kinds, ops[0].Record.Kind)
	if ops[0].Record.Kind == store.KindSession && ops[0].Verb != store.Delete {
		d.sessions = append(d.sessions, ops[0].Record)
	}
	d.mu.Unlock()
	return d.Driver.Write(ctx, ops)
}

// A new session is written once, before the code that names it, with all that a sign-in makes of it.
func TestNewSessionIsWrittenOnce(t *testing.T) {
	clk, keys := &clock{}, madeKeys(t)
	d := &sessionsDriver{Driver: store.MemoryDriver()}
	st := keyedStore(t, d, keys, clk)
	w := newWorld(t, quickConfig, st, seal.NewKey(), clk)
	robotAtClient(w, w.browser(), "")
	d.mu.Lock()
	defer d.mu.Unlock()
	session, code := slices.Index(d.kinds, store.KindSession), slices.Index(d.kinds, store.KindAuthCode)
	if len(d.sessions) != 1 || session < 0 || code < session {
		t.Fatalf("written: %v", d.kinds)
	}
	s, err := st.GetAuthSession(t.Context(), d.sessions[0].ID)
	if err != nil || s.ClientStates["web"] == nil || s.ClientStates["web"].LastTokenIssuedAt.IsZero() || s.ClientStates["web"].AuthenticatedAt.IsZero() || s.IdleExpiry.Before(clk.now().Add(time.Minute)) {
		t.Errorf("the session is %+v, %v", s, err)
	}
}

// Who is asked about before a client gets a code, may be another by then: the ID Token has what was said.
func TestSingleSignOnTellsWhatWasJustAsked(t *testing.T) {
	clk, p := &clock{}, &idp{groups: []string{"staff"}}
	w := upstreamWorld(t, p, store.Memory(store.Options{Now: clk.now}), clk)
	b := w.signsInUpstream()
	b.clientUser("", "")   // the client is known to the session from now on: nothing is written before the user is read
	clk.add(2 * time.Hour) // now it is asked before anything is given out
	p.set(func() { p.groups = []string{"night-shift"} })
	raw, _ := b.clientUser("", "").Extra("id_token").(string)
	tok, err := jwt.ParseInsecure([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if groups, _ := tok.Get("groups"); fmt.Sprint(groups) != "[night-shift]" {
		t.Errorf("the ID Token has the groups %v", groups)
	}
}
