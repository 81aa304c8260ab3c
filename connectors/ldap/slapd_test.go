package ldap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/connectors"
	"gatehouse/test/peers"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// block is a configuration, or a part of one.
type block map[string]any

func (b block) with(more block) block {
	out := maps.Clone(b)
	maps.Copy(out, more)
	return out
}

// json has long timeouts where none are given: a machine that runs tests stands still now and then.
func (b block) json(t testing.TB) []byte {
	t.Helper()
	raw, err := json.Marshal(patient().with(b))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func patient() block { return block{"timeouts": block{"dial": "1m", "request": "1m"}} }

func openWith(t testing.TB, b block, now func() time.Time) *Connector {
	t.Helper()
	c, err := Open(b.json(t), Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func open(t testing.TB, b block) *Connector { t.Helper(); return openWith(t, b, nil) }

// openLDAP is the configuration of docs/ldap.md for a server of the tests.
func openLDAP(s *peers.SlapdServer) block {
	return block{"preset": "openldap", "host": s.Host, "rootCA": s.CA, "domain": "example.test", "bindDN": s.ServiceDN, "bindPW": s.ServicePassword}
}

// waiting is how long a test waits for a directory.
func waiting(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func find(t testing.TB, c *Connector, name string) *Account {
	t.Helper()
	a, err := c.Find(waiting(t), name)
	if err != nil {
		t.Fatalf("Find(%q): %v", name, err)
	}
	return a
}

func signIn(t testing.TB, c *Connector, name, password string) (connectors.Identity, error) {
	t.Helper()
	return c.Authenticate(waiting(t), find(t, c, name), password)
}

func mustSignIn(t testing.TB, c *Connector, name, password string) connectors.Identity {
	t.Helper()
	id, err := signIn(t, c, name, password)
	if err != nil {
		t.Fatalf("sign-in of %q: %v", name, err)
	}
	return id
}

func reason(t testing.TB, err error) connectors.Reason {
	t.Helper()
	if err == nil {
		return ""
	}
	r, ok := errors.AsType[*connectors.Refusal](err)
	if !ok {
		t.Fatalf("got the error %v, want a *connectors.Refusal", err)
	}
	return r.Reason
}

// sameAsLookup holds Lookup to what a sign-in has said.
func sameAsLookup(t testing.TB, c *Connector, ids ...connectors.Identity) {
	t.Helper()
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = id.UserID
	}
	answers, err := c.Lookup(waiting(t), list)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range answers {
		if a.Err != nil || !reflect.DeepEqual(a.Identity, ids[i]) {
			t.Errorf("Lookup: got %+v and %v, want what the sign-in said: %+v", a.Identity, a.Err, ids[i])
		}
	}
}

func TestSlapdSignIn(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{Many: 2000})
	c := open(t, openLDAP(s))
	alice := mustSignIn(t, c, "alice", s.Password)
	want := []string{"g0-cycle", "g1-top", "g2-mid", "g3-leaf"}
	if !slices.Equal(alice.Groups, want) || alice.Email != "alice@example.test" || alice.Name != "Alice Test" || alice.PreferredUsername != "alice" {
		t.Errorf("got %+v, want alice in %q", alice, want)
	}
	if _, ok := guidBytes(alice.UserID); !ok { // an entryUUID has the form of a GUID
		t.Errorf("got the id %q, want an entryUUID", alice.UserID)
	}
	if byMail := mustSignIn(t, c, "alice@example.test", s.Password); !reflect.DeepEqual(byMail, alice) {
		t.Errorf("got %+v by e-mail, want %+v", byMail, alice)
	}
	bob := mustSignIn(t, c, "bob", s.Password)
	if !slices.Equal(bob.Groups, []string{"odd (name)"}) {
		t.Errorf("got the groups %q, want odd (name)", bob.Groups)
	}
	many := mustSignIn(t, c, "many", s.Password)
	if len(many.Groups) != 2000 || many.Groups[1999] != "m1999" {
		t.Errorf("got %d groups, want 2000", len(many.Groups))
	}
	sameAsLookup(t, c, alice, bob, many)
	sameAsLookup(t, c, bob)
	for _, name := range []string{"nobody", "*", "al*", "alice)(uid=*", "ali\\63e", `CORP\alice`, "zoë", "al(ice", "a@b@c", "Alice Test"} {
		if _, err := signIn(t, c, name, s.Password); reason(t, err) != connectors.WrongCredentials {
			t.Errorf("%q: got %v, want %s", name, err, connectors.WrongCredentials)
		}
	}
}

// The states that OpenLDAP keeps, each with the right password and with a wrong one.
func TestSlapdStates(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s))
	for _, tt := range []struct {
		user       string
		want       connectors.Reason
		wrong      connectors.Reason
		changeable bool
	}{
		{"alice", "", connectors.WrongCredentials, false},
		{"expired", connectors.PasswordExpired, connectors.WrongCredentials, false},
		{"grace", connectors.PasswordExpired, connectors.WrongCredentials, true},
		{"reset", connectors.PasswordMustChange, connectors.WrongCredentials, true},
		{"locked", connectors.AccountLocked, connectors.AccountLocked, false},
	} {
		_, err := signIn(t, c, tt.user, s.Password)
		if got := reason(t, err); got != tt.want {
			t.Errorf("%s: got %v, want %q", tt.user, err, tt.want)
		}
		if r, ok := errors.AsType[*connectors.Refusal](err); ok && r.Changeable != tt.changeable {
			t.Errorf("%s: got changeable %v, want %v", tt.user, r.Changeable, tt.changeable)
		}
		if _, err = signIn(t, c, tt.user, "wrong"); reason(t, err) != tt.wrong {
			t.Errorf("%s with a wrong password: got %v, want %s", tt.user, err, tt.wrong)
		}
	}
}

