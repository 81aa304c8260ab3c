package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/connectors"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/storage"
)

// A rotating provider gives another refresh token each time, and revokes all of a sign-in's when one comes twice (RFC 9700 section 4.14.2).
type rotating struct {
	mu     sync.Mutex
	n      int
	good   map[string]string // user by the token that is good now
	family map[string]string // sign-in by token
	groups []string
	down   error
	hold   chan struct{} // answers wait until it is closed; nil: none does
	asked  int
	reused int
}

func newRotating() *rotating {
	return &rotating{good: map[string]string{}, family: map[string]string{}, groups: []string{"staff"}}
}

// signIn returns what the connector gives at a sign-in.
func (r *rotating) signIn(user string) connector.Identity {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	token := fmt.Sprintf("%s-%d-0", user, r.n)
	r.good[token], r.family[token] = user, fmt.Sprint(r.n)
	return connector.Identity{UserID: user, Email: user + "@company.test", Groups: slices.Clone(r.groups), ConnectorData: []byte(token)}
}

// revoke makes the tokens of a sign-in worthless.
func (r *rotating) revoke(family string) {
	for token, f := range r.family {
		if f == family {
			delete(r.good, token)
		}
	}
}

// Refresh implements connector.RefreshConnector.
func (r *rotating) Refresh(ctx context.Context, _ connector.Scopes, id connector.Identity) (connector.Identity, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if hold := r.hold; hold != nil {
		r.mu.Unlock()
		select {
		case <-hold:
		case <-ctx.Done():
		}
		r.mu.Lock()
		if ctx.Err() != nil {
			return id, ctx.Err()
		}
	}
	if r.down != nil {
		return id, r.down
	}
	token := string(id.ConnectorData)
	user, ok := r.good[token]
	if !ok {
		if f := r.family[token]; f != "" {
			r.reused++
			r.revoke(f)
		}
		return id, errors.New(`oidc: failed to get refresh token: oauth2: "invalid_grant" "grant request is invalid"`)
	}
	r.n++
	next := fmt.Sprintf("%s-%d", user, r.n)
	delete(r.good, token)
	r.good[next], r.family[next] = user, r.family[token]
	return connector.Identity{UserID: user, Email: user + "@company.test", Groups: slices.Clone(r.groups), ConnectorData: []byte(next)}, nil
}

func (r *rotating) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// A sick store fails when it should.
type sickStore struct {
	*store.Store

	mu    sync.Mutex
	sick  error
	takes time.Duration // an update
}

func (s *sickStore) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sick = err
}

func (s *sickStore) UpdateGrants(ctx context.Context, user, conn string, f func(store.Grants) (store.Grants, error)) error {
	s.mu.Lock()
	err, takes := s.sick, s.takes
	s.mu.Unlock()
	if err != nil {
		return err
	}
	pass(takes)
	return s.Store.UpdateGrants(ctx, user, conn, f)
}

// A replica is one process: all of them share a store.
type replica struct {
	*upstreamAsker
	log *bytes.Buffer
}

const testEvery = 10 * time.Minute

func newReplica(s GrantStore, r connector.RefreshConnector) replica {
	log := &bytes.Buffer{}
	up := NewUpstream(UpstreamOptions{
		Store: s, Now: time.Now, Log: slog.New(slog.NewTextHandler(log, nil)),
		Every: func(string) time.Duration { return testEvery }, Life: func() time.Duration { return 24 * time.Hour },
	})
	return replica{&upstreamAsker{up: up, door: "company", kind: "oidc", config: "v1", refresher: r}, log}
}

// signsIn is a sign-in at a replica.
func (r replica) signsIn(t *testing.T, p *rotating, user string) {
	t.Helper()
	id := p.signIn(user)
	data := id.ConnectorData
	id.ConnectorData = nil
	if err := r.keep(t.Context(), id, data); err != nil {
		t.Fatal(err)
	}
}

