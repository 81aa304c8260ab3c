package authz

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/authz/session"
)

// notary signs tokens for tests: each is another one, and says what it was made for.
type notary struct {
	mu     sync.Mutex
	made   []TokenClaims
	err    error
	waits  chan struct{} // nil: none
	panics atomic.Bool
}

func (n *notary) SignAppToken(c *TokenClaims) (string, error) {
	if n.panics.Load() {
		panic("notary")
	}
	if n.waits != nil {
		<-n.waits
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return "", n.err
	}
	n.made = append(n.made, *c)
	return fmt.Sprintf("token-%d.%s.%s", len(n.made), c.Audience, c.UserID), nil
}

func (n *notary) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.made)
}

// newTokenFixture is newFixture with a token in Authorization.
func newTokenFixture(t testing.TB, change ...func(*AppToken)) (*fixture, *notary) {
	t.Helper()
	f, n := newFixture(t), &notary{}
	f.Signer = n
	f.Audit = nowhere{}
	token := &AppToken{Header: "Authorization", Audience: "apps", TTL: 5 * time.Minute}
	for _, c := range change {
		c(token)
	}
	f.config.Token = token
	if err := f.Apply(&f.config); err != nil {
		t.Fatal(err)
	}
	return f, n
}

// TestTokenHeader pins that the token's header is ours on every allow: set for a user, removed for everybody else, whatever the
// client sent, and never set and removed at once (envoy() of the harness fails then).
func TestTokenHeader(t *testing.T) {
	for _, tt := range []struct{ header, prefix string }{{"Authorization", "Bearer "}, {"X-App-Token", ""}, {"x_app.token", ""}} {
		name := strings.ToLower(tt.header)
		f, _ := newTokenFixture(t, func(a *AppToken) { a.Header = tt.header })
		aliases := []string{"x-app-token", "x_app_token", "X.App.Token", "x~app-token"}
		for _, forged := range append(aliases, "Authorization") {
			for _, signed := range []bool{false, true} {
				r := get("/public/x", browser, forged, "Basic evil", "x-other", "kept")
				want := map[string]string{"x-other": "kept", "x-request-id": "rid-1", "sec-fetch-mode": browser}
				if tt.header == "Authorization" && forged != "Authorization" {
					want[strings.ToLower(forged)] = "Basic evil" // no name of ours
				}
				if signed {
					r.headers["cookie"] = f.cookie(appHost, "alice")
					want["kubeflow-userid"], want["kubeflow-groups"] = "alice@example.com", "team-a,team-b"
					want["x-auth-display-name"] = "Name of alice"
					want[name] = tt.prefix + "token-1.apps.u-alice"
				}
				if got := f.do(r); got.code != 200 || !maps.Equal(got.upstream, want) {
					t.Errorf("%s, forged %s, signed in %v: got %d, %v upstream, want %v", tt.header, forged, signed, got.code, got.upstream, want)
				}
			}
		}
		if got := f.do(get("/x", "", "connection", "close, "+name, "cookie", f.cookie(appHost, "alice"))); got.code != 400 {
			t.Errorf("connection: %s: got %d, want 400: the next hop would drop the token", name, got.code)
		}
	}
}

// TestTokenAtTheIssuer pins that the issuer gets the client's Authorization, which it reads, and no header of the token's.
func TestTokenAtTheIssuer(t *testing.T) {
	for header, left := range map[string]bool{"authorization": true, "x-app-token": false} {
		f, n := newTokenFixture(t, func(a *AppToken) { a.Header = header })
		got := f.do(get("/dex/userinfo", "", header, "Bearer theirs", "cookie", f.cookie(issuerHost, "alice")).on(issuerHost))
		if value, there := got.upstream[header]; got.code != 200 || there != left || left && value != "Bearer theirs" || n.count() != 0 {
			t.Errorf("%s: got %d, %v upstream and %d tokens, want it left %v and no token", header, got.code, got.upstream, n.count(), left)
		}
	}
}