// A directory without a place for new passwords: an expired one is taken as long as the directory takes it.
func TestSlapdGraceWithoutChange(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s).with(block{"passwordChange": block{"enabled": false}}))
	mustSignIn(t, c, "grace", s.Password)
	_, err := signIn(t, c, "expired", s.Password)
	if r, ok := errors.AsType[*connectors.Refusal](err); !ok || r.Reason != connectors.PasswordExpired || r.Changeable {
		t.Errorf("got %v, want %s that cannot be changed", err, connectors.PasswordExpired)
	}
	if err := c.ChangePassword(waiting(t), find(t, c, "reset"), s.Password, "Another-Passw0rd"); reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v, want %s", err, connectors.Unavailable)
	}
}

// A form that nobody could use is not shown: the account for searches may set nobody's password.
func TestSlapdExpiredForGood(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	for may, more := range map[bool]block{false: {}, true: {"bindDN": s.AdminDN, "bindPW": s.AdminPassword}} {
		c := open(t, openLDAP(s).with(block{"passwordChange": more}))
		_, err := signIn(t, c, "expired", s.Password)
		if r, ok := errors.AsType[*connectors.Refusal](err); !ok || r.Reason != connectors.PasswordExpired || r.Changeable != may {
			t.Errorf("got %+v, want %s, to be changed here: %v", err, connectors.PasswordExpired, may)
		}
	}
	c := open(t, openLDAP(s))
	err := c.ChangePassword(waiting(t), find(t, c, "expired"), s.Password, "Another-Passw0rd")
	if reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v, want %s: the old password was right", err, connectors.Unavailable)
	}
}

