package ldap

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	ldapv3 "github.com/go-ldap/ldap/v3"

	"gatehouse/connectors"
	"gatehouse/test/fakeldap"
	"gatehouse/test/peers"
)

// A watcher gathers what a Connector tells of.
type watcher struct {
	mu    sync.Mutex
	told  []string // ids; "": everybody
	ended chan error
}

// watchIt watches until the test ends, and returns when the first change, of everybody, was told.
func watchIt(t *testing.T, c *Connector) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watcher{ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.ended <- c.Watch(ctx, func(change connectors.Change) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, change.UserID)
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	peers.Eventually(t, time.Minute, "the watch begins with everybody", func() bool {
		select {
		case err := <-w.ended:
			t.Fatalf("the watch ended: %v", err)
		default:
		}
		return slices.Contains(w.all(), "")
	})
	w.forget()
	return w
}

func (w *watcher) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.told)
}

func (w *watcher) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = nil
}

// hears does what changes something and waits until the change is told of: of the user with this id, or of everybody for "".
func (w *watcher) hears(t *testing.T, what, id string, change func()) {
	t.Helper()
	w.forget()
	change()
	start := time.Now()
	peers.Eventually(t, time.Minute, what, func() bool { return slices.Contains(w.all(), id) })
	t.Logf("%s: told after %v: %q", what, time.Since(start).Round(time.Millisecond), w.all())
}

// idOf is the id of a user, as a sign-in has it.
func idOf(t *testing.T, c *Connector, name, password string) string {
	t.Helper()
	id, err := signIn(t, c, name, password)
	if err != nil {
		t.Fatal(err)
	}
	return id.UserID
}

func TestWatchOpenLDAP(t *testing.T) {
	s := peers.Slapd(t, peers.SlapdOptions{Users: 3_000, Groups: 50})
	c := open(t, openLDAP(s))
	w := watchIt(t, c)
	alice, bob, admin := idOf(t, c, "alice", s.Password), idOf(t, c, "bob", s.Password), s.Admin(t)
	replace := func(uid, attribute string, values ...string) {
		r := ldapv3.NewModifyRequest(s.UserDN(uid), nil)
		r.Replace(attribute, values)
		if err := admin.Modify(r); err != nil {
			t.Fatal(err)
		}
	}
	w.hears(t, "a new address", alice, func() { replace("alice", "mail", "a@example.test") })
	w.hears(t, "a lock", alice, func() { replace("alice", "pwdAccountLockedTime", "000001010000Z") })
	w.hears(t, "a member more", "", func() { s.SetMember(t, "g0001", "alice", true) })
	w.hears(t, "another name", alice, func() {
		if err := admin.ModifyDN(ldapv3.NewModifyDNRequest(s.UserDN("alice"), "uid=alice", true, s.BaseDN)); err != nil {
			t.Fatal(err)
		}
	})
	w.hears(t, "a deletion", "", func() {
		if err := admin.Del(ldapv3.NewDelRequest(s.UserDN("u00009"), nil)); err != nil {
			t.Fatal(err)
		}
	})

	// A wrong password is written down in the entry, and no change; what comes after it is told.
	w.hears(t, "the change of bob", bob, func() { replace("bob", "mail", "b@example.test") })
	w.hears(t, "a change after a failure", idOf(t, c, "u00001", s.Password), func() {
		if _, err := signIn(t, c, "bob", "wrong"); err == nil {
			t.Fatal("a wrong password was right")
		}
		replace("u00001", "mail", "u1@example.test")
	})
	if got := w.all(); len(got) != 1 {
		t.Errorf("a wrong password and one change were told as %q, want the change only", got)
	}

	// Hundreds of changes are told as one or few.
	w.hears(t, "changes of many", "", func() {
		w.mu.Lock() // so that nothing is told meanwhile, however long it takes
		defer w.mu.Unlock()
		for i := range 300 {
			replace(userNumber(i+100), "mail", "many@example.test")
		}
	})
	s.Kill(t)
	select {
	case err := <-w.ended:
		if err == nil || errors.Is(err, ErrNoWatch) || errors.Is(err, context.Canceled) {
			t.Errorf("when the server has died: got error %v, want one that says so", err)
		}
	case <-waiting(t).Done():
		t.Error("the watch goes on though the server has died")
	}
}

func userNumber(i int) string { return fmt.Sprintf("u%05d", i) }

func TestNoWatch(t *testing.T) {
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s).with(block{"watch": "off"}))
	if err := c.Watch(waiting(t), func(connectors.Change) { t.Error("told of a change") }); !errors.Is(err, ErrNoWatch) {
		t.Errorf("got %v, want ErrNoWatch", err)
	}
}