// TestTokenIsNoBearer pins that the gateway takes no token back: not this very one either.
func TestTokenIsNoBearer(t *testing.T) {
	f, _ := newTokenFixture(t)
	cookie := f.cookie(appHost, "alice")
	token := f.do(get("/x", "", "cookie", cookie)).upstream["authorization"]
	if !strings.HasPrefix(token, "Bearer ") {
		t.Fatalf("got %q", token)
	}
	for _, r := range []request{get("/x", script, "authorization", token), get("/x", script, "authorization", token, "cookie", cookie)} {
		if got := f.do(r); got.code != 401 || got.upstream != nil {
			t.Errorf("got %d, %v upstream, want 401", got.code, got.upstream)
		}
	}
	if got := f.do(get("/public/x", "", "authorization", token)); got.code != 200 || got.upstream["authorization"] != "" || got.upstream["kubeflow-userid"] != "" {
		t.Errorf("open to anyone: got %d, %v upstream, want nobody", got.code, got.upstream)
	}
}

// TestTokenClaims pins what a token says, and what does not fit into it.
func TestTokenClaims(t *testing.T) {
	f, n := newTokenFixture(t)
	long := strings.Repeat("g", maxTokenGroups)
	f.now = epoch.Add(700 * time.Millisecond)
	f.signIn("eve", func(s *session.Session) {
		s.Identity.Name, s.Identity.PreferredUsername = "e\xff", strings.Repeat("n", maxTokenText+1)
		control := strings.Repeat("\x01", maxTokenGroups/4) // six times as long in JSON
		s.Identity.Groups = []string{"a,b", "", long, control, "bad\xff", "é\n"}
	})
	f.do(get("/x", "", "cookie", f.cookie(appHost, "eve")))
	if n.count() != 1 {
		t.Fatalf("got %d tokens", n.count())
	}
	got := n.made[0]
	want := TokenClaims{
		Connector: "local", UserID: "u-eve", Email: "eve@example.com", Audience: "apps", IssuedAt: epoch, Expiry: epoch.Add(5 * time.Minute),
	}
	groups := got.Groups
	got.Groups = nil
	if fmt.Sprint(got) != fmt.Sprint(want) || !slices.Equal(groups, []string{"a,b", "é\n"}) {
		t.Errorf("got %+v and groups %q", got, groups)
	}
}

// TestTokenPerHost pins that {host} binds a token to the host.
func TestTokenPerHost(t *testing.T) {
	f, n := newTokenFixture(t, func(a *AppToken) { a.Audience = "https://{host}/" })
	ask := func(host string) string {
		t.Helper()
		return f.do(get("/x", "", "cookie", f.cookie(host, "alice")).on(host)).upstream["authorization"]
	}
	a, b := ask(appHost), ask("one.apps.example.com")
	if a != "Bearer token-1.https://app.example.com/.u-alice" || b != "Bearer token-2.https://one.apps.example.com/.u-alice" {
		t.Errorf("got %q and %q", a, b)
	}
	if ask("APP.example.com") != "" && n.count() != 2 || ask(appHost) != a {
		t.Errorf("got %d tokens, want the first again", n.count())
	}
}

// TestTokensOfHostsAreBounded pins that tokens of which each host has its own are kept in a cache of fixed size, whatever users and hosts there are,
// and nothing of them with the session.
func TestTokensOfHostsAreBounded(t *testing.T) {
	f, _ := newTokenFixture(t, func(a *AppToken) { a.Audience = "https://{host}/" })
	f.Signer = fixed(strings.Repeat("t", 100<<10)) // one that is far too long: 1,300 fill the cache
	hosts := f.tokens.hosts()
	for i := range 2000 {
		id, host := fmt.Sprint("user", i/20), fmt.Sprintf("h%d.apps.example.com", i%20)
		if i%20 == 0 {
			f.signIn(id, func(*session.Session) {})
		}
		if got := f.do(get("/x", "", "cookie", f.cookie(host, id)).on(host)); got.code != 200 {
			t.Fatalf("got %d", got.code)
		}
		if got := hosts.bytes.Load(); got > maxHostTokens {
			t.Fatalf("got %d bytes, want at most %d", got, maxHostTokens)
		}
	}
	if got := hosts.bytes.Load(); got < maxHostTokens/2 {
		t.Errorf("got %d bytes, want the cache in use", got)
	}
	p, _ := f.sessions.live["user99"].Memo.Load().(*principal)
	if p == nil || p.weight() > maxMemo || p.tokens.one.Load() != nil {
		t.Error("a token is kept with the session")
	}
}

