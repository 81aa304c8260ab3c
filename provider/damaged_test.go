package provider

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// damages are two ways in which a record cannot be read.
var damages = map[string]string{"sealed by a key that is gone": "\x00sealed\x01of a key that is gone", "half written": `{"UserID": "u`} // never assigned to

// crowded is testConfig with more users: u3 to u8, of the password "password".
func crowded() string {
	var users strings.Builder
	for i := 3; i <= 8; i++ {
		_, _ = fmt.Fprintf(&users, "- {email: user%d@example.com, username: user%d, userID: u%d, hash: %q}\n", i, i, i, hash)
	}
	return strings.Replace(testConfig, "staticClients:\n", users.String()+"staticClients:\n", 1)
}

// without is text without a user of crowded.
func without(t *testing.T, text string, n int) string {
	t.Helper()
	return edited(t, text, fmt.Sprintf("- {email: user%d@example.com, username: user%d, userID: u%d, hash: %q}\n", n, n, n, hash), "")
}

// A damagedWorld has users u1 and u3 to u8 signed in, and records that can be damaged.
type damagedWorld struct {
	*world

	driver store.Driver
	clk    *clock
	key    []byte
	data   string
}

func newDamagedWorld(t *testing.T, data string) *damagedWorld {
	t.Helper()
	d := &damagedWorld{driver: store.MemoryDriver(), clk: &clock{}, key: seal.NewKey(), data: data}
	st, err := store.New(t.Context(), d.driver, store.Options{Now: d.clk.now})
	if err != nil {
		t.Fatal(err)
	}
	d.world = newWorld(t, crowded(), st, d.key, d.clk)
	if err := d.provider.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.enter("admin@example.com", "password")
	for i := 3; i <= 8; i++ {
		d.enter(fmt.Sprintf("user%d@example.com", i), "password")
	}
	return d
}

// damage damages the records of a kind of an id or owner.
func (w *damagedWorld) damage(kind store.Kind, of string) {
	w.t.Helper()
	n := 0
	for r, err := range w.driver.Scan(w.t.Context(), store.Query{Kind: kind}) {
		if err != nil {
			w.t.Fatal(err)
		}
		if r.ID != of && r.Owner != of {
			continue
		}
		r.Data = []byte(w.data)
		if _, err := w.driver.Write(w.t.Context(), []store.Op{{Verb: store.Put, Record: r}}); err != nil {
			w.t.Fatal(err)
		}
		n++
	}
	if n == 0 {
		w.t.Fatalf("no %s of %s", kind, of)
	}
}

// withSessions are the ids of the users who have sessions, of those who cannot be read, too.
func (w *world) withSessions() []string {
	w.t.Helper()
	var ids []string
	for s, err := range w.store.AllSessions(w.t.Context()) {
		if err != nil && !store.OnlyUnread(err) {
			w.t.Fatal(err)
		}
		ids = append(ids, s.UserID)
	}
	slices.Sort(ids)
	return ids
}

func onDamages(t *testing.T, test func(t *testing.T, w *damagedWorld)) {
	t.Helper()
	for name, data := range damages {
		t.Run(name, func(t *testing.T) { test(t, newDamagedWorld(t, data)) })
	}
}

// A start signs out who is gone from the file, whatever else cannot be read; who cannot be read is not taken for gone, and is told of.
func TestStartWithDamagedRecords(t *testing.T) {
	onDamages(t, func(t *testing.T, w *damagedWorld) {
		if err := w.store.CreatePassword(t.Context(), storage.Password{Email: "stored@example.com", UserID: "u9", Hash: []byte(hash)}); err != nil {
			t.Fatal(err)
		}
		if w.enter("stored@example.com", "password"); !slices.Contains(w.withSessions(), "u9") {
			t.Fatal("a stored user does not sign in")
		}
		w.damage(store.KindIdentity, "2:u4:local")
		w.damage(store.KindIdentity, "2:u5:local")
		w.damage(store.KindPassword, "stored@example.com")
		next := newWorld(t, without(t, without(t, crowded(), 4), 7), w.store, w.key, w.clk) // one of them damaged
		if err := next.provider.Reconcile(t.Context()); err != nil {
			t.Errorf("the start ends at a damaged record: %v", err)
		}
		if got, want := next.withSessions(), []string{"u1", "u3", "u5", "u6", "u8", "u9"}; !slices.Equal(got, want) {
			t.Errorf("signed in are %v, want %v", got, want)
		}
		if log := next.logs.String(); !strings.Contains(log, "cannot be read, and stays as it is") {
			t.Errorf("nothing is told: %s", log)
		}
	})
}

