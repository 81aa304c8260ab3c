package provider

import (
	"testing"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// The clock of one of two replicas is set ten minutes forwards and backwards, as by an administrator or a machine that was paused. Nobody is
// signed out on either, signing in and single sign-on go on, and the garbage collection takes nothing that is in use.
func TestClockJumps(t *testing.T) {
	const short = "\n  session: {idle: 30m, revalidate: 1m}\n"
	jumping, steady := &clock{}, &clock{}
	key, st := seal.NewKey(), store.Memory(store.Options{Now: jumping.now})
	a, b := newWorld(t, testConfig+short, st, key, jumping), newWorld(t, testConfig+short, st, key, steady)
	for _, w := range []*world{a, b} {
		if err := w.provider.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	user := a.enter("user@example.com", "password")
	session := a.sessionOf("user@example.com")
	signIns := 1
	for _, jump := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute, -10 * time.Minute, 10 * time.Minute} {
		jumping.add(jump)
		off := jumping.off
		if n, err := st.GarbageCollect(t.Context(), jumping.now()); err != nil {
			t.Errorf("%v off: garbage collection: %v, %v", off, n, err)
		}
		for name, w := range map[string]*world{"the replica": a, "the other one": b} {
			if !hello(user.asAt(w).get("https://app.example.com/")) {
				t.Errorf("%v off: %s does not know the session any more", off, name)
			}
			if s, err := w.provider.Touch(t.Context(), session.ID, w.now()); err != nil || !w.now().Before(s.IdleExpiry) || !w.now().Before(s.AbsoluteExpiry) {
				t.Errorf("%v off: activity on %s: %+v, %v", off, name, s, err)
			}
			if err := w.vouch(w.sessionOf("user@example.com")); err != nil {
				t.Errorf("%v off: %s cannot vouch for the user: %v", off, name, err)
			}
			if other := user.asAt(w).get("https://x.apps.example.com/"); !hello(other) {
				t.Errorf("%v off: single sign-on by %s: %d at %s", off, name, other.code, other.last)
			}
			if fresh := w.enter("admin@example.com", "password"); !hello(fresh) {
				t.Errorf("%v off: sign-in by %s: %d at %s: %s", off, name, fresh.code, fresh.last, fresh.page)
			}
			signIns++
		}
	}
	all, err := a.provider.Sessions(t.Context())
	if err != nil || len(all) != signIns {
		t.Errorf("got %d sessions, %v, want all of the %d that were begun", len(all), err, signIns)
	}
	t.Logf("the clock of one replica was up to 10 minutes off, ahead and behind: all of %d sessions are there", len(all))
}