// While the service account may not bind, nothing is known: neither that the directory tells of no changes, nor that it locks no accounts.
func TestServiceAccountRefused(t *testing.T) {
	dir := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(dir).with(block{"bindPW": "old-secret"}))
	if err := c.Watch(waiting(t), func(connectors.Change) {}); err == nil || errors.Is(err, ErrNoWatch) {
		t.Errorf("the watch ends with %v, want one that is tried again", err)
	}
	if f, err := c.learn(waiting(t)); err == nil {
		t.Errorf("learned %+v, want an error", f)
	}
	if c.facts.Load() != nil {
		t.Error("it is kept that nothing is known")
	}
}

func TestWatchActiveDirectory(t *testing.T) {
	s := peers.Samba(t, peers.SambaOptions{})
	config := block{"preset": "activedirectory", "host": s.Host, "rootCA": s.CA, "domain": "ad.example.test", "bindDN": s.ServiceDN, "bindPW": s.ServicePassword}
	c := open(t, config)
	ids := map[string]string{}
	for _, name := range []string{"u10", "u11", "u12", "u13", "u14"} {
		ids[name] = idOf(t, c, name, s.Password)
	}
	w := watchIt(t, c)
	w.hears(t, "disabled", ids["u10"], func() { s.SetDisabled(t, "u10", true) })
	w.hears(t, "enabled", ids["u10"], func() { s.SetDisabled(t, "u10", false) })
	w.hears(t, "a member more", "", func() { s.SetMember(t, "g1-top", "u11", true) })
	w.hears(t, "a member less", "", func() { s.SetMember(t, "g1-top", "u11", false) })
	w.hears(t, "moved", ids["u12"], func() { s.Move(t, "u12", "Elsewhere") })
	// Deleted objects are shown to whom a domain's administrators let see them.
	seeing := watchIt(t, open(t, config.with(block{"bindDN": s.AdminName, "bindPW": s.AdminPassword})))
	seeing.hears(t, "deleted", ids["u13"], func() { s.Delete(t, "u13") })

	// Sign-ins and failures are written down in the entry, and no change; what comes after them is told.
	s.Replace(t, "u14", "description", "first seen now")
	peers.Eventually(t, time.Minute, "the change of u14", func() bool { return slices.Contains(w.all(), ids["u14"]) })
	w.hears(t, "a change after sign-ins", ids["u10"], func() {
		_, _ = signIn(t, c, "u14", "wrong")
		_ = idOf(t, c, "u14", s.Password)
		s.Replace(t, "u10", "mail", "u10@new.example.test")
	})
	if got := w.all(); slices.Contains(got, ids["u14"]) || slices.Contains(got, "") {
		t.Errorf("a failure, a sign-in and a change were told as %q, want the change only, of %s", got, ids["u10"])
	}
	s.Stop(t)
	select {
	case err := <-w.ended:
		if err == nil || errors.Is(err, ErrNoWatch) {
			t.Errorf("when the server has ended: got error %v, want one that says so", err)
		}
	case <-waiting(t).Done():
		t.Error("the watch goes on though the server has ended")
	}
}

func TestWhereNothingIsTold(t *testing.T) {
	const notification, sync = "1.2.840.113556.1.4.528", "1.3.6.1.4.1.4203.1.9.1.1"
	for _, tt := range []struct {
		name     string
		controls []string
		answer   fakeldap.SearchAnswer // to all but the question about the root
		want     bool                  // ErrNoWatch: it is of no use to ask again
	}{
		{name: "neither control", want: true},
		{name: "no contextCSN for us", controls: []string{sync}, answer: one("dc=example,dc=test"), want: true},
		{name: "the control is for others", controls: []string{notification}, answer: fakeldap.SearchAnswer{Result: fakeldap.Result{Code: 12}}, want: true},
		{name: "busy", controls: []string{notification}, answer: fakeldap.SearchAnswer{Result: fakeldap.Result{Code: 51}}},
		{name: "a search that ends", controls: []string{notification}, answer: one("cn=x,dc=example,dc=test")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := fakeldap.Start(t, fakeldap.Options{Search: func(q fakeldap.Search) fakeldap.SearchAnswer {
				if q.Base == "" && slices.Contains(q.Attributes, "supportedControl") {
					return one("", attribute("supportedControl", tt.controls...), attribute("namingContexts", "dc=example,dc=test"))
				}
				return tt.answer
			}})
			c := open(t, block{
				"host": s.Address(), "insecureNoSSL": true, "bindDN": "cn=svc,dc=example,dc=test", "bindPW": "password",
				"userSearch": block{"baseDN": "dc=example,dc=test", "username": "uid"},
			})
			if err := c.Watch(waiting(t), func(connectors.Change) {}); err == nil || errors.Is(err, ErrNoWatch) != tt.want {
				t.Errorf("got error %v, ErrNoWatch %t, want %t", err, errors.Is(err, ErrNoWatch), tt.want)
			}
		})
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	s := peers.Slapd(t, peers.SlapdOptions{})
	c := open(t, openLDAP(s))
	ctx, cancel := context.WithCancel(waiting(t))
	defer cancel()
	if err := c.Watch(ctx, func(connectors.Change) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want context.Canceled", err)
	}
}

