package ldap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/connectors"
	"gatehouse/test/fakeldap"

	ldapv3 "github.com/go-ldap/ldap/v3"
)

// fake is a directory of one domain that answers what a test says.
type fake struct {
	search func(fakeldap.Search) fakeldap.SearchAnswer // of users and groups
	bind   func(fakeldap.Bind) fakeldap.BindAnswer     // of users
}

const fakeBase = "dc=example,dc=com"

func (f fake) start(t testing.TB) *fakeldap.Server {
	t.Helper()
	return fakeldap.Start(t, fakeldap.Options{
		Bind: func(b fakeldap.Bind) fakeldap.BindAnswer {
			if b.Name == svc || f.bind == nil {
				return fakeldap.BindAnswer{}
			}
			return f.bind(b)
		},
		Search: func(s fakeldap.Search) fakeldap.SearchAnswer {
			if s.Base == "" || strings.Contains(s.Filter, "pwdPolicy") || slices.Contains(s.Attributes, "lockoutThreshold") || strings.Contains(s.Base, "CN=Password Settings") {
				return fakeldap.SearchAnswer{}
			}
			return f.search(s)
		},
	})
}

// fakeConfig asks for users by uid, with the uid as id.
func fakeConfig(s *fakeldap.Server) block {
	return block{
		"host": s.Address(), "insecureNoSSL": true, "bindDN": svc, "bindPW": svcPW,
		"userSearch": block{"baseDN": fakeBase, "filter": "(objectClass=person)", "username": []string{"uid", "mail"}, "idAttr": "uid", "nameAttr": "cn"},
	}
}

func somebody(uid string) fakeldap.Entry {
	return fakeldap.Entry{DN: "uid=" + uid + "," + fakeBase, Attributes: []fakeldap.Attribute{
		{Name: "uid", Values: []string{uid}}, {Name: "cn", Values: []string{"The " + uid}}, {Name: "mail", Values: []string{uid + "@example.com"}},
	}}
}

// asked are the searches for users and groups, without those about the directory itself.
func asked(s *fakeldap.Server) (out []fakeldap.Search) {
	for _, q := range s.Searches() {
		if q.Base != "" && !strings.Contains(q.Filter, "pwdPolicy") && !slices.Contains(q.Attributes, "lockoutThreshold") && !strings.Contains(q.Base, "CN=Password Settings") {
			out = append(out, q)
		}
	}
	return out
}

// Each name becomes one filter, escaped once, or nothing is asked at all.
func TestFindEscapes(t *testing.T) {
	t.Parallel()
	s := fake{search: func(fakeldap.Search) fakeldap.SearchAnswer { return fakeldap.SearchAnswer{} }}.start(t)
	c := open(t, fakeConfig(s))
	long := strings.Repeat("x", 256)
	for _, tt := range []struct{ name, value string }{
		{"alice", "alice"},
		{`CORP\alice`, `CORP\5calice`},
		{"zoë", `zo\c3\ab`},
		{"al(ice", `al\28ice`},
		{"al)ice", `al\29ice`},
		{"*", `\2a`},
		{"*)(uid=*", `\2a\29\28uid=\2a`},
		{`\2a`, `\5c2a`},
		{"a@b@c", "a@b@c"},
		{"a&b|c=d<e>f", "a&b|c=d<e>f"},
		{"a,dc=b", "a,dc=b"},
		{long, long},
		{long + "x", ""},
		{strings.Repeat("ë", 129), ""},
		{"a\x00b", ""},
		{"a\nb", ""},
		{"a\x7f", ""},
		{"a\u202eb", ""},
		{"\xff", ""},
		{"", ""},
		{"  ", ""},
	} {
		before := len(asked(s))
		a := find(t, c, tt.name)
		got := asked(s)[before:]
		if tt.value == "" {
			if len(got) != 0 {
				t.Errorf("%q: got the search %+v, want none", tt.name, got)
			}
			if _, err := c.Authenticate(waiting(t), a, "password"); reason(t, err) != connectors.WrongCredentials {
				t.Errorf("%q: got %v, want %s", tt.name, err, connectors.WrongCredentials)
			}
			continue
		}
		want := fmt.Sprintf("(&(objectClass=person)(|(uid=%s)(mail=%[1]s)))", tt.value)
		if len(got) != 1 || !strings.EqualFold(got[0].Filter, want) {
			t.Errorf("%q: got the searches %+v, want one for %s", tt.name, got, want)
		}
	}
	if n := s.BindsOf(""); n != 0 {
		t.Errorf("got %d binds without a name", n)
	}
}