// TestTokenRenewal pins that a check signs once, that a token is renewed behind the checks from half of its life on, and that none is
// given away in its last quarter.
func TestTokenRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, n := newTokenFixture(t)
		ask := func(at time.Duration) result {
			t.Helper()
			f.now = epoch.Add(at)
			r := f.do(get("/x", "", "cookie", f.cookie(appHost, "alice")))
			synctest.Wait()
			return r
		}
		for _, tt := range []struct {
			rule  string
			at    time.Duration
			token string
			made  int
		}{
			{"the first", 0, "token-1", 1},
			{"kept", 149 * time.Second, "token-1", 1},
			{"renewed behind it at half of its life", 150 * time.Second, "token-1", 2},
			{"the new one", 151 * time.Second, "token-2", 2},
			{"nobody came for long: signed at once", 150*time.Second + 225*time.Second, "token-3", 3},
		} {
			if got := ask(tt.at); !strings.HasPrefix(got.upstream["authorization"], "Bearer "+tt.token+".") || n.count() != tt.made {
				t.Errorf("%s: got %q and %d made, want %s and %d", tt.rule, got.upstream["authorization"], n.count(), tt.token, tt.made)
			}
		}
		n.err = errors.New("no key")
		if got := ask(375*time.Second + 200*time.Second); !strings.HasPrefix(got.upstream["authorization"], "Bearer token-3.") {
			t.Errorf("the renewal failed: got %d, %v", got.code, got.upstream)
		}
		if got := ask(375*time.Second + 225*time.Second); got.code != 503 || got.upstream != nil || got.problem(t) != ProblemUnavailable {
			t.Errorf("in the last quarter without a key: got %d, %v upstream, want 503", got.code, got.upstream)
		}
		n.panics.Store(true)
		f.now = epoch.Add(375*time.Second + 200*time.Second)
		ask(375*time.Second + 200*time.Second) // a panic behind a check must not end the process
		n.panics.Store(false)
		n.err = nil
		if got := ask(375*time.Second + 226*time.Second); got.code != 200 || !strings.HasPrefix(got.upstream["authorization"], "Bearer token-4.") {
			t.Errorf("with a key again: got %d, %v", got.code, got.upstream)
		}
		if signed, failed := f.count("gatehouse_app_tokens_total", "result", "signed"), f.count("gatehouse_app_tokens_total", "result", "failed"); signed != 4 || failed != 2 {
			t.Errorf("got %v signed and %v failed, want 4 and 2", signed, failed)
		}
	})
}

// TestBudget pins how signatures come back, and what a clock that is set back or forward does.
func TestBudget(t *testing.T) {
	const within = 100 * time.Second
	b, now := &budget{}, epoch
	burst := func() (n int) {
		for b.take(now, within) {
			n++
		}
		return n
	}
	for _, tt := range []struct {
		rule string
		pass time.Duration
		want int
	}{
		{"at first", 0, maxSignatures},
		{"evenly", 10 * time.Second, maxSignatures / 10},
		{"all", within, maxSignatures},
		{"no more than all", time.Hour, maxSignatures},
		{"a check that has waited", -time.Millisecond, 0},
		{"set back", -time.Hour, maxSignatures},
	} {
		now = now.Add(tt.pass)
		if got := burst(); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.rule, got, tt.want)
		}
	}
}

