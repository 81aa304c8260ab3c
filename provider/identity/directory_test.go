package identity

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/connectors"
	"gatehouse/connectors/ldap"

	"github.com/dexidp/dex/connector"
)

// A staff is a directory of one person, ann, who has two spellings; everybody else is nobody.
type staff struct {
	most  int               // MaxFailures
	state connectors.Reason // told after the right password
	any   connectors.Reason // told whatever the password is
	hangs bool              // until the context ends

	mu      sync.Mutex
	calls   []string
	guesses int // at the account
}

type staffAccount struct{ name, key string }

func (a *staffAccount) Key() string { return a.key }

func (s *staff) called(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, what)
}

// taken returns the calls since the last time.
func (s *staff) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

func (s *staff) MaxFailures() int { return s.most }

func (s *staff) Find(ctx context.Context, name string) (Account, error) {
	s.called("find")
	if s.hangs {
		<-ctx.Done()
		return nil, &connectors.Refusal{Reason: connectors.Unavailable, Err: ctx.Err()}
	}
	if short := name[strings.LastIndex(name, `\`)+1:]; strings.EqualFold(short, "ann") {
		return &staffAccount{name, "1"}, nil
	}
	return &staffAccount{name, "nobody " + name}, nil
}

func (s *staff) Authenticate(_ context.Context, a Account, password string) (connectors.Identity, error) {
	s.called("bind")
	who, _ := a.(*staffAccount)
	if who.key == "1" {
		s.mu.Lock()
		s.guesses++
		s.mu.Unlock()
	}
	switch {
	case s.any != "":
		return connectors.Identity{}, &connectors.Refusal{Reason: s.any}
	case who.key != "1" || password != "right":
		return connectors.Identity{}, &connectors.Refusal{Reason: connectors.WrongCredentials}
	case s.state != "":
		return connectors.Identity{}, &connectors.Refusal{Reason: s.state, Changeable: true}
	}
	return connectors.Identity{UserID: "1", Name: "Ann", PreferredUsername: "ann", Email: "ann@example.com", EmailVerified: true, Groups: []string{"g"}}, nil
}

func (s *staff) UserID(a Account) string { return a.Key() }

func (s *staff) ChangePassword(_ context.Context, a Account, old, changed string) error {
	s.called("change")
	who, _ := a.(*staffAccount)
	switch {
	case who.key != "1" || old != "right":
		return &connectors.Refusal{Reason: connectors.WrongCredentials}
	case changed == "weak":
		return &connectors.Refusal{Reason: connectors.PasswordRejected, Detail: "too weak", Changeable: true}
	}
	return nil
}

func tryAs(t *testing.T, d *Door, user, password string) connectors.Reason {
	t.Helper()
	_, err := d.CheckPassword(t.Context(), Login{User: user, Password: password})
	return reason(err)
}

func TestIdentityOfADirectory(t *testing.T) {
	door, _ := newTestDoor(t, &staff{}, DefaultLimits())
	if door.Kind != Password || !door.Changes() {
		t.Errorf("kind %d, changes passwords: %v", door.Kind, door.Changes())
	}
	got, err := door.CheckPassword(t.Context(), Login{User: " ann ", Password: "right"})
	if err != nil {
		t.Fatal(err)
	}
	if got.UserID != "1" || got.Username != "Ann" || got.PreferredUsername != "ann" || got.Email != "ann@example.com" || !got.EmailVerified || !slices.Equal(got.Groups, []string{"g"}) {
		t.Errorf("got %+v", got)
	}
}

// Whoever guesses learns nothing from what is counted: two spellings of one account look like two names of nobody.
func TestSpellingsOfAnAccountCountTogether(t *testing.T) {
	limits := DefaultLimits()
	sequence := func(first, second string) (seen []connectors.Reason) {
		door, _ := newTestDoor(t, &staff{}, limits)
		shown := func(name string) {
			r := tryAs(t, door, name, "guess")
			if r.Untold() {
				r = connectors.WrongCredentials
			}
			seen = append(seen, r)
		}
		for range limits.PerUser + 1 {
			shown(first)
		}
		for range limits.PerUser + 1 {
			shown(second)
		}
		return seen
	}
	known, unknown := sequence("ann", `CORP\ann`), sequence("bob", `CORP\bob`)
	if !slices.Equal(known, unknown) {
		t.Errorf("an account: %q\nnobody:     %q", known, unknown)
	}

	dir := &staff{}
	door, _ := newTestDoor(t, dir, limits)
	for range limits.PerUser {
		tryAs(t, door, "ann", "guess")
	}
	dir.taken()
	if got := tryAs(t, door, `CORP\ann`, "right"); got != connectors.ThrottledAccount {
		t.Errorf("by the other spelling: %q, want %q", got, connectors.ThrottledAccount)
	}
	// What takes as long as a wrong password is done to nobody's Account.
	if got := dir.taken(); !slices.Equal(got, []string{"find", "find", "bind"}) {
		t.Errorf("asked the directory %q", got)
	}
	if got := tryAs(t, door, `CORP\ann`, "right"); got != connectors.ThrottledAccount || !slices.Equal(dir.taken(), []string{"find", "bind"}) {
		t.Errorf("once more: %q", got)
	}
}

// slow is a staff that takes longer for its own people.
type slow struct{ staff }

func (s *slow) Authenticate(ctx context.Context, a Account, password string) (connectors.Identity, error) {
	time.Sleep(3 * time.Millisecond) // within a synctest bubble
	if a.Key() == "1" {
		time.Sleep(17 * time.Millisecond)
	}
	return s.staff.Authenticate(ctx, a, password)
}

func TestFailuresTakeEquallyLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		door, _ := newTestDoor(t, &slow{}, DefaultLimits())
		took := func(user string) time.Duration {
			begin := time.Now()
			tryAs(t, door, user, "guess")
			return time.Since(begin)
		}
		took("ann") // since the start nobody was slower
		for i, user := range []string{"bob", "ann", "carl", `CORP\ann`, "ann", "dora"} {
			if got, want := took(user), 21*time.Millisecond; got != want {
				t.Errorf("%d: a wrong password of %s took %v, want %v", i, user, got, want)
			}
		}
		begin := time.Now()
		if got := tryAs(t, door, "ann", "right"); got != "" || time.Since(begin) != 20*time.Millisecond {
			t.Errorf("a right password: %q after %v, want no waiting", got, time.Since(begin))
		}
	})
}

func TestThrottledNameCostsTheDirectoryNothing(t *testing.T) {
	dir := &staff{}
	door, _ := newTestDoor(t, dir, DefaultLimits())
	for range DefaultLimits().PerUser {
		tryAs(t, door, "ann", "guess")
	}
	dir.taken()
	if got := tryAs(t, door, "ANN", "right"); got != connectors.Throttled || len(dir.taken()) != 0 {
		t.Errorf("got %q, or the directory was asked", got)
	}
}

func TestLimitStaysBelowTheLockOut(t *testing.T) {
	for name, tt := range map[string]struct{ most, want int }{
		"not known":          {0, 5},
		"strict directory":   {2, 2},
		"as strict as we":    {5, 5},
		"generous directory": {50, 5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := &staff{most: tt.most}
				door, _ := newTestDoor(t, dir, DefaultLimits())
				var all sync.WaitGroup
				for range 4 { // at once, by both spellings
					for _, user := range []string{"ann", `CORP\ann`, `corp\ANN`, "Ann"} {
						all.Go(func() { tryAs(t, door, user, "guess") })
					}
				}
				all.Wait()
				dir.mu.Lock()
				defer dir.mu.Unlock()
				if dir.guesses != tt.want {
					t.Errorf("%d guesses reached the account, want %d", dir.guesses, tt.want)
				}
			})
		})
	}
}

func TestWhatCountsAsAFailure(t *testing.T) {
	for _, tt := range []struct {
		name   string
		dir    *staff
		counts bool
	}{
		{"a right password", &staff{}, false},
		{"a disabled account", &staff{state: connectors.AccountDisabled}, false},
		{"an expired password", &staff{state: connectors.PasswordExpired}, false},
		{"a directory that does not answer", &staff{any: connectors.Unavailable}, false},
		{"an account that is locked", &staff{any: connectors.AccountLocked}, true},
		{"an account that is gone", &staff{any: connectors.Gone}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			door, _ := newTestDoor(t, tt.dir, DefaultLimits())
			first := tryAs(t, door, "ann", "right")
			for range DefaultLimits().PerUser {
				tryAs(t, door, "ann", "right")
			}
			if last := tryAs(t, door, "ann", "right"); (last == connectors.Throttled) != tt.counts || last != first && !tt.counts {
				t.Errorf("first %q, last %q; counts as a failure: want %v", first, last, tt.counts)
			}
		})
	}
}

func TestDirectoryThatHangsHurtsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		door, _ := newTestDoor(t, &staff{hangs: true}, DefaultLimits())
		other := &Door{ID: "other", Kind: Password, doors: door.doors, inner: &staff{}}
		var mu sync.Mutex
		seen := map[connectors.Reason]int{}
		var all sync.WaitGroup
		for i := range directorySlots + 100 {
			all.Go(func() {
				_, err := door.CheckPassword(t.Context(), Login{User: "user" + strconv.Itoa(i), Password: "x"})
				var no *connectors.Refusal
				if !errors.As(err, &no) || no.Reason == connectors.Busy && no.RetryAfter <= 0 {
					t.Errorf("got %v", err)
				}
				mu.Lock()
				seen[reason(err)]++
				mu.Unlock()
			})
		}
		synctest.Wait()
		if got := tryAs(t, other, "ann", "right"); got != "" {
			t.Errorf("at another directory: %q", got)
		}
		begin := time.Now()
		all.Wait()
		if took := time.Since(begin); took > directoryTimeout {
			t.Errorf("the last waited %v", took)
		}
		if seen[connectors.Unavailable] != directorySlots || seen[connectors.Busy] != 100 {
			t.Errorf("got %v, want %d that were tried", seen, directorySlots)
		}
		if waiting, refused := door.doors.DirectoryQueue()(); waiting != 0 || refused != 100 {
			t.Errorf("the queue tells %d, %d", waiting, refused)
		}
	})
}

func TestQueueOfADirectoryIsShort(t *testing.T) {
	w := newQueues().of("dir")
	w.expect(time.Microsecond)
	if got := w.limit(); got != directoryQueue {
		t.Errorf("%d may wait, want %d", got, directoryQueue)
	}
}

func TestPasswordChange(t *testing.T) {
	for _, tt := range []struct {
		name         string
		user, old    string
		changed      string
		want         connectors.Reason
		asked        []string
		countsAsMiss bool
	}{
		{"a good one", "ann", "right", "better", "", []string{"find", "change"}, false},
		{"the directory does not take it", "ann", "right", "weak", connectors.PasswordRejected, []string{"find", "change"}, false},
		{"a wrong old one", "ann", "guess", "better", connectors.WrongCredentials, []string{"find", "change"}, true},
		{"nobody's name", "bob", "guess", "better", connectors.WrongCredentials, []string{"find", "change"}, true},
		{"an empty old one", "ann", "", "better", connectors.WrongCredentials, nil, false},
		{"an empty new one", "ann", "right", "", connectors.PasswordRejected, nil, false},
		{"NUL in the new one", "ann", "right", "a\x00", connectors.PasswordRejected, nil, false},
		{"a new one that could not be typed later", "ann", "right", string(make([]byte, maxPassword+1)), connectors.PasswordRejected, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := &staff{}
			door, _ := newTestDoor(t, dir, DefaultLimits())
			change := func() connectors.Reason {
				_, err := door.ChangePassword(t.Context(), Login{User: tt.user, Password: tt.old}, tt.changed)
				return reason(err)
			}
			if got, calls := change(), dir.taken(); got != tt.want || !slices.Equal(calls, tt.asked) {
				t.Errorf("got %q and asked %q, want %q and %q", got, calls, tt.want, tt.asked)
			}
			for range DefaultLimits().PerUser {
				change()
			}
			if got := tryAs(t, door, tt.user, "right"); (got == connectors.Throttled) != tt.countsAsMiss {
				t.Errorf("then the sign-in: %q", got)
			}
		})
	}
	t.Run("where there is none", func(t *testing.T) {
		door, _ := newTestDoor(t, &directory{}, DefaultLimits())
		if _, err := door.ChangePassword(t.Context(), Login{User: "ann", Password: "right"}, "better"); door.Changes() || reason(err) != connectors.Unavailable {
			t.Errorf("got %v", err)
		}
	})
}

// The password grant tells no more than the page does.
func TestPasswordGrantAtADirectory(t *testing.T) {
	for _, r := range []connectors.Reason{connectors.WrongCredentials, connectors.AccountLocked, connectors.Gone} {
		door, _ := newTestDoor(t, &staff{any: r}, DefaultLimits())
		pc, ok := door.wrapped().(connector.PasswordConnector)
		if !ok {
			t.Fatal("the password grant finds no PasswordConnector")
		}
		if _, valid, err := pc.Login(t.Context(), connector.Scopes{}, "ann", "right"); valid || err != nil {
			t.Errorf("%s: valid %v, error %v; want what a wrong password gives", r, valid, err)
		}
	}
}

// answers are what Lookup gives.
type answers []connectors.Answer

func (a answers) Lookup(context.Context, []string) ([]connectors.Answer, error) {
	if a == nil {
		return nil, errors.New("no server answers")
	}
	return a, nil
}

func TestRefreshAtADirectory(t *testing.T) {
	ann := connectors.Identity{UserID: "1", Name: "Ann", Groups: []string{"new"}}
	for _, tt := range []struct {
		name string
		all  answers
		want connectors.Reason
	}{
		{"known", answers{{Identity: ann}}, ""},
		{"disabled", answers{{Identity: ann, Err: &connectors.Refusal{Reason: connectors.AccountDisabled}}}, connectors.AccountDisabled},
		{"gone", answers{{Err: &connectors.Refusal{Reason: connectors.Gone}}}, connectors.Gone},
		{"another user", answers{{Identity: connectors.Identity{UserID: "2"}}}, connectors.Unavailable},
		{"nobody", answers{{}}, connectors.Unavailable},
		{"no answer", answers{}, connectors.Unavailable},
		{"two answers", answers{{Identity: ann}, {Identity: ann}}, connectors.Unavailable},
		{"down", nil, connectors.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, err := refresh(t.Context(), tt.all, connector.Identity{UserID: "1", Groups: []string{"old"}})
			if (err == nil) != (tt.want == "") || reason(err) != tt.want {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if err == nil && (id.Username != "Ann" || !slices.Equal(id.Groups, []string{"new"})) {
				t.Errorf("got %+v", id)
			}
		})
	}
}

// Our own connector is all that doors, Dex and revalidation look for.
func TestLDAPIsWhatDoorsLookFor(t *testing.T) {
	var c connector.Connector = ldapDirectory{&ldap.Connector{}}
	if _, ok := c.(finder); !ok {
		t.Error("is no finder")
	}
	if _, ok := c.(changer); !ok {
		t.Error("is no changer")
	}
	if _, ok := c.(lookuper); !ok {
		t.Error("is no lookuper")
	}
	if _, ok := c.(connector.RefreshConnector); !ok {
		t.Error("has no Refresh: Dex would issue no refresh tokens")
	}
	if _, ok := c.(connector.PasswordConnector); ok {
		t.Error("has a Login that nothing counts")
	}
}

func TestQuotaStaysBelowTheLockOut(t *testing.T) {
	ours := quota{5, 15 * time.Minute}
	for _, tt := range []struct {
		name    string
		most    int
		counted time.Duration
		want    quota
	}{
		{"nothing is known", 0, 0, ours},
		{"a directory without a lock-out", 0, 30 * time.Minute, ours},
		{"strict, and counts as long as we", 2, 15 * time.Minute, quota{2, 15 * time.Minute}},
		{"strict, and counts longer", 2, 30 * time.Minute, quota{2, 30 * time.Minute}},
		{"strict, and counts for a short time", 2, time.Minute, quota{2, 15 * time.Minute}},
		{"generous, and counts longer", 50, 30 * time.Minute, quota{5, 30 * time.Minute}},
		{"counts until a right password", 4, 1<<63 - 1, quota{4, time.Hour}},
		{"its time is not known", 4, 0, quota{4, 15 * time.Minute}},
	} {
		if got := ours.below(tt.most, tt.counted); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// counting is a staff that says how long it counts.
type counting struct{ staff }

func (*counting) FailureWindow() time.Duration { return 30 * time.Minute }

func TestFailuresCountAsLongAsAtTheDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := &counting{staff{most: 2}}
		door, _ := newTestDoor(t, dir, DefaultLimits())
		tryAs(t, door, "ann", "guess")
		tryAs(t, door, "ann", "guess")
		time.Sleep(29 * time.Minute)
		for _, user := range []string{"ann", `CORP\ann`} {
			if got := tryAs(t, door, user, "right"); got != connectors.Throttled && got != connectors.ThrottledAccount {
				t.Errorf("%s after 29 minutes: %q", user, got)
			}
		}
		time.Sleep(2 * time.Minute)
		if got := tryAs(t, door, "ann", "right"); got != "" {
			t.Errorf("after 31 minutes: %q", got)
		}
	})
}
