package provider

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/provider/store"
)

// logoutNames are what logout tokens may say of a session: what they have, and whether its ID Token has a "sid".
var logoutNames = map[string]struct { // never assigned to
	without string // of the token
	sid     string // of the ID Token
}{
	"by sid alone":                           {"sub", "up-1"},
	"by sub alone":                           {"sid", "up-1"},
	"by both":                                {"", "up-1"},
	"by both, where the ID Token has no sid": {"", ""},
	"by sub alone, where neither has any sid": {"sid", ""},
}

// A logout token of the upstream may come at any moment of a sign-in from there: before and after every write of it, and while the upstream is asked for the ID
// Token. Whichever is later sees the other: afterwards nobody is signed in.
func TestUpstreamLogoutDuringASignIn(t *testing.T) {
	for name, names := range logoutNames {
		t.Run(name, func(t *testing.T) {
			hit := 0
			for n := range 100 {
				before, after := logoutDuring(t, names.without, names.sid, n, false), logoutDuring(t, names.without, names.sid, n, true)
				if !before || !after {
					break
				}
				hit++
			}
			if hit < 2 {
				t.Errorf("a sign-in has %d writes: the test shows nothing", hit)
			}
		})
	}
}

// logoutDuring has a logout token come at the nth write of a sign-in, and reports whether there is one.
func logoutDuring(t *testing.T, without, sid string, n int, after bool) bool {
	t.Helper()
	w := newOPWorld(t, "")
	b, back := w.atProvider("alice", sid)
	token := w.op.token(func(c map[string]any) {
		if without != "" {
			delete(c, without)
		}
	})
	var writes atomic.Int64
	var at atomic.Pointer[store.Kind]
	send := func(kind store.Kind) {
		at.Store(&kind)
		w.driver.around.Store(nil) // it writes, too
		if got := w.logout(token); got.code != 200 {
			t.Errorf("the logout token: %d %s", got.code, got.page)
		}
	}
	around := func(kind store.Kind) func() {
		switch {
		case writes.Add(1) != int64(n)+1:
		case after:
			return func() { send(kind) }
		default:
			send(kind)
		}
		return func() {}
	}
	w.driver.around.Store(&around)
	b.get(back)
	w.driver.around.Store(nil)
	if at.Load() == nil {
		return false
	}
	if w.sessionCount() != 0 || hello(b.get("https://app.example.com/")) {
		t.Errorf("at write %d (%s, afterwards %v): %d sessions are left", n, *at.Load(), after, w.sessionCount())
	}
	return true
}

func TestUpstreamLogoutWhileTheUpstreamIsAsked(t *testing.T) {
	for name, names := range logoutNames {
		t.Run(name, func(t *testing.T) {
			w := newOPWorld(t, "")
			b, back := w.atProvider("alice", names.sid)
			token := w.op.token(func(c map[string]any) {
				if names.without != "" {
					delete(c, names.without)
				}
			})
			w.clk.add(time.Second) // the keys
			w.op.asking = func() { w.logout(token) }
			b.get(back)
			if w.sessionCount() != 0 || b.code != 503 {
				t.Errorf("%d sessions, and the browser got %d", w.sessionCount(), b.code)
			}
			if audit := w.audit.String(); !strings.Contains(audit, `"by":"upstream"`) {
				t.Errorf("audit: %s", audit)
			}
			// A sign-in there since is another session, whatever it is called.
			w.clk.add(5 * time.Second)
			if _, id := w.signInAs("alice", names.sid); id == "" {
				t.Error("not signed in again")
			}
			// And the note is gone in time.
			w.clk.add(3 * time.Minute)
			if _, err := w.store.GarbageCollect(t.Context(), w.clk.now()); err != nil {
				t.Fatal(err)
			}
			for _, claim := range []string{claimSession, claimSubject, claimUnnamed} {
				for _, value := range []string{"up-1", "alice"} {
					if at, err := w.store.LoggedOutAt(t.Context(), "op", claim, value); err != nil || !at.IsZero() {
						t.Errorf("%s %s is remembered still: %v, %v", claim, value, at, err)
					}
				}
			}
		})
	}
}

// A token that is not good leaves nothing behind.
func TestUpstreamLogoutThatIsRefusedIsNotRemembered(t *testing.T) {
	w := newOPWorld(t, "")
	w.driver.reset()
	for i, token := range []string{"", "x", w.op.token(func(c map[string]any) { c["aud"] = "another" }), w.op.token(nil) + "x"} {
		if b := w.logout(token); b.code != 400 {
			t.Errorf("token %d: %d", i, b.code)
		}
	}
	if n := w.driver.count(); n != 0 {
		t.Errorf("%d writes", n)
	}
}

// A session that cannot be read keeps the others from nothing; the provider is told to come again.
func TestUpstreamLogoutPassesOverWhatCannotBeRead(t *testing.T) {
	for name, without := range map[string]string{"by sub alone": "sid", "by both": ""} {
		w := newOPWorld(t, "")
		var ids []string
		for range 3 {
			_, id := w.signInAs("alice", "")
			ids = append(ids, id)
		}
		r, err := w.driver.Read(t.Context(), store.KindSession, ids[1])
		if err != nil {
			t.Fatal(err)
		}
		r.Data = []byte("\x00sealed\x01by a key that is gone")
		if _, err := w.driver.Write(t.Context(), []store.Op{{Verb: store.Put, Record: r}}); err != nil {
			t.Fatal(err)
		}
		token := w.op.token(func(c map[string]any) { delete(c, without) })
		if b := w.logout(token); b.code != 503 || b.head.Get("Retry-After") == "" {
			t.Errorf("%s: got %d %s", name, b.code, b.page)
		}
		for i, want := range []bool{true, false, true} {
			if _, err := w.provider.Session(t.Context(), ids[i]); errors.Is(err, ErrNoSession) != want {
				t.Errorf("%s: session %d: %v", name, i, err)
			}
		}
	}
}
