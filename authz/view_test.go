package authz

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"gatehouse/authz/session"
)

// memory is a session.Store as small as one can be.
type memory struct {
	sessions map[string]*session.Session
	err      error
	changed  func(session.Change)
}

func (m *memory) Session(_ context.Context, id string) (*session.Session, error) {
	if m.err != nil {
		return nil, m.err
	}
	if s := m.sessions[id]; s != nil {
		return s, nil
	}
	return nil, session.ErrNotFound
}

func (m *memory) Touch(ctx context.Context, id string, _ time.Time) (*session.Session, error) {
	return m.Session(ctx, id)
}

func (m *memory) Subscribe(f func(session.Change)) func() {
	m.changed = f
	return func() {}
}

// TestWithView runs checks against the real view: what happens in the store is true at the next request.
func TestWithView(t *testing.T) {
	f := newFixture(t)
	m := &memory{sessions: f.sessions.live}
	view := session.NewView(m, session.Options{Idle: time.Hour, Now: func() time.Time { return f.now }})
	t.Cleanup(func() {
		if err := view.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	f.Sessions = view
	req := get("/admin/x", browser, "cookie", f.cookie(appHost, "alice"))
	step := func(what string, want int) {
		t.Helper()
		if got := f.do(req); got.code != want {
			t.Errorf("%s: got %d %s, want %d", what, got.code, got.body, want)
		}
	}
	step("a live session", 403)
	f.signIn("alice", func(s *session.Session) { s.Identity.Groups = []string{"admins"} })
	m.changed(session.Change{User: session.User{Connector: "local", ID: "u-alice"}})
	step("a new group", 200)
	m.err = errors.New("disk full")
	step("the store is down, and the session known", 200)
	m.changed(session.Change{Session: "alice"})
	step("the store is down, and the session not known", 503)
	m.err = nil
	f.signIn("alice", func(s *session.Session) { s.BlockedUntil = f.now.Add(time.Minute) })
	m.changed(session.Change{Session: "alice"})
	step("a blocked user", 403)
	delete(m.sessions, "alice")
	m.changed(session.Change{Session: "alice"})
	step("signed out", 302)
}

// TestGenerationsAreLetGo pins that a session which was seen under a configuration does not keep that in memory.
func TestGenerationsAreLetGo(t *testing.T) {
	f := newFixture(t)
	const reloads = 20
	freed := make(chan struct{}, reloads)
	for i := range reloads {
		id := fmt.Sprintf("s-%d", i)
		f.signIn(id, func(*session.Session) {})
		if got := f.do(get("/x", "", "cookie", f.cookie(appHost, id))); got.code != 200 {
			t.Fatalf("got %d, want 200", got.code)
		}
		runtime.AddCleanup(f.current.Load(), func(struct{}) { freed <- struct{}{} }, struct{}{})
		next := f.config
		if err := f.Apply(&next); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n := 0; n < reloads-1; { // the last may still be in a pool
		runtime.GC()
		select {
		case <-freed:
			n++
		case <-time.After(10 * time.Millisecond):
			if ctx.Err() != nil {
				t.Fatalf("%d of %d former configurations are freed", n, reloads)
			}
		}
	}
	if got := f.do(get("/x", "", "cookie", f.cookie(appHost, "s-0"))); got.code != 200 || got.upstream["kubeflow-userid"] != "s-0@example.com" {
		t.Errorf("got %d %v after the reloads", got.code, got.upstream)
	}
}

// TestMemoIsOfOneGeneration pins that what was made of a session is made anew under another configuration.
func TestMemoIsOfOneGeneration(t *testing.T) {
	f := newFixture(t)
	cookie := f.cookie(appHost, "alice")
	if got := f.do(get("/x", "", "cookie", cookie)); got.upstream["kubeflow-userid"] != "alice@example.com" {
		t.Fatalf("got %v", got.upstream)
	}
	next := f.config
	next.IdentityHeaders = []IdentityHeader{{"kubeflow-userid", ClaimUserID}}
	if err := f.Apply(&next); err != nil {
		t.Fatal(err)
	}
	if got := f.do(get("/x", "", "cookie", cookie)); got.upstream["kubeflow-userid"] != "u-alice" || got.upstream["kubeflow-groups"] != "" {
		t.Errorf("got %v, want the user's id and no groups", got.upstream)
	}
}

// TestLongHeadersAreNotKeptWithTheSession pins that the memory for what is made of sessions has a bound: long headers are in a
// cache of fixed size.
func TestLongHeadersAreNotKeptWithTheSession(t *testing.T) {
	f := newFixture(t)
	f.signIn("many", func(s *session.Session) {
		for i := range 2000 {
			s.Identity.Groups = append(s.Identity.Groups, fmt.Sprintf("group-%d", i))
		}
	})
	for _, id := range []string{"alice", "many"} {
		if got := f.do(get("/x", "", "cookie", f.cookie(appHost, id))); got.code != 200 {
			t.Fatalf("%s: got %d, want 200", id, got.code)
		}
		if kept := f.sessions.live[id].Memo.Load() != nil; kept != (id == "alice") {
			t.Errorf("%s: kept with the session: %v", id, kept)
		}
	}
}
