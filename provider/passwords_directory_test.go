package provider

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	ldapv3 "github.com/go-ldap/ldap/v3"

	"gatehouse/provider/identity"
	"gatehouse/test/peers"
)

// bindAs binds to a directory as a user does elsewhere.
func bindAs(t *testing.T, dial func() (*ldapv3.Conn, error), dn, password string) (*ldapv3.Conn, error) {
	t.Helper()
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, c.Bind(dn, password)
}

// nextSecond waits until it is another second by any clock: OpenLDAP notes whole ones, by time(2), which a busy machine sets late.
func nextSecond(t *testing.T) {
	t.Helper()
	next := time.Now().Truncate(time.Second).Add(1300 * time.Millisecond)
	eventually(t, "the next second", func() bool { return time.Now().After(next) })
}

// chosen has a user whose password is to be changed sign in, and change it on the page.
func (w *world) chosen(user, given, own string) {
	w.t.Helper()
	b := w.signInAs(user, given)
	if b.code != 403 || !strings.Contains(b.page, "password of your own") {
		w.t.Fatalf("%s with the password of an administrator: %d %s", user, b.code, b.page)
	}
	form := url.Values{"login": {user}, "password": {given}, "new_password": {own}, "new_password_again": {own}}
	if b.do("POST", b.action(), form, ownOrigin()); !strings.HasPrefix(b.page, "hello ") {
		w.t.Fatalf("%s has changed the password: %d %s", user, b.code, b.page)
	}
}

// goesOn asks about the user of a session twice.
func (w *world) goesOn(clk *clock, what string, s *Session) {
	w.t.Helper()
	for range 2 {
		if err := w.later(clk, s); err != nil || !w.alive(s.ID) {
			w.t.Errorf("%s: %v; the session is there: %v", what, err, w.alive(s.ID))
		}
	}
}

// told waits until the directory has told of the password that a user has chosen here: until then another one would be taken for it.
func (w *world) told(clk *clock, s *Session) {
	w.t.Helper()
	eventually(w.t, "the directory tells of the user's own change", func() bool {
		i, err := w.store.GetIdentity(w.t.Context(), s.UserID, s.ConnectorID)
		if err == nil && i.Password != nil && i.Password.OwnUntil.IsZero() {
			return true
		}
		if err := w.later(clk, s); err != nil { // a directory that is slow is asked again
			w.t.Log(err)
		}
		return false
	})
}

// over asks about the user of a session that is to end.
func (w *world) over(clk *clock, what string, s *Session) {
	w.t.Helper()
	err := w.later(clk, s)
	eventually(w.t, "the end: "+what, func() bool {
		if !errors.Is(err, identity.ErrEnded) { // a directory that is slow is asked again; the last answer serves until then
			clk.add(time.Minute)
			err = w.vouch(s)
		}
		return errors.Is(err, identity.ErrEnded)
	})
	w.ends(s.ID)
}

func TestPasswordResetAtOpenLDAP(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	w, clk, d := brokenWorld(t, strings.Replace(slapdConfig(dir), "    preset: openldap\n", "    preset: openldap\n    watch: \"off\"\n", 1))
	dial := func() (*ldapv3.Conn, error) { return ldapv3.DialURL(dir.URL, ldapv3.DialWithTLSConfig(dir.TLS())) }
	w.signInAs("bob", dir.Password)
	w.signInAs("alice", dir.Password)
	bob, alice := w.sessionOf("bob@example.test"), w.sessionOf("alice@example.test")

	d.reset()
	if _, err := bindAs(t, dial, dir.UserDN("alice"), "guess"); err == nil {
		t.Fatal("a wrong password binds")
	}
	if _, err := bindAs(t, dial, dir.UserDN("alice"), dir.Password); err != nil {
		t.Fatal(err)
	}
	r := ldapv3.NewModifyRequest(dir.UserDN("alice"), nil)
	r.Replace("telephoneNumber", []string{"1"})
	if err := dir.Admin(t).Modify(r); err != nil {
		t.Fatal(err)
	}
	w.goesOn(clk, "a failure, a bind and a number", alice)
	if n := d.count(); n != 0 {
		t.Errorf("%d writes, want none", n)
	}

	set := func(password string) {
		t.Helper()
		r := ldapv3.NewModifyRequest(dir.UserDN("alice"), nil)
		r.Replace("userPassword", []string{password})
		if err := dir.Admin(t).Modify(r); err != nil {
			t.Fatal(err)
		}
	}
	set("Given-By-Admin-1")
	w.over(clk, "the first password that the policy notes", alice)
	w.goesOn(clk, "another user", bob)
	w.audited(`"reason":"password-changed","by":"directory","connector":"people","user":"alice@example.test"`)
	if b := w.signInAs("alice", dir.Password); b.code != 401 {
		t.Errorf("the former password: %d", b.code)
	}
	nextSecond(t)
	w.chosen("alice", "Given-By-Admin-1", "Chosen-By-Alice-1")
	alice = w.newest()
	w.told(clk, alice)
	w.goesOn(clk, "the password that alice chose", alice)

	nextSecond(t)
	elsewhere, err := bindAs(t, dial, dir.UserDN("alice"), "Chosen-By-Alice-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := elsewhere.PasswordModify(ldapv3.NewPasswordModifyRequest("", "Chosen-By-Alice-1", "Chosen-By-Alice-2")); err != nil {
		t.Fatal(err)
	}
	w.over(clk, "one that alice chose elsewhere", alice)
	if b := w.signInAs("alice", "Chosen-By-Alice-2"); !strings.HasPrefix(b.page, "hello alice@example.test") {
		t.Fatalf("with it: %d %s", b.code, b.page)
	}
	alice = w.newest()
	w.goesOn(clk, "with it", alice)
}