// says is what a replica finds out about a user: the groups, or why not.
func (r replica) says(ctx context.Context, user string) string {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	answers, err := r.Lookup(ctx, []string{user})
	switch {
	case err != nil:
		return "error: " + err.Error()
	case answers[0].Err != nil:
		return string(answers[0].Err.Reason)
	case answers[0].Identity.UserID != user:
		return "another user"
	}
	return strings.Join(answers[0].Identity.Groups, " ")
}

// atUpstream runs f in a bubble with two replicas.
func atUpstream(t *testing.T, f func(t *testing.T, p *rotating, s *sickStore, a, b replica)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &sickStore{Store: store.Memory(store.Options{})}
		p := newRotating()
		f(t, p, s, newReplica(s, p), newReplica(s, p))
	})
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestUpstreamIsAskedOncePerPeriod(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, _ *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		expect(t, "right after the sign-in", b.says(t.Context(), "ada"), "staff")
		for period := range 20 {
			pass(testEvery)
			group := fmt.Sprint("team-", period)
			p.set(func() { p.groups = []string{group} })
			var all sync.WaitGroup
			for i := range 20 {
				r := []replica{a, b}[i%2]
				all.Go(func() { expect(t, "both at once", r.says(t.Context(), "ada"), group) })
			}
			all.Wait()
			pass(testEvery / 2)
			expect(t, "later", b.says(t.Context(), "ada"), group)
			if p.asked != period+1 || p.reused != 0 {
				t.Fatalf("after %d periods: asked %d times, %d tokens used twice", period+1, p.asked, p.reused)
			}
		}
	})
}

// Many who ask about one user at one replica get the answer one after the other, and do not come to look for it at the same time again and again.
func TestUpstreamAnswerIsForAllWhoWait(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, s *sickStore, a, _ replica) {
		a.signsIn(t, p, "ada")
		pass(testEvery)
		s.takes = 20 * time.Millisecond
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { expect(t, "at once", a.says(t.Context(), "ada"), "staff") })
		}
		all.Wait()
		if p.asked != 1 {
			t.Errorf("asked %d times, want once", p.asked)
		}
	})
}

// Whoever dies with a claim does not keep the others from asking for long.
func TestUpstreamClaimOfTheDead(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, s *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		pass(testEvery)
		if _, mine, err := a.claim(t.Context(), userKey{"company", "ada"}); mine == nil || err != nil {
			t.Fatalf("no claim: %v", err)
		}
		began := time.Now()
		expect(t, "the other replica", b.says(t.Context(), "ada"), string(connectors.Unavailable))
		if took := time.Since(began); took >= longestWait {
			t.Errorf("it waited for %s, want less than a request does", took)
		}
		for b.says(t.Context(), "ada") != "staff" && time.Since(began) < time.Minute {
		}
		if took := time.Since(began); took < claimFor || took > claimFor+time.Second {
			t.Errorf("it went on after %s, want %s", took, claimFor)
		}
		if p.asked != 1 {
			t.Errorf("asked %d times, want once", p.asked)
		}
		g, err := s.GrantsOf(t.Context(), "ada", "company")
		if err != nil || g.Claim != "" {
			t.Errorf("a claim is left: %q, %v", g.Claim, err)
		}
	})
}

// An answer that takes its time is waited for, and the token is not used by somebody else.
func TestUpstreamSlowAnswer(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, _ *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		pass(testEvery)
		hold := make(chan struct{})
		p.set(func() { p.hold = hold })
		var all sync.WaitGroup
		all.Go(func() { expect(t, "who asks", a.says(t.Context(), "ada"), "staff") })
		synctest.Wait()
		for began := time.Now(); time.Since(began) < askTimeout-time.Second; {
			expect(t, "who does not", b.says(t.Context(), "ada"), string(connectors.Unavailable))
		}
		all.Go(func() { expect(t, "and in the end", b.says(t.Context(), "ada"), "staff") })
		close(hold)
		all.Wait()
		if p.asked != 1 || p.reused != 0 {
			t.Errorf("asked %d times, %d tokens used twice", p.asked, p.reused)
		}

		p.set(func() { p.hold = make(chan struct{}) }) // and one that never comes
		pass(testEvery)
		expect(t, "no answer", a.says(t.Context(), "ada"), string(connectors.Unavailable))
		p.set(func() { p.hold = nil })
		expect(t, "the next one", b.says(t.Context(), "ada"), "staff")
	})
}