// seenAs is an entry as a search finds it.
func seenAs(dn string, attributes map[string][]string) change {
	return change{entry: ldapv3.NewEntry(dn, attributes)}
}

func TestWhatIsAChange(t *testing.T) {
	person := func(id, more string) map[string][]string {
		return map[string][]string{"objectClass": {"top", "person", "user"}, "objectGUID": {id}, "uid": {id}, "mail": {more}}
	}
	of := func(class string) map[string][]string {
		return map[string][]string{"objectClass": {"top", class}, "objectGUID": {"0123456789abcdef"}}
	}
	flood := make([]change, 3*tellSingly)
	for i := range flood {
		flood[i] = seenAs("cn=x", person(fmt.Sprint(i), ""))
	}
	for _, tt := range []struct {
		name  string
		ad    bool
		found []change
		want  []string // "": everybody
	}{
		{name: "a user", ad: true, found: []change{seenAs("cn=a", person("a", "1"))}, want: []string{"a"}},
		{name: "two users", ad: true, found: []change{seenAs("cn=a", person("a", "1")), seenAs("cn=b", person("b", "1"))}, want: []string{"a", "b"}},
		{name: "many users are everybody", ad: true, found: flood, want: []string{""}},
		{name: "a user without an id is everybody", ad: true, found: []change{seenAs("cn=a", map[string][]string{"objectClass": {"person"}})}, want: []string{""}},
		{name: "a group is everybody", ad: true, found: []change{seenAs("cn=g", of("group"))}, want: []string{""}},
		{name: "a group again is everybody again", ad: true, found: []change{{}, seenAs("cn=g", of("group")), seenAs("cn=g", of("group"))}, want: []string{""}},
		{name: "a unit is what users are named after", ad: true, found: []change{seenAs("ou=u", of("organizationalUnit"))}, want: []string{""}},
		{name: "what else is in Active Directory", ad: true, found: []change{seenAs("dc=n", of("dnsNode"))}},
		{name: "what else is in another directory", found: []change{seenAs("cn=n", of("device"))}, want: []string{""}},
		{name: "a name that cannot be one", found: []change{seenAs("cn=\xff", person("a", "1"))}, want: []string{""}},
		{name: "nothing", found: []change{{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &settings{config: config{UserSearch: userSearch{IDAttr: "uid"}}}
			w := &watch{c: &Connector{settings: s}, ad: tt.ad, persons: s.personClasses(), seen: map[string]uint64{}, seed: maphash.MakeSeed(), pending: map[string]bool{}, started: true}
			for _, found := range tt.found {
				w.take(found)
				if len(w.pending) > tellSingly {
					t.Fatalf("%d changes wait to be told, want at most %d", len(w.pending), tellSingly)
				}
			}
			var told []string
			w.tell(func(c connectors.Change) { told = append(told, c.UserID) })
			if slices.Sort(told); !slices.Equal(told, tt.want) {
				t.Errorf("told of %q, want %q", told, tt.want)
			}
			for _, found := range tt.found { // the same once more
				if person := found.entry != nil && slices.Contains(found.entry.GetAttributeValues("objectClass"), "user") && utf8.ValidString(found.entry.DN); person {
					w.take(found)
				}
			}
			if len(w.pending) != 0 {
				t.Errorf("users as they were are told as %v", w.pending)
			}
		})
	}
}

func TestWatchMemoryIsBounded(t *testing.T) {
	s := &settings{}
	w := &watch{c: &Connector{settings: s}, seen: map[string]uint64{}, seed: maphash.MakeSeed()}
	for i := range 2*watchedEntries + 10 {
		w.news(fmt.Sprint(i), &entry{dn: "cn=x"})
		if len(w.seen) > watchedEntries {
			t.Fatalf("%d entries are remembered, want at most %d", len(w.seen), watchedEntries)
		}
	}
}