// What OpenLDAP tells of is true without the clock having moved.
func TestOpenLDAPTellsOfAPasswordReset(t *testing.T) {
	w, clk, dir := slapdWorld(t)
	w.signInAs("alice", dir.Password)
	alice := w.newest()
	if err := w.later(clk, alice); err != nil { // who is not in use is asked about when they come back
		t.Fatal(err)
	}
	r := ldapv3.NewModifyRequest(dir.UserDN("alice"), nil)
	r.Replace("userPassword", []string{"Given-By-Admin-1"})
	if err := dir.Admin(t).Modify(r); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	w.ends(alice.ID) // should the watch begin later, it begins with asking about everybody
	t.Logf("ended after %s", time.Since(start).Round(time.Millisecond))
	w.audited(`"reason":"password-changed","by":"directory"`)
}

func unicodePassword(password string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(`"` + password + `"`)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return string(b)
}

func TestPasswordResetAtActiveDirectory(t *testing.T) {
	dir := peers.Samba(t, peers.SambaOptions{})
	w, clk := sambaWorld(t, dir)
	dial := func() (*ldapv3.Conn, error) { return ldapv3.DialURL(dir.URL, ldapv3.DialWithTLSConfig(dir.TLS())) }
	w.signInAs("u11", dir.Password)
	other := w.newest()
	w.signInAs("u10", dir.Password)
	s := w.newest()
	if _, err := bindAs(t, dial, dir.UserDN("u10"), "guess"); err == nil { // badPwdCount
		t.Fatal("a wrong password binds")
	}
	w.goesOn(clk, "a wrong password", s)
	if _, err := bindAs(t, dial, dir.UserDN("u10"), dir.Password); err != nil { // lastLogon
		t.Fatal(err)
	}
	dir.Replace(t, "u10", "description", "new")
	dir.SetMember(t, "g3-leaf", "u10", true)
	w.goesOn(clk, "a bind, a text and a group", s)

	dir.Replace(t, "u10", "unicodePwd", unicodePassword("Given-By-Admin-1"))
	start := time.Now()
	w.ends(s.ID) // by the watch: the clock stands where it was
	t.Logf("ended after %s", time.Since(start).Round(time.Millisecond))
	w.audited(`"reason":"password-changed","by":"directory","connector":"ad"`)
	// Samba takes the former password for binds for an hour, as Windows does for NTLM: that it is refused is not to be seen here.
	if b := w.signInAs("u10", "Given-By-Admin-1"); !strings.HasPrefix(b.page, "hello ") {
		t.Fatalf("the new one: %d %s", b.code, b.page)
	}
	s = w.newest()
	w.goesOn(clk, "the new password", s)

	// As the console does it unless it is told otherwise: the time of the password is gone with it.
	dir.Replace(t, "u10", "unicodePwd", unicodePassword("Given-By-Admin-2"))
	dir.Replace(t, "u10", "pwdLastSet", "0")
	w.ends(s.ID)
	clk.add(time.Minute) // a change that the directory told of just before would be taken for the user's own
	w.chosen("u10", "Given-By-Admin-2", "Chosen-By-User-2")
	s = w.newest()
	w.told(clk, s)
	w.goesOn(clk, "the password that the user chose", s)
	dir.Replace(t, "u10", "pwdLastSet", "0")
	w.ends(s.ID)
	w.goesOn(clk, "another user", other)
}