// Who asks for somebody who has gone away still stores the token that comes back.
func TestUpstreamAnswerIsStoredWhenNobodyWaits(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, _ *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		pass(testEvery)
		hold := make(chan struct{})
		p.set(func() { p.hold = hold })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		answers, err := a.Lookup(ctx, []string{"ada"})
		if err != nil || answers[0].Err == nil || answers[0].Err.Reason != connectors.Unavailable {
			t.Errorf("got %v, %v: want that it is not known", answers, err)
		}
		waited := make(chan struct{})
		go func() { a.up.Wait(t.Context()); close(waited) }()
		synctest.Wait()
		select {
		case <-waited:
			t.Error("the process would end with an answer on its way")
		default:
		}
		close(hold)
		<-waited
		expect(t, "the other replica", b.says(t.Context(), "ada"), "staff")
		if p.asked != 1 || p.reused != 0 {
			t.Errorf("asked %d times, %d tokens used twice", p.asked, p.reused)
		}
	})
}

// A store that fails between the answer and its record loses no token.
func TestUpstreamStoreDown(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, s *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		pass(testEvery)
		hold := make(chan struct{})
		p.set(func() { p.hold = hold })
		done := make(chan string)
		go func() { done <- a.says(t.Context(), "ada") }()
		synctest.Wait()
		s.set(errors.New("disk full"))
		close(hold)
		expect(t, "the answer", <-done, "staff")
		pass(time.Minute)
		if got := a.says(t.Context(), "ada"); got != string(connectors.Unavailable) {
			t.Errorf("while it is not stored: got %q, want that nobody asks again", got)
		}
		s.set(nil)
		pass(2 * time.Second)
		expect(t, "the other replica", b.says(t.Context(), "ada"), "staff")
		pass(testEvery)
		expect(t, "and later", b.says(t.Context(), "ada"), "staff")
		if p.asked != 2 || p.reused != 0 {
			t.Errorf("asked %d times, %d tokens used twice", p.asked, p.reused)
		}
	})
}

func TestUpstreamRefusal(t *testing.T) {
	const refused = string(connectors.UpstreamRefused)
	atUpstream(t, func(t *testing.T, p *rotating, s *sickStore, a, b replica) {
		a.signsIn(t, p, "ada") // 1
		b.signsIn(t, p, "ada") // 2
		pass(testEvery)
		p.set(func() { p.revoke("2") })
		expect(t, "one of two sign-ins revoked", a.says(t.Context(), "ada"), "staff")
		p.set(func() { p.revoke("1") })
		expect(t, "and the other, within the period", b.says(t.Context(), "ada"), "staff")
		pass(testEvery)
		expect(t, "later", b.says(t.Context(), "ada"), refused)
		expect(t, "who has not asked", a.says(t.Context(), "ada"), refused)
		a.signsIn(t, p, "ada")
		expect(t, "signed in again", b.says(t.Context(), "ada"), "staff")

		// A refusal that was on its way when the user signed in is about the former sign-in.
		pass(testEvery)
		hold := make(chan struct{})
		p.set(func() { p.revoke("4"); p.hold = hold; clear(p.good) })
		done := make(chan string)
		go func() { done <- a.says(t.Context(), "ada") }()
		synctest.Wait()
		pass(time.Second)
		b.signsIn(t, p, "ada")
		close(hold)
		expect(t, "overtaken", <-done, string(connectors.Unavailable))
		expect(t, "by a sign-in", a.says(t.Context(), "ada"), "staff")
		if g, err := s.GrantsOf(t.Context(), "ada", "company"); err != nil || len(g.List) != 1 {
			t.Errorf("got %d grants, want that of the last sign-in: %v", len(g.List), err)
		}
	})
}

