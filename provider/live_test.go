package provider

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ldapv3 "github.com/go-ldap/ldap/v3"

	"gatehouse/connectors"
	"gatehouse/internal/seal"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"
	"gatehouse/test/peers"
)

// brokenDriver refuses to write while it is broken.
type brokenDriver struct {
	countingDriver

	broken atomic.Bool
}

func (d *brokenDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	if d.broken.Load() {
		return 0, errors.New("disk full")
	}
	if ops[0].Record.Kind == store.KindVouched { // is kept now and then, and nobody is told
		return d.Driver.Write(ctx, ops)
	}
	return d.countingDriver.Write(ctx, ops)
}

func brokenWorld(t *testing.T, text string) (*world, *clock, *brokenDriver) {
	t.Helper()
	clk, d := &clock{}, &brokenDriver{}
	d.Driver = store.MemoryDriver()
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	return newWorld(t, text, st, seal.NewKey(), clk), clk, d
}

// sessionOf returns the stored session of an e-mail address, as the gateway sees it.
func (w *world) sessionOf(email string) *Session {
	w.t.Helper()
	all, err := w.provider.Sessions(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range all {
		if s.Email == email {
			got, err := w.provider.Session(w.t.Context(), s.ID)
			if err != nil {
				w.t.Fatal(err)
			}
			return got
		}
	}
	w.t.Fatalf("no session of %s", email)
	return nil
}

// vouch asks about the user of a session, as the gateway does.
func (w *world) vouch(s *Session) error {
	_, err := s.User.Vouch(w.t.Context(), s.SignedInAt, w.now())
	return err
}

func TestUsersOfTheFileAreAskedAbout(t *testing.T) {
	w, clk, d := brokenWorld(t, testConfig)
	w.signInAs("admin@example.com", "password")
	w.signInAs("user@example.com", "password")
	admin, user := w.sessionOf("admin@example.com"), w.sessionOf("user@example.com")
	d.reset()
	for range 3 {
		clk.add(3 * time.Minute)
		if err := errors.Join(w.vouch(admin), w.vouch(user)); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.count(); n != 0 {
		t.Errorf("%d writes about users of whom nothing has changed", n)
	}

	// The reload cannot store that one user is gone and the other has new groups.
	d.broken.Store(true)
	next, err := w.provider.Prepare(parse(t, edited(t, testConfig, removeAdmin, "", "groups: [team-a]", "groups: [team-b]")))
	if err != nil {
		t.Fatal(err)
	}
	next.Use()
	if err := next.Settle(t.Context()); err == nil {
		t.Fatal("stored on a full disk")
	}
	clk.add(3 * time.Minute)
	if err := w.vouch(admin); !errors.Is(err, identity.ErrEnded) {
		t.Errorf("a user who is not in the file any more: got %v, want the end", err)
	}
	if err := w.vouch(user); err != nil {
		t.Errorf("a user whose groups could not be stored: got %v, want the last answer to serve", err)
	}
	clk.add(20 * time.Minute)
	if err := w.vouch(user); err == nil || errors.Is(err, identity.ErrEnded) {
		t.Errorf("and later: got %v, want that it is not known", err)
	}
	if err := w.vouch(admin); !errors.Is(err, identity.ErrEnded) {
		t.Errorf("who is gone comes back: %v", err)
	}
	d.broken.Store(false)
	eventually(t, "the session of who is gone ends", func() bool {
		_, err := w.provider.Session(t.Context(), admin.ID)
		return errors.Is(err, ErrNoSession)
	})
	eventually(t, "the new groups are stored", func() bool {
		clk.add(time.Minute)
		return w.vouch(user) == nil && slices.Equal(w.sessionOf("user@example.com").Groups, []string{"team-b"})
	})
	w.audited(`"by":"configuration"`)
}

// TestLiveUsersAtOpenLDAP turns the watch off: what is seen is seen by asking.
func TestLiveUsersAtOpenLDAP(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	text := strings.Replace(slapdConfig(dir), "    preset: openldap\n", "    preset: openldap\n    watch: \"off\"\n", 1)
	w, clk, d := brokenWorld(t, text)
	for _, u := range []string{"alice", "bob", "many"} {
		w.signInAs(u, dir.Password)
	}
	alice, bob, gone := w.sessionOf("alice@example.test"), w.sessionOf("bob@example.test"), w.sessionOf("many@example.test")
	admin := dir.Admin(t)
	var told atomic.Int64
	defer w.provider.Subscribe(func(c Change) {
		if c.UserID == alice.UserID && c.ConnectorID == "people" {
			told.Add(1)
		}
	})()
	all := func(want string) {
		t.Helper()
		for _, s := range []*Session{alice, bob, gone} {
			if err := w.vouch(s); (err == nil) != (want == "") {
				t.Errorf("%s: %s: got %v, want %q", want, s.Email, err, want)
			}
		}
	}
	d.reset()
	for range 3 {
		clk.add(3 * time.Minute)
		all("")
	}
	if n := d.count(); n != 0 || told.Load() != 0 {
		t.Errorf("%d writes and %d changes of users of whom nothing has changed", n, told.Load())
	}

	dir.SetMember(t, "g3-leaf", "alice", false)
	dir.SetMember(t, "odd (name)", "alice", true)
	clk.add(3 * time.Minute)
	all("")
	if got := w.sessionOf("alice@example.test"); told.Load() == 0 || !slices.Equal(got.Groups, []string{"odd (name)"}) || got.ID != alice.ID {
		t.Errorf("after %d changes alice is in %q", told.Load(), got.Groups)
	}

	r := ldapv3.NewModifyRequest(dir.UserDN("alice"), nil)
	r.Replace("pwdAccountLockedTime", []string{"000001010000Z"})
	if err := errors.Join(admin.Modify(r), admin.Del(ldapv3.NewDelRequest(dir.UserDN("many"), nil))); err != nil {
		t.Fatal(err)
	}
	clk.add(3 * time.Minute)
	for _, s := range []*Session{alice, gone} {
		if err := w.vouch(s); !errors.Is(err, identity.ErrEnded) {
			t.Errorf("%s: got %v, want the end", s.Email, err)
		}
		eventually(t, "the session ends", func() bool {
			_, err := w.provider.Session(t.Context(), s.ID)
			return errors.Is(err, ErrNoSession)
		})
	}
	if err := w.vouch(bob); err != nil {
		t.Errorf("bob: %v", err)
	}
	w.audited(`"reason":"account-disabled","by":"directory","connector":"people","user":"alice@example.test"`,
		`"reason":"gone","by":"directory","connector":"people","user":"many@example.test"`)

	dir.Kill(t)
	clk.add(5 * time.Minute)
	eventually(t, "what was said last serves", func() bool { return w.vouch(bob) == nil })
	clk.add(time.Hour)
	if err := w.vouch(bob); err == nil || errors.Is(err, identity.ErrEnded) {
		t.Errorf("an hour without the directory: got %v, want that it is not known", err)
	}
	dir.Start(t)
	eventually(t, "the directory is asked again", func() bool {
		clk.add(10 * time.Second)
		return w.vouch(bob) == nil
	})
}

// What OpenLDAP tells of is true at once, without the clock having moved.
func TestOpenLDAPTellsOfChanges(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	clk := &clock{}
	w := newWorld(t, slapdConfig(dir), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	w.signInAs("alice", dir.Password)
	alice := w.sessionOf("alice@example.test")
	clk.add(3 * time.Minute)
	if err := w.vouch(alice); err != nil {
		t.Fatal(err)
	}
	dir.SetMember(t, "odd (name)", "alice", true) // should the watch begin later, it begins with asking about everybody
	eventually(t, "alice is in another group", func() bool {
		return slices.Contains(w.sessionOf("alice@example.test").Groups, "odd (name)")
	})
	r := ldapv3.NewModifyRequest(dir.UserDN("alice"), nil)
	r.Replace("pwdAccountLockedTime", []string{"000001010000Z"})
	if err := dir.Admin(t).Modify(r); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	eventually(t, "alice is locked out", func() bool { return errors.Is(w.vouch(alice), identity.ErrEnded) })
	t.Logf("locked out after %s", time.Since(start).Round(time.Millisecond))
}

// TestLiveUsersAtActiveDirectory holds what a directory says of accounts against what becomes of their sessions. The watch is on.
func TestLiveUsersAtActiveDirectory(t *testing.T) {
	dir := peers.Samba(t, peers.SambaOptions{})
	w, clk := sambaWorld(t, dir)
	var ended []*Session
	for user, end := range map[string]func(user string){
		"u01": func(user string) { dir.SetDisabled(t, user, true) },
		"u02": func(user string) { dir.Replace(t, user, "accountExpires", "130000000000000000") }, // 2012
		"u03": func(user string) { dir.Delete(t, user) },
	} {
		b := w.signInAs(user, dir.Password)
		if !strings.HasPrefix(b.page, "hello ") {
			t.Fatalf("%s: %d %s", user, b.code, b.page)
		}
		s := w.newest()
		clk.add(3 * time.Minute)
		if err := w.vouch(s); err != nil {
			t.Fatalf("%s: %v", user, err)
		}
		end(user)
		start := time.Now()
		eventually(t, user+" is refused", func() bool {
			if time.Since(start) > 5*time.Second { // Samba shows deletions to few
				clk.add(time.Minute)
			}
			return errors.Is(w.vouch(s), identity.ErrEnded)
		})
		t.Logf("%s is refused after %s", user, time.Since(start).Round(time.Millisecond))
		ended = append(ended, s)
	}
	w.signInAs("alice", dir.Password)
	alice := w.newest()
	clk.add(3 * time.Minute)
	if err := w.vouch(alice); err != nil {
		t.Errorf("alice goes on: %v", err)
	}
	for _, s := range ended {
		eventually(t, "the session ends", func() bool {
			_, err := w.provider.Session(t.Context(), s.ID)
			return errors.Is(err, ErrNoSession)
		})
	}
	for _, reason := range []string{"account-disabled", "account-expired", "gone"} {
		w.audited(`"reason":"` + reason + `","by":"directory","connector":"ad"`)
	}
}

// An answer from before a sign-in changes nothing about it.
func TestSignInKnowsBetterThanAnOlderAnswer(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	text := strings.Replace(slapdConfig(dir), "    preset: openldap\n", "    preset: openldap\n    watch: \"off\"\n", 1)
	w, clk, _ := brokenWorld(t, text)
	w.signInAs("bob", dir.Password)
	old := w.newest()
	clk.add(time.Minute)
	between := w.now()
	clk.add(time.Minute)
	w.signInAs("bob", dir.Password) // in another browser
	fresh := w.newest()
	if old.ID == fresh.ID {
		t.Fatal("one session for two browsers")
	}
	answer := connectors.Identity{UserID: old.UserID, Email: "bob@example.test", Groups: []string{"former"}}
	if news, _, err := w.provider.keep(t.Context(), "people", answer, between); news || err != nil || slices.Contains(w.newest().Groups, "former") {
		t.Errorf("an answer from before: news %v, %v; bob is in %q", news, err, w.newest().Groups)
	}
	if news, _, err := w.provider.keep(t.Context(), "people", answer, w.now()); !news || err != nil || !slices.Contains(w.newest().Groups, "former") {
		t.Errorf("an answer from now: news %v, %v; bob is in %q", news, err, w.newest().Groups)
	}
	clk.add(-24 * time.Hour) // it was ahead
	answer.Groups = []string{"set right"}
	if news, _, err := w.provider.keep(t.Context(), "people", answer, w.now()); !news || err != nil {
		t.Errorf("an answer after the clock was set right: news %v, %v", news, err)
	}
	clk.add(24 * time.Hour)
	if err := w.provider.endRefused(t.Context(), "people", old.UserID, connectors.Gone, between); err != nil {
		t.Fatal(err)
	}
	if _, err := w.provider.Session(t.Context(), old.ID); !errors.Is(err, ErrNoSession) {
		t.Errorf("the session from before: %v", err)
	}
	if _, err := w.provider.Session(t.Context(), fresh.ID); err != nil {
		t.Errorf("the session from after: %v", err)
	}
	clk.add(-24 * time.Hour)
	if err := w.provider.endRefused(t.Context(), "people", old.UserID, connectors.Gone, w.now()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.provider.Session(t.Context(), fresh.ID); !errors.Is(err, ErrNoSession) {
		t.Errorf("a session of the future: %v", err)
	}
}

// newest is the session of whoever signed in last, as the gateway sees it.
func (w *world) newest() *Session {
	w.t.Helper()
	all, err := w.provider.Sessions(w.t.Context())
	if err != nil || len(all) == 0 {
		w.t.Fatalf("%d sessions, %v", len(all), err)
	}
	last := slices.MaxFunc(all, func(a, b *Session) int { return a.SignedInAt.Compare(b.SignedInAt) })
	s, err := w.provider.Session(w.t.Context(), last.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}
