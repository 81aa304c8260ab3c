package identity

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"gatehouse/connectors"
	"gatehouse/internal/passwords"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/storage"
)

// directory is a password connector with one user.
type directory struct {
	asked atomic.Int64
	wait  time.Duration
	down  bool
	seen  atomic.Value // connector.Scopes
}

func (d *directory) Prompt() string { return "User" }

func (d *directory) Login(_ context.Context, s connector.Scopes, user, password string) (connector.Identity, bool, error) {
	d.asked.Add(1)
	d.seen.Store(s)
	time.Sleep(d.wait) // within a synctest bubble
	if d.down {
		return connector.Identity{}, false, errors.New("dial: connection refused")
	}
	return connector.Identity{UserID: "id-" + user, Email: user + "@example.com"}, password == "right", nil
}

func newTestDoor(t *testing.T, inner connector.Connector, limits Limits) (*Door, *store.Store) {
	t.Helper()
	st := store.Memory(store.Options{})
	doors := &Doors{
		opts:  Options{Limits: limits, Store: st, Now: time.Now, Log: slog.New(slog.DiscardHandler)},
		users: newLimiter(limits.Window, limits.Entries, time.Now), networks: newLimiter(limits.Window, limits.Entries, time.Now),
		accounts: newLimiter(limits.Window, limits.Entries, time.Now), workers: newWorkers(1), directories: newQueues(),
	}
	d, err := newDoor(doors, storage.Connector{ID: "dir", Type: "ldap", Name: "Directory"}, inner)
	if err != nil {
		t.Fatal(err)
	}
	return d, st
}

func reason(err error) connectors.Reason {
	var no *connectors.Refusal
	if errors.As(err, &no) {
		return no.Reason
	}
	return ""
}

func TestPasswordIsNotEvenTried(t *testing.T) {
	for name, in := range map[string]Login{
		"empty password (unauthenticated bind)": {User: "alice", Password: ""},
		"empty user":                            {User: "", Password: "right"},
		"NUL in the user":                       {User: "alice\x00", Password: "right"},
		"NUL in the password":                   {User: "alice", Password: "right\x00x"},
		"a user of 300 bytes":                   {User: strings.Repeat("a", 300), Password: "right"},
		"a password of 10 MB":                   {User: "alice", Password: strings.Repeat("a", 10<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := &directory{}
			door, _ := newTestDoor(t, dir, DefaultLimits())
			_, err := door.CheckPassword(t.Context(), in)
			if got := reason(err); got != connectors.WrongCredentials {
				t.Errorf("reason %q, want %q", got, connectors.WrongCredentials)
			}
			if n := dir.asked.Load(); n != 0 {
				t.Errorf("the connector was asked %d times", n)
			}
		})
	}
}

func TestFailuresLockAUserAndNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := &directory{}
		limits := DefaultLimits()
		door, _ := newTestDoor(t, dir, limits)
		try := func(user, password string) connectors.Reason {
			_, err := door.CheckPassword(t.Context(), Login{User: user, Password: password})
			return reason(err)
		}
		for range limits.PerUser {
			if got := try("alice", "wrong"); got != connectors.WrongCredentials {
				t.Fatalf("reason %q", got)
			}
		}
		asked := dir.asked.Load()
		for _, user := range []string{"alice", "ALICE"} {
			if got := try(user, "right"); got != connectors.Throttled {
				t.Errorf("%s with the right password: %q, want %q", user, got, connectors.Throttled)
			}
		}
		if dir.asked.Load() != asked {
			t.Error("a throttled attempt reached the connector")
		}
		if got := try("bob", "right"); got != "" {
			t.Errorf("bob: %q", got)
		}
		time.Sleep(limits.Window)
		if got := try("alice", "right"); got != "" {
			t.Errorf("alice after the window: %q", got)
		}
	})
}

func TestRightPasswordsAreNeverThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		door, _ := newTestDoor(t, &directory{wait: 50 * time.Millisecond}, DefaultLimits())
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := door.CheckPassword(t.Context(), Login{User: "alice", Password: "right", Network: "192.0.2.1"}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

func TestManyGuessesAtOnceDoNotPassTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := &directory{wait: 50 * time.Millisecond}
		limits := DefaultLimits()
		door, _ := newTestDoor(t, dir, limits)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { _, _ = door.CheckPassword(t.Context(), Login{User: "alice", Password: "guess"}) })
		}
		wg.Wait()
		if n := dir.asked.Load(); n != int64(limits.PerUser) {
			t.Errorf("%d guesses reached the connector, want %d", n, limits.PerUser)
		}
	})
}

func TestNetworkLimit(t *testing.T) {
	limits := DefaultLimits()
	limits.PerNetwork = 3
	door, _ := newTestDoor(t, &directory{}, limits)
	for _, user := range []string{"a", "b", "c"} {
		_, err := door.CheckPassword(t.Context(), Login{User: user, Password: "wrong", Network: "192.0.2.1"})
		if got := reason(err); got != connectors.WrongCredentials {
			t.Fatalf("reason %q", got)
		}
	}
	for network, want := range map[string]connectors.Reason{"192.0.2.1": connectors.Throttled, "192.0.2.2": "", "": ""} {
		_, err := door.CheckPassword(t.Context(), Login{User: "d", Password: "right", Network: network})
		if got := reason(err); got != want {
			t.Errorf("network %q: %q, want %q", network, got, want)
		}
	}
}

func TestUnavailableConnectorCountsNoFailure(t *testing.T) {
	dir := &directory{down: true}
	limits := DefaultLimits()
	door, _ := newTestDoor(t, dir, limits)
	for range 2 * limits.PerUser {
		_, err := door.CheckPassword(t.Context(), Login{User: "alice", Password: "right"})
		if got := reason(err); got != connectors.Unavailable {
			t.Fatalf("reason %q, want %q", got, connectors.Unavailable)
		}
	}
	dir.down = false
	if _, err := door.CheckPassword(t.Context(), Login{User: "alice", Password: "right"}); err != nil {
		t.Error(err)
	}
}

func TestLimiterMemoryIsBounded(t *testing.T) {
	l := newLimiter(time.Minute, 100, time.Now)
	for i := range 1000 {
		done, err := l.begin(t.Context(), strings.Repeat("x", i), 5)
		if err != nil {
			t.Fatal(err)
		}
		done(true)
	}
	if n := len(l.byKey); n > 100 || l.order.Len() != n {
		t.Errorf("%d entries, %d in order; want at most 100", n, l.order.Len())
	}
}

func TestGroupsAreAlwaysAskedFor(t *testing.T) {
	dir := &directory{}
	door, _ := newTestDoor(t, dir, DefaultLimits())
	if _, err := door.CheckPassword(t.Context(), Login{User: "alice", Password: "right"}); err != nil {
		t.Fatal(err)
	}
	if s, _ := dir.seen.Load().(connector.Scopes); !s.Groups {
		t.Error("the groups scope was not forced")
	}
}