// What was asked before a sign-in is older than that, whenever the answer comes.
func TestUpstreamAnswerIsOvertakenByASignIn(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, s *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		pass(testEvery)
		hold := make(chan struct{})
		p.set(func() { p.hold = hold })
		done := make(chan string)
		go func() { done <- a.says(t.Context(), "ada") }()
		synctest.Wait()
		pass(time.Second)
		p.set(func() { p.groups = []string{"new"} })
		b.signsIn(t, p, "ada")
		p.set(func() { p.groups = []string{"old"} })
		close(hold)
		expect(t, "the answer", <-done, "old") // Live leaves it to LastLogin
		expect(t, "what is known", b.says(t.Context(), "ada"), "new")
		if g, err := s.GrantsOf(t.Context(), "ada", "company"); err != nil || len(g.List) != 2 || len(p.good) != 2 {
			t.Errorf("got %d grants, want both: %v", len(g.List), err)
		}
	})
}

// An upstream that is down, or has something against us, signs nobody out, whatever it says.
func TestUpstreamFailureIsNoRefusal(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, _ *sickStore, a, b replica) {
		for _, u := range []string{"ada", "bob"} {
			a.signsIn(t, p, u)
		}
		pass(testEvery)
		p.set(func() {
			p.down = errors.New(`oidc: failed to get refresh token: oauth2: "invalid_client" "oauth2: \"invalid_grant\""`)
		})
		for range 2 * wideFailures {
			expect(t, "it may be an odd user", a.says(t.Context(), "ada"), string(connectors.Unavailable))
		}
		for range 3 {
			if got := a.says(t.Context(), "bob"); !strings.HasPrefix(got, "error: ") {
				t.Errorf("the connector is down, and the answer is %q", got)
			}
		}
		p.set(func() { p.down = nil })
		expect(t, "back", b.says(t.Context(), "ada"), "staff")
		expect(t, "back", a.says(t.Context(), "bob"), "staff")
	})
}

func TestUpstreamOtherUser(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, s *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		pass(testEvery)
		p.set(func() {
			for token := range p.good {
				p.good[token] = "eve"
			}
		})
		expect(t, "a token that has become somebody else's", a.says(t.Context(), "ada"), string(connectors.UpstreamRefused))
		expect(t, "on the other replica", b.says(t.Context(), "ada"), string(connectors.UpstreamRefused))
		if g, err := s.GrantsOf(t.Context(), "ada", "company"); err != nil || len(g.List) != 0 || g.Said.UserID != "ada" {
			t.Errorf("got %+v, %v: want nothing of the other user", g, err)
		}
	})
}

func TestUpstreamThatGivesNoToken(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, s *sickStore, a, b replica) {
		for range 2 {
			if err := a.keep(t.Context(), connector.Identity{UserID: "ada", Email: "ada@company.test"}, []byte(`{"RefreshToken":""}`)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.GrantsOf(t.Context(), "ada", "company"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("something is stored: %v", err)
		}
		if n := strings.Count(a.log.String(), "offline_access"); n != 1 {
			t.Errorf("told %d times, want once: %s", n, a.log)
		}
		expect(t, "nobody can be asked", b.says(t.Context(), "ada"), string(connectors.Unaskable))

		// A later sign-in without one does not take away what an earlier one has brought, and is the newest answer.
		a.signsIn(t, p, "bob")
		pass(testEvery)
		if err := a.keep(t.Context(), connector.Identity{UserID: "bob", Groups: []string{"new"}}, nil); err != nil {
			t.Fatal(err)
		}
		expect(t, "what the sign-in said", b.says(t.Context(), "bob"), "new")
		pass(testEvery)
		expect(t, "asked with the earlier token", b.says(t.Context(), "bob"), "staff")

		down := b
		down.upstreamAsker = &upstreamAsker{up: b.up, door: "company", kind: "oidc", config: "v1"} // as while the upstream does not answer
		pass(testEvery)
		expect(t, "not open", down.says(t.Context(), "ada"), string(connectors.Unaskable))
		expect(t, "not open", down.says(t.Context(), "bob"), "error: "+errNotOpen.Error())
		if err := a.up.Forget(t.Context(), "company", "bob"); err != nil {
			t.Fatal(err)
		}
		expect(t, "forgotten", b.says(t.Context(), "bob"), string(connectors.Unaskable))
	})
}