func TestSlapdChangePassword(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s).with(block{"passwordChange": block{"bindDN": s.AdminDN, "bindPW": s.AdminPassword}}))
	const changed = "Another-Passw0rd"
	for _, user := range []string{"alice", "reset", "grace", "expired"} {
		a := find(t, c, user)
		if err := c.ChangePassword(waiting(t), a, "wrong", changed); reason(t, err) != connectors.WrongCredentials {
			t.Errorf("%s with a wrong old password: got %v, want %s", user, err, connectors.WrongCredentials)
		}
		if _, err := signIn(t, c, user, changed); reason(t, err) != connectors.WrongCredentials {
			t.Fatalf("%s: a wrong old password has changed it: %v", user, err)
		}
		if err := c.ChangePassword(waiting(t), a, s.Password, s.Password); reason(t, err) != connectors.PasswordRejected {
			t.Errorf("%s with the same password: got %v, want %s", user, err, connectors.PasswordRejected)
		}
		if user != "expired" { // the directory's rules do not hold for its administrator
			err := c.ChangePassword(waiting(t), a, s.Password, "short")
			if r, ok := errors.AsType[*connectors.Refusal](err); !ok || r.Reason != connectors.PasswordRejected || r.Detail == "" || !r.Changeable {
				t.Errorf("%s with a short password: got %+v, want %s and why", user, err, connectors.PasswordRejected)
			}
		}
		if err := c.ChangePassword(waiting(t), a, s.Password, changed); err != nil {
			t.Errorf("%s: %v", user, err)
			continue
		}
		mustSignIn(t, c, user, changed)
		if _, err := signIn(t, c, user, s.Password); reason(t, err) != connectors.WrongCredentials {
			t.Errorf("%s: got %v with the old password, want %s", user, err, connectors.WrongCredentials)
		}
	}
	for _, user := range []string{"locked", "nobody"} {
		if err := c.ChangePassword(waiting(t), find(t, c, user), s.Password, changed); err == nil {
			t.Errorf("%s: the password was changed", user)
		}
	}
}

func TestSlapdMaxFailures(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s))
	if _, err := c.known(waiting(t)); err != nil {
		t.Fatal(err)
	}
	if got := c.MaxFailures(); got != s.MaxFailures-1 {
		t.Errorf("got %d, want one less than %d", got, s.MaxFailures)
	}
	if got := open(t, openLDAP(s).with(block{"lockout": block{"maxFailures": 3}})).MaxFailures(); got != 3 {
		t.Errorf("got %d, want the configured 3", got)
	}
}

// A user that moves stays who they are; one that goes, or whom the filter leaves out, is gone.
func TestSlapdLookup(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{Users: 1000, Groups: 50})
	c := open(t, openLDAP(s).with(block{"userSearch": block{"filter": "(&(objectClass=person)(!(description=left)))"}}))
	names := []string{"alice", "bob", "u00000", "u00001", "u00007"}
	ids := make([]connectors.Identity, len(names))
	for i, n := range names {
		ids[i] = mustSignIn(t, c, n, s.Password)
	}
	sameAsLookup(t, c, ids...)

	admin := s.Admin(t)
	if err := admin.ModifyDN(ldapv3.NewModifyDNRequest(s.UserDN("alice"), "uid=alice", true, s.GroupsDN)); err != nil {
		t.Fatal(err)
	}
	if err := admin.Del(ldapv3.NewDelRequest(s.UserDN("bob"), nil)); err != nil {
		t.Fatal(err)
	}
	left := ldapv3.NewModifyRequest(s.UserDN("u00000"), nil)
	left.Replace("description", []string{"left"})
	lock := ldapv3.NewModifyRequest(s.UserDN("u00001"), nil)
	lock.Replace("pwdAccountLockedTime", []string{"000001010000Z"})
	for _, m := range []*ldapv3.ModifyRequest{left, lock} {
		if err := admin.Modify(m); err != nil {
			t.Fatal(err)
		}
	}
	list := []string{"garbage", "", "*"}
	for _, id := range ids {
		list = append(list, id.UserID)
	}
	answers, err := c.Lookup(waiting(t), list)
	if err != nil {
		t.Fatal(err)
	}
	want := []connectors.Reason{connectors.Gone, connectors.Gone, connectors.Gone, "", connectors.Gone, connectors.Gone, connectors.AccountDisabled, ""}
	for i, a := range answers {
		var got connectors.Reason
		if a.Err != nil {
			got = a.Err.Reason
		}
		if got != want[i] {
			t.Errorf("%q: got %q, want %q", list[i], got, want[i])
		}
	}
	if got := answers[3].Identity; !reflect.DeepEqual(got, ids[0]) {
		t.Errorf("got %+v for a user that was moved, want %+v", got, ids[0])
	}
}