// TestTokenAfterTheClockWasSetBack pins that no token goes on that was made in the future: apps refuse it.
func TestTokenAfterTheClockWasSetBack(t *testing.T) {
	f, n := newTokenFixture(t)
	for _, tt := range []struct {
		at   time.Duration
		made int
	}{{0, 1}, {-clockSlack, 1}, {-10 * time.Minute, 2}, {-10*time.Minute + time.Second, 2}, {0, 3}} {
		f.now = epoch.Add(tt.at)
		if got := f.do(get("/x", "", "cookie", f.cookie(appHost, "alice"))); got.code != 200 || n.count() != tt.made || n.made[tt.made-1].IssuedAt.After(f.now.Add(clockSlack)) {
			t.Errorf("at %v: got %d and %d made, want 200 and %d", tt.at, got.code, n.count(), tt.made)
		}
	}
}

// TestTokensOfManyGroups pins that a token is kept where users have as many groups as a directory gives them, and many are there at once:
// else each check would sign.
func TestTokensOfManyGroups(t *testing.T) {
	f, n := newTokenFixture(t)
	const users = 1000
	var groups []string
	for i := range 60 {
		groups = append(groups, fmt.Sprintf("department-%d-members", i))
	}
	for i := range users {
		f.signIn(fmt.Sprint("user", i), func(s *session.Session) { s.Identity.Groups = groups })
	}
	for range 3 {
		for i := range users {
			f.do(get("/x", "", "cookie", f.cookie(appHost, fmt.Sprint("user", i))))
		}
	}
	if got := n.count(); got < users || got > users+users/10 { // three sessions may share two slots
		t.Errorf("got %d tokens for %d users, want about one each", got, users)
	}
}

// TestTokenRenewalBlocksNoCheck pins that a signer that takes its time holds up nobody who has a token.
func TestTokenRenewalBlocksNoCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, n := newTokenFixture(t)
		for i := range 2 * renewals {
			f.signIn(fmt.Sprint("s", i), func(*session.Session) {})
		}
		ask := func(i int) string {
			return f.do(get("/x", "", "cookie", f.cookie(appHost, fmt.Sprint("s", i)))).upstream["authorization"]
		}
		var first []string
		for i := range 2 * renewals {
			first = append(first, ask(i))
		}
		n.waits = make(chan struct{})
		f.now = epoch.Add(3 * time.Minute)
		for range 3 {
			for i := range first {
				if got := ask(i); got != first[i] {
					t.Errorf("got %q, want %q", got, first[i])
				}
			}
		}
		synctest.Wait()
		if got := len(f.renewing); got != renewals {
			t.Errorf("got %d in the background, want %d", got, renewals)
		}
		close(n.waits)
		synctest.Wait()
		if got := n.count(); got != len(first)+renewals {
			t.Errorf("got %d tokens, want %d", got, len(first)+renewals)
		}
	})
}