// Another configuration may make something else of the same user: it is asked for.
func TestUpstreamReconfigured(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, _ *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		p.set(func() { p.groups = []string{"mapped"} })
		b.config = "v2"
		expect(t, "as before", a.says(t.Context(), "ada"), "staff")
		expect(t, "reconfigured", b.says(t.Context(), "ada"), "mapped")
	})
}

type brokenConnector struct{}

func (brokenConnector) Refresh(context.Context, connector.Scopes, connector.Identity) (connector.Identity, error) {
	panic("a nil map of a stock connector")
}

func TestUpstreamPanics(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, _ *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		pass(testEvery)
		a.refresher = brokenConnector{}
		expect(t, "panic", a.says(t.Context(), "ada"), string(connectors.Unavailable))
		if strings.Contains(a.log.String(), "a nil map") {
			t.Errorf("the log has what the connector panicked with: %s", a.log)
		}
		expect(t, "nobody is kept from asking", b.says(t.Context(), "ada"), "staff")
	})
}

func TestUpstreamGrantsAreFew(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, s *sickStore, a, _ replica) {
		for range 3 * maxGrants {
			a.signsIn(t, p, "ada")
		}
		g, err := s.GrantsOf(t.Context(), "ada", "company")
		if err != nil || len(g.List) != maxGrants || string(g.List[0].Data) != fmt.Sprintf("ada-%d-0", 3*maxGrants) {
			t.Errorf("got %d grants, want the newest %d: %v", len(g.List), maxGrants, err)
		}
	})
}

// Whoever was stopped between the claim and the question, while another one asked, does not use the token that is spent by now.
func TestUpstreamStoppedBeforeAsking(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, _ *sickStore, a, b replica) {
		a.signsIn(t, p, "ada")
		pass(testEvery)
		k := userKey{"company", "ada"}
		_, mine, err := a.claim(t.Context(), k)
		if mine == nil || err != nil {
			t.Fatalf("no claim: %v", err)
		}
		for began := time.Now(); b.says(t.Context(), "ada") != "staff" && time.Since(began) < time.Minute; {
		}
		pass(time.Hour)
		if got, err := a.ask(t.Context(), k, *mine); err != nil || got.Err == nil || got.Err.Reason != connectors.Unavailable {
			t.Errorf("got %v, %v: want that it is not known", got, err)
		}
		expect(t, "later", b.says(t.Context(), "ada"), "staff")
		expect(t, "and here", a.says(t.Context(), "ada"), "staff")
		if p.reused != 0 {
			t.Errorf("%d tokens used twice", p.reused)
		}
	})
}

// That a token is spent says nothing of the one that another replica was given for it meanwhile.
func TestUpstreamSpentTokenWasReplaced(t *testing.T) {
	used := []store.Grant{{ID: "1", Data: []byte("former")}, {ID: "2", Data: []byte("same")}}
	now := []store.Grant{{ID: "1", Data: []byte("next")}, {ID: "2", Data: []byte("same")}}
	kept := verdict{spent: map[string]bool{"1": true, "2": true}}.apply(now, used)
	if len(kept) != 1 || string(kept[0].Data) != "next" {
		t.Errorf("got %v, want the one that was replaced", kept)
	}
	if kept := (verdict{final: true}).apply(now, used); len(kept) != 0 {
		t.Errorf("the user is gone: got %v, want none", kept)
	}
}

// A sign-in at a replica whose clock is ahead is no later answer than a refusal that comes after it.
func TestUpstreamRefusalAfterTheFuture(t *testing.T) {
	atUpstream(t, func(t *testing.T, p *rotating, _ *sickStore, a, b replica) {
		a.up.Now = func() time.Time { return time.Now().Add(10 * time.Minute) }
		a.signsIn(t, p, "ada")
		pass(time.Second)
		p.set(func() { p.revoke("1") })
		expect(t, "asked", b.says(t.Context(), "ada"), string(connectors.UpstreamRefused))
		expect(t, "again", b.says(t.Context(), "ada"), string(connectors.UpstreamRefused))
		expect(t, "where the clock is ahead", a.says(t.Context(), "ada"), string(connectors.UpstreamRefused))
	})
}