// A reload cuts off whom it has to, whatever else cannot be read: users who are gone, passwords and clients that are others.
func TestReloadWithDamagedRecords(t *testing.T) {
	onDamages(t, func(t *testing.T, w *damagedWorld) {
		if err := w.store.CreatePassword(t.Context(), storage.Password{Email: "stored@example.com", UserID: "u9", Hash: []byte(hash)}); err != nil {
			t.Fatal(err)
		}
		w.damage(store.KindIdentity, "2:u3:local")
		w.damage(store.KindPassword, "stored@example.com")
		w.damage(store.KindMark, "8:password:u5")
		w.damage(store.KindSession, "2:u6:local")
		text := newAdminPassword(t, without(t, without(t, without(t, crowded(), 6), 7), 8))
		text = edited(t, text, "username: user3", "username: another, groups: [g]", "not-a-default-secret-5591", "another-secret-5591")
		next, err := w.provider.Prepare(parse(t, text))
		if err != nil {
			t.Fatal(err)
		}
		next.Use()
		if err := next.Settle(t.Context()); !store.OnlyUnread(err) {
			t.Errorf("want to hear of damaged records, and nothing else: %v", err)
		}
		if got, want := w.withSessions(), []string{"u3", "u4", "u5", "u6"}; !slices.Equal(got, want) {
			t.Errorf("signed in are %v, want %v: u6 is the damaged session", got, want)
		}
		if audit := w.audit.String(); !strings.Contains(audit, `"msg":"client cut off"`) || !strings.Contains(audit, `"msg":"password changed"`) {
			t.Errorf("secrets that changed end nothing: %s", audit)
		}
		if b := w.enter("user5@example.com", "password"); hello(b) { // nobody can say whether that is the current one
			t.Error("somebody signs in whose mark cannot be read")
		}
		if b := w.enter("user4@example.com", "password"); !hello(b) {
			t.Errorf("somebody else cannot sign in: %d %s", b.code, b.page)
		}
	})
}

func TestOperatorBesideDamagedRecords(t *testing.T) {
	onDamages(t, func(t *testing.T, w *damagedWorld) {
		w.damage(store.KindIdentity, "2:u3:local")
		w.damage(store.KindSession, "2:u4:local")
		var known, unread []string
		for u, err := range w.provider.Users(t.Context()) {
			switch {
			case err == nil:
				known = append(known, u.UserID)
			case store.OnlyUnread(err):
				unread = append(unread, u.ConnectorID+":"+u.UserID)
			default:
				t.Fatal(err)
			}
			if u.Sessions != 1 {
				t.Errorf("%s has %d sessions, want 1", u.UserID, u.Sessions)
			}
		}
		slices.Sort(known)
		if !slices.Equal(known, []string{"u1", "u4", "u5", "u6", "u7", "u8"}) || !slices.Equal(unread, []string{"local:u3"}) {
			t.Errorf("users: %v, and %v unread", known, unread)
		}
		known, unread = nil, nil
		for s, err := range w.provider.AllSessions(t.Context()) {
			switch {
			case err == nil:
				known = append(known, s.UserID)
			case store.OnlyUnread(err) && s.ID != "":
				unread = append(unread, s.UserID)
			default:
				t.Fatal(err)
			}
		}
		slices.Sort(known)
		slices.Sort(unread)
		if !slices.Equal(known, []string{"u1", "u5", "u6", "u7", "u8"}) || !slices.Equal(unread, []string{"u3", "u4"}) {
			t.Errorf("sessions: %v, and %v unread", known, unread)
		}

		u, err := w.provider.FindUser(t.Context(), "USER5@example.com")
		if err != nil || u.UserID != "u5" || u.Overlooked != 1 {
			t.Fatalf("found %+v, %v: want u5, and that one was overlooked", u, err)
		}
		if u, err := w.provider.FindUser(t.Context(), "local:u6"); err != nil || u.Overlooked != 0 {
			t.Errorf("by id: %+v, %v", u, err)
		}
		for _, name := range []string{"nobody@example.com", "local:u3"} { // either may be the one who cannot be read
			if _, err := w.provider.FindUser(t.Context(), name); !store.OnlyUnread(err) || errors.Is(err, ErrNoUser) {
				t.Errorf("%s: %v, want that it cannot be read", name, err)
			}
		}
		if ended, err := w.provider.Block(t.Context(), "local", u.UserID, Forever); err != nil || ended != 1 {
			t.Errorf("block: %d, %v", ended, err)
		}
		for s, err := range w.provider.AllSessions(t.Context()) {
			if s.UserID != "u6" {
				continue
			}
			if err == nil {
				err = w.provider.RevokeHashed(t.Context(), hashID(s.ID))
			}
			if err != nil {
				t.Errorf("revoke: %v", err)
			}
		}
		if err := w.provider.RevokeHashed(t.Context(), "0123456789abcdef"); !errors.Is(err, ErrNoSession) {
			t.Errorf("revoke of nothing: %v", err)
		}
		if got, want := w.withSessions(), []string{"u1", "u3", "u4", "u7", "u8"}; !slices.Equal(got, want) {
			t.Errorf("signed in are %v, want %v", got, want)
		}
	})
}

// Whoever has a session that cannot be read sees and ends the others on the account page.
func TestAccountPageBesideADamagedSession(t *testing.T) {
	onDamages(t, func(t *testing.T, w *damagedWorld) {
		own := w.enter("user8@example.com", "password")
		mine := w.newest().ID
		all, err := w.store.SessionsOf(t.Context(), "u8", "local")
		if err != nil || len(all) != 2 {
			t.Fatalf("%d sessions, %v", len(all), err)
		}
		other := all[0].ID
		if other == mine {
			other = all[1].ID
		}
		w.damage(store.KindSession, other)
		own.get("https://sso.example.com/dex/account")
		if own.code != 200 || !strings.Contains(own.page, hashID(mine)) || strings.Contains(own.page, hashID(other)) {
			t.Errorf("got %d %s", own.code, own.page)
		}
		if !strings.Contains(w.logs.String(), "leaves out sessions that cannot be read") {
			t.Error("the log does not tell of the other")
		}
	})
}