// A password that cannot be one never leaves this process.
func TestPasswordsNotSent(t *testing.T) {
	t.Parallel()
	s := fake{search: func(fakeldap.Search) fakeldap.SearchAnswer {
		return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{somebody("alice")}}
	}}.start(t)
	c := open(t, fakeConfig(s))
	a := find(t, c, "alice")
	before := s.Dials()
	for _, password := range []string{"", "\x00", "pass\x00word", strings.Repeat("x", 1025), strings.Repeat("x", 10<<20)} {
		if _, err := c.Authenticate(waiting(t), a, password); reason(t, err) != connectors.WrongCredentials {
			t.Errorf("got %v for a password of %d bytes, want %s", err, len(password), connectors.WrongCredentials)
		}
	}
	for _, b := range s.Binds() {
		if b.Name != svc {
			t.Errorf("got the bind %+v, want none of a user", b)
		}
	}
	if got := s.Dials(); got > before+1 { // the one that asks about the directory may come late
		t.Errorf("got %d dials after %d", got, before)
	}
	if id, err := c.Authenticate(waiting(t), a, strings.Repeat("x", 1024)); err != nil || id.UserID != "alice" {
		t.Errorf("got %+v and %v, want alice", id, err)
	}
}

// A name of several entries is nobody's: nothing is guessed.
func TestFindAmbiguous(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 8, 9, 500} {
		s := fake{search: func(fakeldap.Search) fakeldap.SearchAnswer {
			var a fakeldap.SearchAnswer
			for i := range n {
				a.Entries = append(a.Entries, somebody("alice"+strconv.Itoa(i)))
			}
			return a
		}}.start(t)
		var log strings.Builder
		c, err := Open(fakeConfig(s).json(t), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if a := find(t, c, "alice"); a.entry != nil {
			t.Errorf("%d entries: got the account %q, want nobody's", n, a.Key())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if n == 2 && !strings.Contains(log.String(), "uid=alice1,"+fakeBase) {
			t.Errorf("got the log %q, want both entries in it", log.String())
		}
	}
}

// The names of nobody have one key for their spellings, as those of an account have.
func TestKeys(t *testing.T) {
	t.Parallel()
	key := nobodyKey("nobody")
	for _, name := range []string{"Nobody", " nobody ", `CORP\nobody`, "nobody@corp.example.com", "NOBODY@other", "ｎｏｂｏｄｙ"} {
		if got := nobodyKey(name); got != key {
			t.Errorf("%q: got %q, want %q", name, got, key)
		}
	}
	for _, name := range []string{"somebody", "@nobody", `nobody\`, "no body"} {
		if got := nobodyKey(name); got == key {
			t.Errorf("%q: got %q, that of nobody", name, got)
		}
	}
}

// Who has no account waits as long as who has one, and sends no password of theirs.
func TestNobody(t *testing.T) {
	t.Parallel()
	s := fake{
		search: func(q fakeldap.Search) fakeldap.SearchAnswer {
			if strings.Contains(q.Filter, "=alice)") {
				return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{somebody("alice")}}
			}
			return fakeldap.SearchAnswer{}
		},
		bind: func(b fakeldap.Bind) fakeldap.BindAnswer {
			if b.Is("typed") && !strings.HasPrefix(b.Name, "uid=alice,") {
				t.Errorf("a password was sent for %s, which nobody has", b.Name)
			}
			return fakeldap.BindAnswer{Result: fakeldap.Result{Code: 49, Diagnostic: adSays("525")}}
		},
	}.start(t)
	c := open(t, fakeConfig(s))
	for _, name := range []string{"alice", "nobody"} {
		before := len(s.Binds())
		if _, err := signIn(t, c, name, "typed"); reason(t, err) != connectors.WrongCredentials {
			t.Errorf("%s: got %v, want %s", name, err, connectors.WrongCredentials)
		}
		got := slices.DeleteFunc(s.Binds()[before:], func(b fakeldap.Bind) bool { return b.Name == svc })
		if len(got) != 1 || !strings.HasSuffix(got[0].Name, ","+fakeBase) {
			t.Errorf("%s: got the binds %+v, want one", name, got)
		}
	}
	// The bind of a name that is not there is answered at once; a wrong password is not.
	c.failed = durations{}
	const slow = 200 * time.Millisecond
	c.failed.add(slow)
	ctx, cancel := context.WithCancel(waiting(t))
	done := make(chan error)
	start := time.Now()
	go func() { done <- c.nobody(ctx) }()
	if err := <-done; reason(t, err) != connectors.WrongCredentials || time.Since(start) < slow {
		t.Errorf("got %v after %v, want %s no sooner than %v", err, time.Since(start), connectors.WrongCredentials, slow)
	}
	c.failed = durations{}
	c.failed.add(time.Hour)
	before := len(s.Binds())
	go func() { done <- c.nobody(ctx) }()
	s.Wait(t, func() bool { return len(s.Binds()) > before })
	cancel() // an answer is not waited for longer than the caller does
	if err := <-done; reason(t, err) == "" {
		t.Error("nobody was signed in")
	}
}

// What cannot be found out is told as that, for users and for nobody.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	answer := fakeldap.BindAnswer{}
	s := fake{
		search: func(q fakeldap.Search) fakeldap.SearchAnswer {
			switch {
			case strings.Contains(q.Filter, "=broken)"):
				return fakeldap.SearchAnswer{Result: fakeldap.Result{Code: 1}}
			case strings.Contains(q.Filter, "=alice)"):
				return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{somebody("alice")}}
			}
			return fakeldap.SearchAnswer{}
		},
		bind: func(fakeldap.Bind) fakeldap.BindAnswer { mu.Lock(); defer mu.Unlock(); return answer },
	}.start(t)
	c := open(t, fakeConfig(s))
	if _, err := c.Find(waiting(t), "broken"); reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v, want %s", err, connectors.Unavailable)
	}
	if _, err := c.Lookup(waiting(t), []string{"broken"}); reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v, want %s", err, connectors.Unavailable)
	}
	for _, a := range []fakeldap.BindAnswer{{Die: true}, {Result: fakeldap.Result{Code: 13}}, {Result: fakeldap.Result{Code: 52}}, {Result: fakeldap.Result{Code: 8}}} {
		mu.Lock()
		answer = a
		mu.Unlock()
		for _, name := range []string{"alice", "nobody"} {
			if _, err := signIn(t, c, name, "password"); reason(t, err) != connectors.Unavailable {
				t.Errorf("%s, %+v: got %v, want %s", name, a, err, connectors.Unavailable)
			}
		}
	}
	if _, err := c.Find(waiting(t), "alice"); err != nil { // and a connection is idle
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Find(ended, "alice"); reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v, want %s", err, connectors.Unavailable)
	}
	dials := s.Dials()
	if _, err := c.Find(waiting(t), "alice"); err != nil || s.Dials() != dials {
		t.Errorf("got %v, and %d new connections: one was ended for who had gone before he asked", err, s.Dials()-dials)
	}
}

// What is not text never gets into an identity, and nobody is somebody without an id.
func TestIdentityOfBadValues(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change map[string]string
		want   connectors.Reason
		of     string
	}{
		{"as it should be", nil, "", "The alice"},
		{"a name with a line in it", map[string]string{"cn": "The\r\nX-User: admin"}, "", ""},
		{"a name that is no UTF-8", map[string]string{"cn": "\xff\xfe"}, "", ""},
		{"a long name", map[string]string{"cn": strings.Repeat("x", maxText+1)}, "", ""},
		{"an id with a line in it", map[string]string{"uid": "a\nb"}, connectors.Unavailable, ""},
		{"an id that is no UTF-8", map[string]string{"uid": "\xff"}, connectors.Unavailable, ""},
		{"no id", map[string]string{"uid": ""}, connectors.Unavailable, ""},
		{"an e-mail address with a NUL", map[string]string{"mail": "a\x00@example.com"}, connectors.Unavailable, ""},
		{"no e-mail address", map[string]string{"mail": ""}, connectors.Unavailable, ""},
	} {
		s := fake{search: func(fakeldap.Search) fakeldap.SearchAnswer {
			e := somebody("alice")
			for i, a := range e.Attributes {
				if v, ok := tt.change[a.Name]; ok {
					e.Attributes[i].Values = []string{v}
				}
			}
			return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{e}}
		}}.start(t)
		id, err := signIn(t, open(t, fakeConfig(s)), "alice", "password")
		if reason(t, err) != tt.want || id.Name != tt.of {
			t.Errorf("%s: got %+v and %v, want %q and the name %q", tt.name, id, err, tt.want, tt.of)
		}
	}
}

// An entry without a name would be bound to as anonymous.
func TestNoName(t *testing.T) {
	t.Parallel()
	s := fake{search: func(fakeldap.Search) fakeldap.SearchAnswer {
		e := somebody("alice")
		e.DN = ""
		return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{e}}
	}}.start(t)
	c := open(t, fakeConfig(s))
	if a := find(t, c, "alice"); a.entry != nil {
		t.Error("got an account of an entry without a name, want nobody's")
	}
	if _, err := signIn(t, c, "alice", "password"); reason(t, err) != connectors.WrongCredentials {
		t.Errorf("got %v, want %s", err, connectors.WrongCredentials)
	}
}

// Whoever has got a name's entry meanwhile is not who was proven.
func TestAnotherEntryOfTheName(t *testing.T) {
	t.Parallel()
	var later atomic.Bool
	s := fake{search: func(fakeldap.Search) fakeldap.SearchAnswer {
		e := somebody("alice")
		if later.Load() {
			e.Attributes[0].Values = []string{"another"}
		}
		return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{e}}
	}}.start(t)
	c := openWith(t, fakeConfig(s), func() time.Time {
		if later.Load() {
			return time.Now().Add(fresh + time.Second)
		}
		return time.Now()
	})
	a := find(t, c, "alice")
	later.Store(true)
	if id, err := c.Authenticate(waiting(t), a, "password"); reason(t, err) != connectors.Gone {
		t.Errorf("got %+v and %v, want %s", id, err, connectors.Gone)
	}
}

// An entry that Find has read serves the same sign-in; a later one reads it again.
func TestFresh(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now, gone := time.Now(), false
	s := fake{search: func(fakeldap.Search) fakeldap.SearchAnswer {
		mu.Lock()
		defer mu.Unlock()
		if gone {
			return fakeldap.SearchAnswer{}
		}
		return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{somebody("alice")}}
	}}.start(t)
	c := openWith(t, fakeConfig(s), func() time.Time { mu.Lock(); defer mu.Unlock(); return now })
	a := find(t, c, "alice")
	mu.Lock()
	gone = true
	mu.Unlock()
	if _, err := c.Authenticate(waiting(t), a, "password"); err != nil {
		t.Errorf("got %v in the same sign-in, want what Find has read", err)
	}
	mu.Lock()
	now = now.Add(fresh + time.Second)
	mu.Unlock()
	if _, err := c.Authenticate(waiting(t), a, "password"); reason(t, err) != connectors.Gone {
		t.Errorf("got %v later, want %s", err, connectors.Gone)
	}
}

// Two entries with one id: it is not known whose it is.
func TestLookupTwice(t *testing.T) {
	t.Parallel()
	s := fake{search: func(fakeldap.Search) fakeldap.SearchAnswer {
		a, b := somebody("alice"), somebody("alice")
		b.DN = "uid=alice,ou=b," + fakeBase
		return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{a, b, somebody("ALICE")}}
	}}.start(t)
	ids := []string{"alice", "Alice", "ALICE"}
	for i := range 2 * batch { // so that each of them is found in several searches
		ids = append(ids, strconv.Itoa(i))
	}
	answers, err := open(t, fakeConfig(s)).Lookup(waiting(t), ids)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []connectors.Reason{connectors.Unavailable, connectors.Gone, ""} {
		if got := answers[i].Err; want == "" && got != nil || want != "" && (got == nil || got.Reason != want) {
			t.Errorf("%d: got %v, want %q", i, got, want)
		}
	}
}

// A ring of 10,000 groups in Active Directory ends within the bounds, and so does a user with groups that are in each other.
func TestGroupRing(t *testing.T) {
	t.Parallel()
	const n = 10_000
	dn := func(i int) string { return fmt.Sprintf("CN=g%d,OU=Groups,%s", i%n, fakeBase) }
	group := func(i int) fakeldap.Entry {
		return fakeldap.Entry{DN: dn(i), Attributes: []fakeldap.Attribute{
			{Name: "sAMAccountName", Values: []string{"g" + strconv.Itoa(i)}}, {Name: "memberOf", Values: []string{dn(i + 1), dn(i), dn(i + n - 1)}},
		}}
	}
	s := fake{search: func(q fakeldap.Search) fakeldap.SearchAnswer {
		if strings.Contains(q.Filter, "person") {
			e := somebody("alice")
			e.Attributes = append(e.Attributes, fakeldap.Attribute{Name: "memberOf", Values: []string{dn(0)}})
			return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{e}}
		}
		var a fakeldap.SearchAnswer
		for part := range strings.SplitSeq(strings.ToLower(q.Filter), "cn=g") {
			digits, _, _ := strings.Cut(part, ",")
			if i, err := strconv.Atoi(digits); err == nil {
				a.Entries = append(a.Entries, group(i))
			}
		}
		return a
	}}.start(t)
	c := open(t, fakeConfig(s).with(block{"preset": "activedirectory", "groupSearch": block{"primaryGroup": false}}))
	alice := mustSignIn(t, c, "alice", "password")
	if want := 2*maxLevels - 1; len(alice.Groups) != want || !slices.IsSorted(alice.Groups) {
		t.Errorf("got %d groups, want the %d within %d levels both ways", len(alice.Groups), want, maxLevels)
	}
	if got := len(asked(s)); got > maxLevels+2 {
		t.Errorf("got %d searches, want at most %d", got, maxLevels+2)
	}
	sameAsLookup(t, c, alice)
}

// Where the rules of a server's matching are not ours, the server decides for each value.
func TestMatchDoubtful(t *testing.T) {
	t.Parallel()
	members := map[string][]string{"exact": {"alice", "bob"}, "spelt otherwise": {"ALICE"}, "blanks": {"c  d"}, "hyphens": {"e-f"}}
	matches := func(have, value string) bool { // blanks and hyphens do not count, case does
		plain := strings.NewReplacer(" ", "", "-", "")
		return plain.Replace(have) == plain.Replace(value)
	}
	s := fake{search: func(q fakeldap.Search) fakeldap.SearchAnswer {
		var a fakeldap.SearchAnswer
		people := []string{"alice", "bob", "ALICE", "c d", "ef"}
		if strings.Contains(q.Filter, "person") {
			for _, p := range people {
				if strings.Contains(q.Filter, "(uid="+p+")") {
					a.Entries = append(a.Entries, somebody(p))
				}
			}
			return a
		}
		for name, have := range members {
			for _, p := range people {
				if strings.Contains(q.Filter, "(memberUid="+p+")") && slices.ContainsFunc(have, func(h string) bool { return matches(h, p) }) {
					a.Entries = append(a.Entries, fakeldap.Entry{DN: "cn=" + name + "," + fakeBase, Attributes: []fakeldap.Attribute{
						{Name: "cn", Values: []string{name}}, {Name: "memberUid", Values: have},
					}})
					break
				}
			}
		}
		return a
	}}.start(t)
	c := open(t, fakeConfig(s).with(block{"groupSearch": block{"baseDN": fakeBase, "nameAttr": "cn", "userMatchers": []block{{"userAttr": "uid", "groupAttr": "memberUid"}}}}))
	var ids []connectors.Identity
	for user, want := range map[string]string{"alice": "exact", "bob": "exact", "ALICE": "spelt otherwise", "c d": "blanks", "ef": "hyphens"} {
		id := mustSignIn(t, c, user, "password")
		if !slices.Equal(id.Groups, []string{want}) {
			t.Errorf("%s: got %q, want %q", user, id.Groups, want)
		}
		ids = append(ids, id)
	}
	sameAsLookup(t, c, ids...)
}

// What one user writes into an own entry, or into a group, keeps nobody else out.
func TestLookupBesideAnUnusableEntry(t *testing.T) {
	t.Parallel()
	people := []string{"alice", "bob", "carol", "mallory"}
	var bad atomic.Pointer[fakeldap.Attribute]
	var dn atomic.Pointer[string]
	s := fake{search: func(q fakeldap.Search) fakeldap.SearchAnswer {
		var a fakeldap.SearchAnswer
		if strings.Contains(q.Filter, "member=") {
			members := make([]string, len(people))
			for i, p := range people {
				members[i] = "uid=" + p + "," + fakeBase
			}
			g := fakeldap.Entry{DN: "cn=staff," + fakeBase, Attributes: []fakeldap.Attribute{{Name: "cn", Values: []string{"staff"}}}}
			if slices.Contains(q.Attributes, "member") {
				g.Attributes = append(g.Attributes, fakeldap.Attribute{Name: "member", Values: append(members, slices.Repeat([]string{"cn=x"}, maxElements)...)})
			}
			a.Entries = append(a.Entries, g)
			return a
		}
		for _, p := range people {
			if strings.Contains(q.Filter, "(uid="+p+")") {
				e := somebody(p)
				if b := bad.Load(); p == "mallory" && b != nil {
					e.Attributes = append(e.Attributes, *b)
				}
				if d := dn.Load(); p == "mallory" && d != nil {
					e.DN = *d
				}
				a.Entries = append(a.Entries, e)
			}
		}
		return a
	}}.start(t)
	c := open(t, fakeConfig(s).with(block{"groupSearch": block{"baseDN": fakeBase, "nameAttr": "cn", "userMatchers": []block{{"userAttr": "DN", "groupAttr": "member"}}}}))
	check := func(what string) {
		t.Helper()
		answers, err := c.Lookup(waiting(t), people)
		if err != nil {
			t.Errorf("%s: got %v", what, err)
			return
		}
		for i, a := range answers {
			switch known := a.Err == nil && slices.Equal(a.Identity.Groups, []string{"staff"}); {
			case people[i] == "mallory" && what != "nothing":
				if a.Err == nil || a.Err.Reason != connectors.Unavailable {
					t.Errorf("%s: got %+v, want %s", what, a, connectors.Unavailable)
				}
			case !known:
				t.Errorf("%s: got %+v and %v of %s", what, a.Identity, a.Err, people[i])
			}
		}
	}
	check("nothing")
	bad.Store(&fakeldap.Attribute{Name: "cn", Values: []string{strings.Repeat("x", maxMessage)}})
	check("9 MB")
	bad.Store(&fakeldap.Attribute{Name: "cn", Values: slices.Repeat([]string{"x"}, maxElements)})
	check("many values")
	bad.Store(nil)
	dn.Store(new("uid=mal\nlory," + fakeBase))
	check("a line feed in the DN")
	for _, h := range c.Stats().Hosts {
		if h.Aside {
			t.Errorf("%s was put aside", h.Address)
		}
	}
}

// Where no answer is of any use, not each user is asked about.
func TestLookupOfUnusableEntries(t *testing.T) {
	t.Parallel()
	s := fake{search: func(fakeldap.Search) fakeldap.SearchAnswer {
		return fakeldap.SearchAnswer{Result: fakeldap.Result{Code: 10, Referral: []string{"ldap://other/"}}}
	}}.start(t)
	c := open(t, fakeConfig(s))
	var ids []string
	for i := range 1000 {
		ids = append(ids, userNumber(i))
	}
	if _, err := c.Lookup(waiting(t), ids); reason(t, err) != connectors.Unavailable {
		t.Errorf("got %v", err)
	}
	if n := len(asked(s)); n > maxApart+1 {
		t.Errorf("got %d searches", n)
	}
}

// Users and groups whose names are alike to us are two to a directory that keeps them apart, however many are asked for at once.
func TestAlikeIsNotTheSame(t *testing.T) {
	t.Parallel()
	members := map[string]string{"admins1": "carol", "admins①": "bob①", "roots": "bob1"} // by group
	s := fake{search: func(q fakeldap.Search) fakeldap.SearchAnswer {
		var a fakeldap.SearchAnswer
		if strings.Contains(q.Filter, "person") {
			for _, p := range []string{"carol", "bob①", "bob1"} {
				if strings.Contains(q.Filter, "(uid="+ldapv3.EscapeFilter(p)+")") {
					a.Entries = append(a.Entries, somebody(p))
				}
			}
			return a
		}
		for _, name := range []string{"admins1", "admins①", "roots"} {
			all := []string{"uid=" + members[name] + "," + fakeBase}
			if name == "roots" {
				all = append(all, "uid=carol,"+fakeBase)
			}
			if slices.ContainsFunc(all, func(m string) bool { return strings.Contains(q.Filter, "(member="+ldapv3.EscapeFilter(m)+")") }) {
				a.Entries = append(a.Entries, fakeldap.Entry{DN: "cn=" + name + "," + fakeBase, Attributes: []fakeldap.Attribute{
					{Name: "cn", Values: []string{name}}, {Name: "member", Values: all},
				}})
			}
		}
		return a
	}}.start(t)
	c := open(t, fakeConfig(s).with(block{"groupSearch": block{"baseDN": fakeBase, "nameAttr": "cn", "userMatchers": []block{{"userAttr": "DN", "groupAttr": "member"}}}}))
	var ids []connectors.Identity
	for _, tt := range []struct {
		user string
		want []string
	}{{"carol", []string{"admins1", "roots"}}, {"bob①", []string{"admins①"}}, {"bob1", []string{"roots"}}} {
		id := mustSignIn(t, c, tt.user, "password")
		if !slices.Equal(id.Groups, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.user, id.Groups, tt.want)
		}
		ids = append(ids, id)
	}
	sameAsLookup(t, c, ids...)
	sameAsLookup(t, c, ids[:2]...)
}

// A password change of a name that is nobody's, and of one that was not proven, sends no new password.
func TestChangeNotProven(t *testing.T) {
	t.Parallel()
	s := fakeldap.Start(t, fakeldap.Options{
		Mode: fakeldap.LDAPS,
		Bind: func(b fakeldap.Bind) fakeldap.BindAnswer {
			switch {
			case strings.HasPrefix(b.Name, "uid=disabled,"):
				return fakeldap.BindAnswer{Result: fakeldap.Result{Code: 49, Diagnostic: adSays("533")}}
			case strings.HasPrefix(b.Name, "uid=locked,"):
				return fakeldap.BindAnswer{Result: fakeldap.Result{Code: 49}, Policy: &fakeldap.Policy{Expire: -1, Grace: -1, Error: 1}}
			case strings.HasPrefix(b.Name, "uid=hang,"):
				return fakeldap.BindAnswer{Die: true}
			case b.Name != svc:
				return fakeldap.BindAnswer{Result: fakeldap.Result{Code: 49}}
			}
			return fakeldap.BindAnswer{}
		},
		Search: func(q fakeldap.Search) fakeldap.SearchAnswer {
			for _, uid := range []string{"alice", "disabled", "locked", "hang"} {
				if strings.Contains(q.Filter, "(uid="+uid+")") {
					return fakeldap.SearchAnswer{Entries: []fakeldap.Entry{somebody(uid)}}
				}
			}
			return fakeldap.SearchAnswer{}
		},
	})
	for _, preset := range []string{"activedirectory", "openldap"} {
		b := fakeConfig(s).with(block{"preset": preset, "insecureSkipVerify": true})
		delete(b, "insecureNoSSL")
		c := open(t, b)
		for name, want := range map[string]connectors.Reason{
			"alice": connectors.WrongCredentials, "nobody": connectors.WrongCredentials, "disabled": connectors.AccountDisabled,
			"locked": connectors.AccountLocked, "hang": connectors.Unavailable, "a\x00": connectors.WrongCredentials,
		} {
			if err := c.ChangePassword(waiting(t), find(t, c, name), "old", "a-New-Passw0rd"); reason(t, err) != want {
				t.Errorf("%s, %s: got %v, want %s", preset, name, err, want)
			}
		}
	}
	if got := s.Others(); len(got) != 0 {
		t.Errorf("got the requests %+v, want none that changes anything", got)
	}
}

// Open does not wait for a directory that is not there, and what is asked ends when its caller does.
func TestOpenWithoutDirectory(t *testing.T) {
	t.Parallel()
	s := fakeldap.Start(t, fakeldap.Options{Mute: true})
	c := open(t, fakeConfig(s))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := c.Find(ctx, "alice"); done <- err }()
	s.Wait(t, func() bool { return s.Dials() > 0 })
	cancel()
	err := <-done
	if reason(t, err) != connectors.Unavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %s", err, connectors.Unavailable)
	}
	if got := c.MaxFailures(); got != 0 {
		t.Errorf("got %d failures of a directory that says nothing, want 0", got)
	}
}