func TestBlockedUserIsRefusedEverywhere(t *testing.T) {
	door, st := newTestDoor(t, &directory{}, DefaultLimits())
	u := storage.UserIdentity{UserID: "id-alice", ConnectorID: "dir", BlockedUntil: time.Now().Add(time.Hour)}
	if err := st.CreateUserIdentity(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	_, err := door.CheckPassword(t.Context(), Login{User: "alice", Password: "right"})
	if got := reason(err); got != connectors.Blocked {
		t.Errorf("sign-in page: %q, want %q", got, connectors.Blocked)
	}
	pc, ok := door.wrapped().(connector.PasswordConnector)
	if !ok {
		t.Fatal("the password grant finds no PasswordConnector")
	}
	if _, valid, err := pc.Login(t.Context(), connector.Scopes{}, "alice", "right"); err == nil || valid {
		t.Errorf("password grant: valid %v, error %v", valid, err)
	}
	if _, err := Guard(st, time.Now).GetUserIdentity(t.Context(), "id-alice", "dir"); err == nil {
		t.Error("single sign-on reads the identity of a blocked user")
	}
	later := func() time.Time { return time.Now().Add(2 * time.Hour) }
	if _, err := Guard(st, later).GetUserIdentity(t.Context(), "id-alice", "dir"); err != nil {
		t.Errorf("after the block: %v", err)
	}
}

func TestDoorOpensForAProofOnce(t *testing.T) {
	door, _ := newTestDoor(t, &directory{}, DefaultLimits())
	cb, ok := door.wrapped().(connector.CallbackConnector)
	if !ok {
		t.Fatal("not a CallbackConnector")
	}
	request := func(ctx context.Context) *http.Request {
		return httptest.NewRequestWithContext(ctx, http.MethodGet, "/dex/callback?state=known-auth-request", nil)
	}
	if _, err := cb.HandleCallback(connector.Scopes{}, nil, request(t.Context())); err == nil {
		t.Error("a callback without a proof is accepted")
	}
	other, _ := WithProof(t.Context(), "other", Proven{Identity: connector.Identity{UserID: "x"}})
	if _, err := cb.HandleCallback(connector.Scopes{}, nil, request(other)); err == nil {
		t.Error("a proof of another connector is accepted")
	}
	ctx, proof := WithProof(t.Context(), "dir", Proven{Identity: connector.Identity{UserID: "id-alice"}})
	if id, err := cb.HandleCallback(connector.Scopes{}, nil, request(ctx)); err != nil || id.UserID != "id-alice" || !proof.Used() {
		t.Errorf("got %+v, %v", id, err)
	}
	if _, err := cb.HandleCallback(connector.Scopes{}, nil, request(ctx)); err == nil {
		t.Error("a proof is accepted twice")
	}
}

// refreshing adds Refresh to a directory.
type refreshing struct{ directory }

func (*refreshing) Refresh(_ context.Context, _ connector.Scopes, id connector.Identity) (connector.Identity, error) {
	return id, nil
}

func TestRefreshIsShownOnlyWhereItIs(t *testing.T) {
	plain, _ := newTestDoor(t, &directory{}, DefaultLimits())
	if _, ok := plain.wrapped().(connector.RefreshConnector); ok {
		t.Error("Dex would issue refresh tokens for a connector that cannot refresh")
	}
	able, _ := newTestDoor(t, &refreshing{}, DefaultLimits())
	if _, ok := able.wrapped().(connector.RefreshConnector); !ok {
		t.Error("refresh is lost")
	}
}

func TestUnknownLocalUserCostsWhatAKnownOneCosts(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), 11)
	if err != nil {
		t.Fatal(err)
	}
	st := store.Memory(store.Options{})
	s := storage.WithStaticPasswords(st, []storage.Password{{Email: "alice@example.com", Hash: hash, UserID: "1"}}, slog.New(slog.DiscardHandler))
	l, err := newLocal(t.Context(), s, newWorkers(1), passwords.Match)
	if err != nil {
		t.Fatal(err)
	}
	if cost, err := bcrypt.Cost(l.dummy); err != nil || cost != 11 {
		t.Errorf("unknown users cost %d (%v), known ones 11", cost, err)
	}
	for name, tt := range map[string]struct {
		user, password string
		ok             bool
	}{
		"right":                          {"alice@example.com", "right", true},
		"in another case":                {"Alice@Example.com", "right", true},
		"wrong":                          {"alice@example.com", "wrong", false},
		"unknown":                        {"bob@example.com", "right", false},
		"beyond the 72 bytes of bcrypt":  {"alice@example.com", strings.Repeat("a", 73), false},
		"right and then beyond 72 bytes": {"alice@example.com", "right" + strings.Repeat("\x00", 80), false},
	} {
		id, ok, err := l.Login(t.Context(), connector.Scopes{}, tt.user, tt.password)
		if err != nil || ok != tt.ok || ok && id.UserID != "1" {
			t.Errorf("%s: %v, %v, %v", name, id.UserID, ok, err)
		}
	}
}

func TestNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "": "", "x": "", "192.0.2.7:80": "",
	} {
		if got := Network(in); got != want {
			t.Errorf("Network(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSpellingsOfOneUserCountTogether(t *testing.T) {
	dir := &directory{}
	limits := DefaultLimits()
	door, _ := newTestDoor(t, dir, limits)
	for _, user := range []string{"alice smith", " alice smith", "Alice  SMITH", "alice\u00a0smith", "alice ſmith", "ａlice smith", "alice smith  "} {
		_, _ = door.CheckPassword(t.Context(), Login{User: user, Password: "wrong"})
	}
	if n := dir.asked.Load(); n != int64(limits.PerUser) {
		t.Errorf("%d guesses reached the directory, want %d", n, limits.PerUser)
	}
}

// TestIgnoredCharactersGiveNoGuesses pins that what a directory takes for nothing (RFC 4518 section 2.2) makes no other user.
func TestIgnoredCharactersGiveNoGuesses(t *testing.T) {
	limits := DefaultLimits()
	door, _ := newTestDoor(t, &directory{}, limits)
	guess := func(user string) connectors.Reason {
		_, err := door.CheckPassword(t.Context(), Login{User: user, Password: "wrong"})
		return reason(err)
	}
	for range limits.PerUser {
		if got := guess("zoé"); got != connectors.WrongCredentials {
			t.Fatalf("reason %q, want %q", got, connectors.WrongCredentials)
		}
	}
	for _, r := range []rune{
		0xAD, 0x1806, 0x034F, 0x180B, 0x180D, 0xFE00, 0xFE0F, 0xFFFC, // by name
		0x06DD, 0x070F, 0x180E, 0x200C, 0x200F, 0x202A, 0x202E, 0x2060, 0x2063, 0x206A, 0x206F, 0xFEFF, 0xFFF9, 0xFFFB, 0x1D173, 0x1D17A, 0xE0001, 0xE0020, 0xE007F,
		0x200B, 0xE0100, // the zero-width space, and a variation selector that came later
	} {
		for _, user := range []string{"zo" + string(r) + "é", string(r) + " zoé", "zoe" + string(r) + "\u0301"} {
			if got := guess(user); got != connectors.Throttled {
				t.Errorf("%+q: reason %q, want %q", user, got, connectors.Throttled)
			}
		}
	}
	for _, user := range []string{"zo", "zoe", "zo\u20dd\u00e9", "zo-é"} {
		if got := guess(user); got != connectors.WrongCredentials {
			t.Errorf("%+q, another user: reason %q, want %q", user, got, connectors.WrongCredentials)
		}
	}
}

// The store finds a local user by strings.ToLower, for which a dotted capital I is an i.
func TestSpellingsThatTheStoreTakesForOneCountTogether(t *testing.T) {
	dir := &directory{}
	limits := DefaultLimits()
	door, _ := newTestDoor(t, dir, limits)
	for i, user := range []string{"invited", "İnvited", "invİted", "İNVİTED", "Invited", "Ｉnvited", "İnvİted"} {
		if strings.ToLower(user) != "invited" && user != "Ｉnvited" {
			t.Fatalf("case %d is no spelling of the user", i)
		}
		_, _ = door.CheckPassword(t.Context(), Login{User: user, Password: "wrong"})
	}
	if n := dir.asked.Load(); n != int64(limits.PerUser) {
		t.Errorf("%d guesses reached the directory, want %d", n, limits.PerUser)
	}
}

// panicking is a connector with a bug.
type panicking struct{ directory }

func (p *panicking) Login(ctx context.Context, s connector.Scopes, user, password string) (connector.Identity, bool, error) {
	if password == "boom" {
		panic("bug")
	}
	return p.directory.Login(ctx, s, user, password)
}

func TestPanicOfAConnectorLocksNobodyOut(t *testing.T) {
	door, _ := newTestDoor(t, &panicking{}, DefaultLimits())
	for range 10 {
		func() {
			defer func() { _ = recover() }()
			_, _ = door.CheckPassword(t.Context(), Login{User: "alice", Password: "boom"})
		}()
	}
	if _, err := door.CheckPassword(t.Context(), Login{User: "alice", Password: "right"}); err != nil {
		t.Error(err)
	}
}