// Servers of one directory lag behind one another: nobody is gone whom one of them still knows, or already.
func TestSlapdLookupWhereOneServerLags(t *testing.T) {
	t.Parallel()
	ahead := peers.Slapd(t, peers.SlapdOptions{})
	behind := peers.Slapd(t, peers.SlapdOptions{Peer: ahead})
	ids := make([]string, 0, 4)
	for _, n := range []string{"alice", "bob", "many"} {
		ids = append(ids, mustSignIn(t, open(t, openLDAP(ahead)), n, ahead.Password).UserID)
	}
	ids = append(ids, "00000000-0000-0000-0000-000000000000")
	remove := func(s *peers.SlapdServer, name string) {
		t.Helper()
		if err := s.Admin(t).Del(ldapv3.NewDelRequest(s.UserDN(name), nil)); err != nil {
			t.Fatal(err)
		}
	}
	remove(behind, "bob")
	both := openLDAP(ahead).with(block{"hosts": []string{behind.Host, ahead.Host}})
	delete(both, "host")
	s, err := parse(both.json(t))
	if err != nil {
		t.Fatal(err)
	}
	c := connectorOf(s, Options{})
	c.client.t.headStart = time.Hour // the first of them is asked, however long it takes to answer
	t.Cleanup(func() { _ = c.Close() })
	want := func(what string, reasons ...connectors.Reason) {
		t.Helper()
		answers, err := c.Lookup(waiting(t), ids)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for i, a := range answers {
			var got connectors.Reason
			if a.Err != nil {
				got = a.Err.Reason
			}
			if got != reasons[i] {
				t.Errorf("%s: %s: got %q, want %q", what, ids[i], got, reasons[i])
			}
		}
	}
	want("not yet here", "", connectors.Unavailable, "", connectors.Gone)
	remove(ahead, "bob")
	want("gone everywhere", "", connectors.Gone, "", connectors.Gone)
	remove(behind, "many")
	ahead.Kill(t)
	peers.Eventually(t, time.Minute, "one server is enough where the other is down", func() bool {
		answers, err := c.Lookup(waiting(t), ids)
		return err == nil && answers[2].Err != nil && answers[2].Err.Reason == connectors.Gone
	})
}

// A thousand users cost some dozens of searches, and each gets what a sign-in gives.
func TestSlapdLookupMany(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{Users: 1000, Groups: 200})
	c := open(t, openLDAP(s))
	found, err := c.client.search(waiting(t), query{base: s.PeopleDN, scope: ldapv3.ScopeWholeSubtree, filter: "(uid=u*)", attributes: []string{"entryUUID"}})
	if err != nil || len(found) != 1000 {
		t.Fatalf("got %d users and %v, want 1000", len(found), err)
	}
	ids := make([]string, len(found))
	for i, e := range found {
		ids[i] = e.text("entryUUID")
	}
	before := c.client.counted().searches
	answers, err := c.Lookup(waiting(t), ids)
	if err != nil {
		t.Fatal(err)
	}
	n := c.client.counted().searches - before
	t.Logf("%d searches for %d users", n, len(ids))
	if n > 60 {
		t.Errorf("got %d searches for %d users, want at most 60", n, len(ids))
	}
	for _, i := range []int{0, 17, 500, 999} {
		one := mustSignIn(t, c, answers[i].Identity.PreferredUsername, s.Password)
		if answers[i].Err != nil || !reflect.DeepEqual(answers[i].Identity, one) {
			t.Errorf("got %+v and %v, want what a sign-in says: %+v", answers[i].Identity, answers[i].Err, one)
		}
	}
}