// TestTokensAtOnce pins that many checks of a new session sign once.
func TestTokensAtOnce(t *testing.T) {
	f, n := newTokenFixture(t)
	in := get("/x", "", "cookie", f.cookie(appHost, "alice")).proto()
	f.do(get("/public/x", "")) // the generation is there
	var wg sync.WaitGroup
	p := f.current.Load().principal(f.sessions.live["alice"])
	if p.tokens == nil {
		t.Fatal("no tokens")
	}
	for range 16 {
		wg.Go(func() {
			if _, err := f.Check(context.WithoutCancel(t.Context()), in); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := n.count(); got != 1 {
		t.Errorf("got %d tokens, want 1", got)
	}
}

// TestTokenOfAnotherIdentity pins that what changes the user or the settings changes the token, and that nothing else does.
func TestTokenOfAnotherIdentity(t *testing.T) {
	f, n := newTokenFixture(t)
	req := get("/x", "", "cookie", f.cookie(appHost, "alice"))
	f.do(req)
	if err := f.Apply(&f.config); err != nil { // rules, say
		t.Fatal(err)
	}
	if f.do(req); n.count() != 1 {
		t.Errorf("got %d tokens after a reload that is not about them, want 1", n.count())
	}
	f.signIn("alice", func(s *session.Session) { s.Identity.Groups = []string{"new"} })
	if f.do(req); n.count() != 2 || !slices.Equal(n.made[1].Groups, []string{"new"}) {
		t.Errorf("got %+v after a change of groups", n.made)
	}
	next := f.config
	next.Token = &AppToken{Header: "Authorization", Audience: "others", TTL: 5 * time.Minute}
	if err := f.Apply(&next); err != nil {
		t.Fatal(err)
	}
	if got := f.do(req); got.upstream["authorization"] != "Bearer token-3.others.u-alice" {
		t.Errorf("got %q after a change of the audience", got.upstream["authorization"])
	}
	next.Token = nil
	if err := f.Apply(&next); err != nil {
		t.Fatal(err)
	}
	if got, there := f.do(req).upstream["authorization"]; there {
		t.Errorf("got %q without a token in the configuration", got)
	}
}

// TestTokenAfterActivity pins that activity alone, after which a session is another one in memory, costs no signature, and that a token is
// never that of another session or of the user as they were.
func TestTokenAfterActivity(t *testing.T) {
	f, n := newTokenFixture(t)
	f.do(get("/x", "", "cookie", f.cookie(appHost, "alice")))
	memo, first := f.sessions.live["alice"].Memo.Load(), f.sessions.live["alice"].Identity
	for _, tt := range []struct {
		rule   string
		id     string
		change func(*session.Session)
		made   int
	}{
		{"activity", "alice", func(s *session.Session) { s.LastActivity = epoch.Add(time.Minute) }, 1},
		{"other groups", "alice", func(s *session.Session) { s.Identity.Groups = []string{"team-a"} }, 2},
		{"another user", "alice", func(s *session.Session) { s.Identity.UserID = "u-bob" }, 3},
		{"another session", "second", func(s *session.Session) { s.Identity = first }, 4},
		{"an end that is sooner", "alice", func(s *session.Session) { s.Identity.Expiry = epoch.Add(time.Minute) }, 5},
	} {
		f.signIn(tt.id, func(s *session.Session) {
			tt.change(s)
			s.Memo.Store(memo)
		})
		if f.do(get("/x", "", "cookie", f.cookie(appHost, tt.id))); n.count() != tt.made {
			t.Errorf("%s: got %d tokens, want %d", tt.rule, n.count(), tt.made)
		}
	}
}

// TestTokenOfLongHeaders pins that the memory of tokens is bounded as that of headers.
func TestTokenOfLongHeaders(t *testing.T) {
	f, _ := newTokenFixture(t)
	f.config.IdentityHeaders = nil
	if err := f.Apply(&f.config); err != nil {
		t.Fatal(err)
	}
	f.signIn("many", func(s *session.Session) { s.Identity.Groups = slices.Repeat([]string{"a-group-of-some-length"}, 500) })
	for range 2 {
		if got := f.do(get("/x", "", "cookie", f.cookie(appHost, "many"))); got.code != 200 || got.upstream["authorization"] == "" {
			t.Errorf("got %d, %v", got.code, got.upstream)
		}
	}
	if f.sessions.live["many"].Memo.Load() != nil {
		t.Error("a long token is kept as long as the session")
	}
	if f.do(get("/x", "", "cookie", f.cookie(appHost, "alice"))); f.sessions.live["alice"].Memo.Load() == nil {
		t.Error("a short one is not")
	}
}

// TestTokenOfTheSigner pins that no signer breaks out of a header.
func TestTokenOfTheSigner(t *testing.T) {
	for _, bad := range []string{"", "a\r\nx-admin: 1", "a\xff", "a\x00"} {
		f, _ := newTokenFixture(t)
		f.Signer = fixed(bad)
		if got := f.do(get("/x", "", "cookie", f.cookie(appHost, "alice"))); got.code != 503 {
			t.Errorf("%q: got %d, want 503", bad, got.code)
		}
	}
}

type fixed string

func (s fixed) SignAppToken(*TokenClaims) (string, error) { return string(s), nil }

// TestTokenConfig pins what Apply refuses.
func TestTokenConfig(t *testing.T) {
	good := AppToken{Header: "Authorization", Audience: "apps", TTL: time.Minute}
	for rule, change := range map[string]func(*AppToken, *Options){
		"a header that is none":            func(a *AppToken, _ *Options) { a.Header = "a b" },
		"a header of the connection":       func(a *AppToken, _ *Options) { a.Header = "Cookie" },
		"a header that tells the identity": func(a *AppToken, _ *Options) { a.Header = "Kubeflow_UserID" },
		"no audience":                      func(a *AppToken, _ *Options) { a.Audience = "" },
		"no time":                          func(a *AppToken, _ *Options) { a.TTL = time.Second },
		"no signer":                        func(_ *AppToken, o *Options) { o.Signer = nil },
	} {
		f, _ := newTokenFixture(t)
		token := good
		cfg := f.config
		cfg.Token = &token
		change(&token, &f.Options)
		if err := f.Apply(&cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: got %v, want %v", rule, err, ErrConfig)
		}
	}
}

// TestTokenAllocations bounds what a check with a token allocates that is there: no more than one without (TestAllocations).
func TestTokenAllocations(t *testing.T) {
	const limit = 2
	for _, audience := range []string{"apps", "https://{host}"} {
		f, _ := newTokenFixture(t, func(a *AppToken) { a.Audience = audience })
		in := browserRequest("_ga=GA1.2.3.4; " + f.cookie(appHost, "alice")).wire(t)
		c := newCheck()
		got := testing.AllocsPerRun(1000, func() {
			if out := c.of(context.Background(), f.Server, in); !allows(out) { //nolint:usetesting // as a server calls it
				t.Fatalf("got %q", out)
			}
		})
		if got > limit {
			t.Errorf("%s: got %v allocations, want at most %d", audience, got, limit)
		}
	}
}

// BenchmarkCheckToken compares a check without a token with one that has a token of the usual length at hand, in turns: what else the machine does
// meets both. An operation is 100 checks of one of them.
func BenchmarkCheckToken(b *testing.B) {
	type side struct {
		f    *fixture
		in   []byte
		took []time.Duration
	}
	var sides [2]side
	for with := range sides {
		f, _ := newTokenFixture(b)
		f.Signer = fixed(strings.Repeat("t", 1000))
		if with == 0 {
			f.config.Token = nil
		}
		if err := f.Apply(&f.config); err != nil {
			b.Fatal(err)
		}
		sides[with] = side{f: f, in: browserRequest("_ga=GA1.2.3.4; " + f.cookie(appHost, "alice")).wire(b)}
	}
	const batch = 100 // so that looking at the clock does not count
	for i := 0; b.Loop(); i++ {
		s := &sides[i%2]
		begin := time.Now()
		for range batch {
			if out := s.f.Server.check(b.Context(), s.in); !allows(out) {
				b.Fatalf("got %q", out)
			}
		}
		s.took = append(s.took, time.Since(begin))
	}
	median := func(s *side) float64 {
		if len(s.took) == 0 {
			return 1
		}
		slices.Sort(s.took)
		return float64(s.took[len(s.took)/2])
	}
	b.ReportMetric(median(&sides[1])/median(&sides[0]), "with/without") // of the medians
}

// TestTokenHostsAreCycled pins that a user who asks for one host after the other costs so many signatures and no more, that the others go
// on meanwhile, and that hosts which are in use cost none.
func TestTokenHostsAreCycled(t *testing.T) {
	f, n := newTokenFixture(t, func(a *AppToken) { a.Audience = "https://{host}" })
	f.signIn("bob", func(*session.Session) {})
	ask := func(id string, host int) result {
		t.Helper()
		name := fmt.Sprintf("h%d.apps.example.com", host)
		return f.do(get("/x", script, "cookie", f.cookie(name, id)).on(name))
	}
	for range 3 {
		for i := range 50 { // more than anybody has open
			if got := ask("alice", i); got.code != 200 {
				t.Fatalf("host %d: got %d", i, got.code)
			}
		}
	}
	if got := n.count(); got != 50 {
		t.Errorf("got %d tokens for 50 hosts that were asked for three times, want 50", got)
	}
	var refused result
	for i := range 1000 {
		if got := ask("alice", 100+i); got.code != 200 {
			refused = got
		}
	}
	if got := n.count(); got > 128 {
		t.Errorf("got %d tokens for one session, want a limit", got)
	}
	if refused.code != 503 || refused.upstream != nil || refused.problem(t) != ProblemUnavailable || len(refused.headers["retry-after"]) == 0 {
		t.Errorf("beyond it: got %d %v, want 503", refused.code, refused.headers)
	}
	if got, want := f.count("gatehouse_app_tokens_total", "result", "refused"), f.count("gatehouse_checks_total", "reason", "token-budget"); got != 950 || want != 950 {
		t.Errorf("got %v refusals and %v checks counted, want 950", got, want)
	}
	memo := f.sessions.live["alice"].Memo.Load()
	f.signIn("alice", func(s *session.Session) {
		s.LastActivity = epoch.Add(time.Minute)
		s.Memo.Store(memo)
	})
	if got := ask("alice", 3000); got.code != 503 {
		t.Errorf("after activity: got %d, want 503 still", got.code)
	}
	before := n.count()
	if got := ask("alice", 49); got.code != 200 || n.count() != before {
		t.Errorf("a host with a token: got %d", got.code)
	}
	if got := ask("bob", 1); got.code != 200 {
		t.Errorf("somebody else: got %d, want 200", got.code)
	}
	f.now = f.now.Add(151 * time.Second)
	if got := ask("alice", 5000); got.code != 200 {
		t.Errorf("half of a token's life later: got %d, want 200", got.code)
	}
}

// TestTokenEndsWithTheSession pins that no token outlives its session, and that one at its end costs no more signatures.
func TestTokenEndsWithTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, n := newTokenFixture(t)
		end := epoch.Add(400*time.Second + 500*time.Millisecond)
		f.signIn("short", func(s *session.Session) { s.AbsoluteExpiry, s.Identity.Expiry = end, end })
		for at := time.Duration(0); at < 400*time.Second+500*time.Millisecond; at += 250 * time.Millisecond {
			f.now = epoch.Add(at)
			if got := f.do(get("/x", script, "cookie", f.cookie(appHost, "short"))); got.code != 200 || got.upstream["authorization"] == "" {
				t.Fatalf("after %v: got %d", at, got.code)
			}
			synctest.Wait() // for what is renewed
		}
		for _, c := range n.made {
			if c.Expiry.After(end) || c.Expiry.Nanosecond() != 0 {
				t.Errorf("made at %v: good until %v, the session until %v", c.IssuedAt.Sub(epoch), c.Expiry.Sub(epoch), end.Sub(epoch))
			}
		}
		if got := n.count(); got != 2 {
			t.Errorf("got %d tokens, want 2", got)
		}
	})
}