// Dex's own ways to find groups, with its keys.
func TestSlapdDexGroups(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	base := block{
		"host": s.Host, "rootCA": s.CA, "bindDN": s.ServiceDN, "bindPW": s.ServicePassword,
		"userSearch": block{"baseDN": s.PeopleDN, "username": "uid", "idAttr": "uid", "emailAttr": "mail", "nameAttr": "cn"},
	}
	groups := func(more block) block {
		return base.with(block{"groupSearch": block{"baseDN": s.GroupsDN, "nameAttr": "cn"}.with(more)})
	}
	all := []string{"g0-cycle", "g1-top", "g2-mid", "g3-leaf"}
	for _, tt := range []struct {
		name   string
		config block
		want   []string
	}{
		{"without groups", base, nil},
		{"direct", groups(block{"userMatchers": []block{{"userAttr": "DN", "groupAttr": "member"}}}), all[3:]},
		{"in the older keys", groups(block{"userAttr": "DN", "groupAttr": "member"}), all[3:]},
		{"recursive", groups(block{"userMatchers": []block{{"userAttr": "DN", "groupAttr": "member", "recursionGroupAttr": "member"}}}), all},
		{"by the user's memberOf", groups(block{"userMatchers": []block{{"userAttr": "memberOf", "groupAttr": "entryDN"}}}), all[3:]},
		{"walked", groups(block{"nested": "walk", "userMatchers": []block{{"userAttr": "DN", "groupAttr": "member"}}}), all},
		{"filtered", groups(block{"nested": "walk", "match": "g[12]-.*", "stripPrefix": "g1-", "userMatchers": []block{{"userAttr": "DN", "groupAttr": "member"}}}), []string{"top"}},
		{"by a list", groups(block{"nested": "walk", "allow": []string{"g1-top", "g1"}, "userMatchers": []block{{"userAttr": "DN", "groupAttr": "member"}}}), all[1:2]},
		{"limited", groups(block{"nested": "walk", "limit": 2, "userMatchers": []block{{"userAttr": "DN", "groupAttr": "member"}}}), all[:2]},
		{"as names of entries", groups(block{"value": "dn", "userMatchers": []block{{"userAttr": "DN", "groupAttr": "member"}}}), []string{s.GroupDN("g3-leaf")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, tt.config)
			alice, bob := mustSignIn(t, c, "alice", s.Password), mustSignIn(t, c, "bob", s.Password)
			if !slices.Equal(alice.Groups, tt.want) || alice.UserID != "alice" {
				t.Errorf("got %+v, want alice in %q", alice, tt.want)
			}
			sameAsLookup(t, c, alice, bob)
		})
	}
}

// With a DN as id, as Dex's own tests have it, a user who moves is another one.
func TestSlapdDNAsID(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s).with(block{"userSearch": block{"idAttr": "DN"}}))
	alice := mustSignIn(t, c, "alice", s.Password)
	if alice.UserID != s.UserDN("alice") {
		t.Errorf("got the id %q, want %q", alice.UserID, s.UserDN("alice"))
	}
	sameAsLookup(t, c, alice)
}

func TestSlapdRequiredGroups(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s).with(block{"requiredGroups": []string{"g1-top"}}))
	alice := mustSignIn(t, c, "alice", s.Password)
	if _, err := signIn(t, c, "bob", s.Password); reason(t, err) != connectors.NotAllowed {
		t.Errorf("got %v, want %s", err, connectors.NotAllowed)
	}
	s.SetMember(t, "g3-leaf", "alice", false)
	answers, err := c.Lookup(waiting(t), []string{alice.UserID})
	if err != nil || answers[0].Err == nil || answers[0].Err.Reason != connectors.NotAllowed {
		t.Errorf("got %+v and %v, want %s", answers, err, connectors.NotAllowed)
	}
	// Nobody is in a group where there are none, as after a mistake in the configuration: that says nothing of the users.
	lost := open(t, openLDAP(s).with(block{"requiredGroups": []string{"g1-top"}, "groupSearch": block{"baseDN": "ou=nowhere," + s.BaseDN}}))
	if answers, err := lost.Lookup(waiting(t), []string{alice.UserID}); reason(t, err) != connectors.Unavailable {
		t.Errorf("without groups: got %+v and %v, want %s", answers, err, connectors.Unavailable)
	}
	if _, err := signIn(t, lost, "alice", s.Password); reason(t, err) != connectors.Unavailable {
		t.Errorf("signing in without groups: got %v, want %s", err, connectors.Unavailable)
	}
}

// Two groups of one name are two groups, and one name.
func TestSlapdTwins(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	admin := s.Admin(t)
	twin := "cn=g3-leaf," + s.PeopleDN
	for dn, member := range map[string]string{twin: s.UserDN("alice"), "cn=above," + s.GroupsDN: twin} {
		add := ldapv3.NewAddRequest(dn, nil)
		add.Attribute("objectClass", []string{"groupOfNames"})
		add.Attribute("member", []string{member})
		if err := admin.Add(add); err != nil {
			t.Fatal(err)
		}
	}
	c := open(t, openLDAP(s))
	alice := mustSignIn(t, c, "alice", s.Password)
	if want := []string{"above", "g0-cycle", "g1-top", "g2-mid", "g3-leaf"}; !slices.Equal(alice.Groups, want) {
		t.Errorf("got %q, want %q", alice.Groups, want)
	}
	sameAsLookup(t, c, alice)
}

// Whoever may set an own mail address neither takes another one's user name nor keeps its owner out.
func TestSlapdMailIsAnothersName(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{Users: 20})
	admin := s.Admin(t)
	mail := func(uid, value string) {
		m := ldapv3.NewModifyRequest(s.UserDN(uid), nil)
		m.Replace("mail", []string{value})
		if err := admin.Modify(m); err != nil {
			t.Fatal(err)
		}
	}
	c := open(t, openLDAP(s))
	bob := mustSignIn(t, c, "bob", s.Password)
	for n := range 12 {
		mail(userNumber(n), "bob")
		if a := find(t, c, "bob"); a.Key() != "user:"+bob.UserID {
			t.Fatalf("got the account %q with %d mail addresses of that name, want bob's", a.Key(), n)
		}
	}
	if id := mustSignIn(t, c, userNumber(1), s.Password); id.UserID == bob.UserID || id.Email != "bob" {
		t.Errorf("got %+v, want u01 with the mail address", id)
	}
	mail(userNumber(1), "twin@example.com")
	mail(userNumber(2), "twin@example.com")
	if a := find(t, c, "twin@example.com"); a.entry != nil {
		t.Errorf("an address of two got the account %q", a.Key())
	}
}

// A base that cannot be read is no reason to end every session.
func TestSlapdNoBase(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	alice := mustSignIn(t, open(t, openLDAP(s)), "alice", s.Password)
	lost := open(t, openLDAP(s).with(block{"userSearch": block{"baseDN": "ou=nowhere," + s.BaseDN}}))
	if _, err := lost.Lookup(waiting(t), []string{alice.UserID}); reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v, want %s", err, connectors.Unavailable)
	}
	elsewhere := open(t, openLDAP(s).with(block{"userSearch": block{"baseDN": s.GroupsDN}}))
	if answers, err := elsewhere.Lookup(waiting(t), []string{alice.UserID}); err != nil || answers[0].Err == nil || answers[0].Err.Reason != connectors.Gone {
		t.Errorf("got %+v and %v, want %s", answers, err, connectors.Gone)
	}
}