// TestRenewTokens pins that no token is given away that was signed before keys were withdrawn, whichever cache it is in, nor one whose signature was under way.
func TestRenewTokens(t *testing.T) {
	for _, audience := range []string{"apps", "https://{host}/"} {
		synctest.Test(t, func(t *testing.T) {
			f, n := newTokenFixture(t, func(a *AppToken) { a.Audience = audience })
			ask := func() string {
				return f.do(get("/x", "", "cookie", f.cookie(appHost, "alice"))).upstream["authorization"]
			}
			want := func(when string, made int) {
				t.Helper()
				for range 2 {
					if got := ask(); !strings.HasPrefix(got, fmt.Sprintf("Bearer token-%d.", made)) || n.count() != made {
						t.Errorf("%s, %s: got %q and %d made, want token %d", audience, when, got, n.count(), made)
					}
				}
			}
			want("at first", 1)
			f.RenewTokens()
			want("after keys were withdrawn", 2)

			f.now = epoch.Add(3 * time.Minute) // it is renewed behind the check
			n.waits = make(chan struct{})
			ask()
			synctest.Wait()
			f.RenewTokens()
			close(n.waits)
			synctest.Wait()
			n.waits = nil
			want("signed before, and kept after that", 4) // the third is the one whose signature was under way
		})
	}
}