// A ring of groups longer than anything that is looked at.
func TestSlapdLoop(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	admin := s.Admin(t)
	const n = 3 * maxLevels
	for i := range n {
		add := ldapv3.NewAddRequest(s.GroupDN(fmt.Sprintf("ring%d", i)), nil)
		add.Attribute("objectClass", []string{"groupOfNames"})
		members := []string{s.GroupDN(fmt.Sprintf("ring%d", (i+n-1)%n))}
		if i == 0 {
			members = append(members, s.UserDN("bob"))
		}
		add.Attribute("member", members)
		if err := admin.Add(add); err != nil {
			t.Fatal(err)
		}
	}
	c := open(t, openLDAP(s))
	bob := mustSignIn(t, c, "bob", s.Password)
	rings := 0
	for _, g := range bob.Groups {
		if strings.HasPrefix(g, "ring") {
			rings++
		}
	}
	if rings != maxLevels {
		t.Errorf("got %d groups of the ring, want the first %d", rings, maxLevels)
	}
	sameAsLookup(t, c, bob)
}

func TestSlapdTransports(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	file := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(file, []byte(s.ServicePassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	withFile := openLDAP(s).with(block{"host": s.Plain, "startTLS": true, "bindPWFile": file})
	delete(withFile, "bindPW")
	mustSignIn(t, open(t, withFile), "alice", s.Password)

	// The server takes no password in the clear.
	plain := openLDAP(s).with(block{"host": s.Plain, "insecureNoSSL": true})
	delete(plain, "rootCA")
	if _, err := open(t, plain).Find(waiting(t), "alice"); reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v, want %s", err, connectors.Unavailable)
	}
	// It is not the one that the CA vouches for.
	other := peers.Slapd(t, peers.SlapdOptions{})
	if _, err := open(t, openLDAP(s).with(block{"rootCA": other.CA})).Find(waiting(t), "alice"); reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v, want %s", err, connectors.Unavailable)
	}
	if _, err := open(t, openLDAP(s).with(block{"bindPW": "wrong"})).Find(waiting(t), "alice"); reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v, want %s", err, connectors.Unavailable)
	}
}

// An account that may only read cannot set a password, and says what to do.
func TestSlapdChangeWithoutRights(t *testing.T) {
	t.Parallel()
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s))
	err := c.ChangePassword(waiting(t), find(t, c, "expired"), s.Password, "Another-Passw0rd")
	if reason(t, err) != connectors.Unavailable || !strings.Contains(err.Error(), "passwordChange.bindDN") {
		t.Errorf("got %v, want %s and the key to set", err, connectors.Unavailable)
	}
	if _, err := signIn(t, c, "expired", s.Password); reason(t, err) != connectors.PasswordExpired {
		t.Errorf("got %v, want the old password, expired", err)
	}
	if err := c.ChangePassword(waiting(t), find(t, c, "reset"), s.Password, "Another-Passw0rd"); err != nil { // as the user
		t.Error(err)
	}
}

// A password that is set between the proof and the end of a sign-in is not taken for the one that was proven.
func TestPasswordSetIsOfBeforeTheProof(t *testing.T) {
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s))
	if id := mustSignIn(t, c, "alice", s.Password); id.PasswordSet != connectors.PasswordNeverSet {
		t.Errorf("never changed: got %d", id.PasswordSet)
	}
	a := find(t, c, "alice")
	r := ldapv3.NewModifyRequest(s.UserDN("alice"), nil)
	r.Replace("userPassword", []string{"Another-Passw0rd"})
	if err := s.Admin(t).Modify(r); err != nil {
		t.Fatal(err)
	}
	a.read = a.read.Add(-time.Minute) // so that the entry is read again
	if id, err := c.Identify(waiting(t), a); err != nil || id.PasswordSet != connectors.PasswordNeverSet {
		t.Errorf("got %d, %v: want what was before", id.PasswordSet, err)
	}
	id, err := c.Identify(waiting(t), find(t, c, "alice"))
	if err != nil || id.PasswordSet <= connectors.PasswordNeverSet {
		t.Errorf("got %d, %v: want a time", id.PasswordSet, err)
	}
	answers, err := c.Lookup(waiting(t), []string{id.UserID})
	if err != nil || answers[0].Identity.PasswordSet != id.PasswordSet {
		t.Errorf("when asked: got %+v, %v", answers, err)
	}
}
