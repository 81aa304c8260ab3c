package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/conformance"

	"gatehouse/provider/store"
)

// OnAStore returns the tests that run on an empty store.
func OnAStore() map[string]func(*testing.T, *store.Store) {
	return map[string]func(*testing.T, *store.Store){
		"parallel updates all succeed":       ParallelUpdatesAllSucceed,
		"updater may use the store":          UpdaterMayUseTheStore,
		"sessions of a user":                 SessionsOf,
		"a code is deleted once":             ACodeIsDeletedOnce,
		"garbage collection":                 GarbageCollects,
		"garbage collection sees new expiry": GarbageCollectSeesNewExpiry,
		"canceled context is honoured":       CanceledContextIsHonoured,
	}
}

// Conformance runs Dex's own suites. open returns an empty store.
func Conformance(t *testing.T, open func(testing.TB, store.Options) *store.Store) {
	t.Helper()
	fresh := func(t *testing.T) storage.Storage { t.Helper(); return open(t, store.Options{}) }
	t.Run("crud", func(t *testing.T) { conformance.RunTests(t, fresh) })
	t.Run("concurrency", func(t *testing.T) { conformance.RunConcurrencyTests(t, fresh) })
	t.Run("transactions", func(t *testing.T) { conformance.RunTransactionTests(t, fresh) })
}

var epoch = time.Date(2026, 8, 6, 12, 0, 0, 0, time.UTC)

// ParallelUpdatesAllSucceed tests that no update is lost, and that a refresh asks its connector once.
func ParallelUpdatesAllSucceed(t *testing.T, s *store.Store) {
	t.Helper()
	const n = 100
	ctx := t.Context()
	must(t, s.CreateRefresh(ctx, storage.RefreshToken{ID: "r", Token: "0"}))
	must(t, s.CreateAuthSession(ctx, newSession("sid", "alice")))
	must(t, s.CreateOfflineSessions(ctx, storage.OfflineSessions{UserID: "u", ConnID: "c", Refresh: map[string]*storage.RefreshTokenRef{}}))
	var asked atomic.Int64 // how often the connector was
	inParallel(t, n, func(int) error {
		return s.UpdateRefreshToken(ctx, "r", func(v storage.RefreshToken) (storage.RefreshToken, error) {
			asked.Add(1)
			i, err := strconv.Atoi(v.Token)
			v.Token = strconv.Itoa(i + 1)
			return v, err
		})
	})
	inParallel(t, n, func(i int) error {
		return s.UpdateAuthSession(ctx, "sid", func(v storage.AuthSession) (storage.AuthSession, error) {
			v.ClientStates[fmt.Sprint(i)] = &storage.ClientAuthState{}
			return v, nil
		})
	})
	inParallel(t, n, func(i int) error {
		return s.UpdateOfflineSessions(ctx, "u", "c", func(v storage.OfflineSessions) (storage.OfflineSessions, error) {
			v.Refresh[fmt.Sprint(i)] = &storage.RefreshTokenRef{}
			return v, nil
		})
	})
	token, err := s.GetRefresh(ctx, "r")
	must(t, err)
	session, err := s.GetAuthSession(ctx, "sid")
	must(t, err)
	offline, err := s.GetOfflineSessions(ctx, "u", "c")
	must(t, err)
	if token.Token != strconv.Itoa(n) || len(session.ClientStates) != n+1 || len(offline.Refresh) != n {
		t.Errorf("got token %s, %d clients, %d tokens: updates were lost", token.Token, len(session.ClientStates), len(offline.Refresh))
	}
	if got := asked.Load(); got != n {
		t.Errorf("the connector was asked %d times for %d refreshes", got, n)
	}
}

// UpdaterMayUseTheStore tests what a refresh in Dex does: it asks a connector that may read and write the store (dex#5017), which hung Dex's own storages.
func UpdaterMayUseTheStore(t *testing.T, s *store.Store) {
	t.Helper()
	ctx := t.Context()
	for i := range 20 {
		must(t, s.CreateRefresh(ctx, storage.RefreshToken{ID: fmt.Sprint(i), Token: "old"}))
	}
	must(t, s.CreatePassword(ctx, storage.Password{Email: "a@example.com", UserID: "alice"}))
	must(t, s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: "alice", ConnectorID: "local", Consents: map[string][]string{}}))
	inParallel(t, 20, func(i int) error {
		return s.UpdateRefreshToken(ctx, fmt.Sprint(i), func(v storage.RefreshToken) (storage.RefreshToken, error) {
			p, err := s.GetPassword(ctx, "a@example.com")
			if err != nil {
				return v, err
			}
			if _, err := s.GetRefresh(ctx, v.ID); err != nil {
				return v, err
			}
			v.Token = "new"
			return v, s.UpdateUserIdentity(ctx, p.UserID, "local", func(u storage.UserIdentity) (storage.UserIdentity, error) {
				u.Consents[fmt.Sprint(i)] = []string{"openid"}
				return u, nil
			})
		})
	})
	u, err := s.GetUserIdentity(ctx, "alice", "local")
	must(t, err)
	if len(u.Consents) != 20 {
		t.Errorf("got %d consents, want 20", len(u.Consents))
	}
}

// SessionsOf tests the index by owner with ambiguous names.
func SessionsOf(t *testing.T, s *store.Store) {
	t.Helper()
	ctx := t.Context()
	for _, v := range []struct{ id, user, connector string }{
		{"1", "a", "b:c"}, {"2", "a:b", "c"}, {"3", "a", "b:c"}, {"4", "", "a:b:c"}, {"5", "A", "b:c"},
	} {
		session := newSession(v.id, v.user)
		session.ConnectorID = v.connector
		must(t, s.CreateAuthSession(ctx, session))
	}
	must(t, s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: "a", ConnectorID: "b:c"}))
	must(t, s.DeleteAuthSession(ctx, "3"))
	for _, tt := range []struct {
		user, connector string
		want            []string
	}{
		{"a", "b:c", []string{"1"}},
		{"a:b", "c", []string{"2"}},
		{"", "a:b:c", []string{"4"}},
		{"A", "b:c", []string{"5"}},
		{"a", "", nil},
		{"", "", nil},
	} {
		sessions, err := s.SessionsOf(ctx, tt.user, tt.connector)
		must(t, err)
		var got []string
		for _, v := range sessions {
			got = append(got, v.ID)
		}
		if slices.Sort(got); !slices.Equal(got, tt.want) {
			t.Errorf("user %q at %q: got %v, want %v", tt.user, tt.connector, got, tt.want)
		}
	}
}

// ACodeIsDeletedOnce tests Delete by several at once.
func ACodeIsDeletedOnce(t *testing.T, s *store.Store) {
	t.Helper()
	ctx := t.Context()
	must(t, s.CreateAuthCode(ctx, storage.AuthCode{ID: "c", Expiry: epoch}))
	must(t, s.CreateAuthSession(ctx, newSession("sid", "alice")))
	var codes, sessions atomic.Int64
	inParallel(t, 20, func(int) error {
		for n, err := range map[*atomic.Int64]error{&codes: s.DeleteAuthCode(ctx, "c"), &sessions: s.DeleteAuthSession(ctx, "sid")} {
			if err == nil {
				n.Add(1)
			} else if err != storage.ErrNotFound { //nolint:errorlint // Dex compares with ==
				return err
			}
		}
		return nil
	})
	if codes.Load() != 1 || sessions.Load() != 1 {
		t.Errorf("deleted the code %d times and the session %d times, want once each", codes.Load(), sessions.Load())
	}
}

// GarbageCollects tests what is due.
func GarbageCollects(t *testing.T, s *store.Store) {
	t.Helper()
	second := time.Second
	ctx := t.Context()
	for id, expiry := range map[string]time.Time{"past": epoch.Add(-second), "now": epoch, "future": epoch.Add(second), "zero": {}, "far": epoch.AddDate(1000, 0, 0)} {
		must(t, s.CreateAuthRequest(ctx, storage.AuthRequest{ID: id, Expiry: expiry}))
		must(t, s.CreateAuthCode(ctx, storage.AuthCode{ID: id, Expiry: expiry}))
		must(t, s.CreateDeviceRequest(ctx, storage.DeviceRequest{UserCode: id, Expiry: expiry}))
		must(t, s.CreateDeviceToken(ctx, storage.DeviceToken{DeviceCode: id, Expiry: expiry}))
	}
	for id, v := range map[string][2]time.Time{
		"idle": {epoch.Add(-second), epoch.Add(second)}, "absolute": {epoch.Add(second), epoch.Add(-second)},
		"alive": {epoch, epoch.Add(second)}, "no idle expiry": {{}, epoch.Add(second)},
	} {
		session := newSession(id, "alice")
		session.IdleExpiry, session.AbsoluteExpiry = v[0], v[1]
		must(t, s.CreateAuthSession(ctx, session))
	}
	must(t, s.CreateRefresh(ctx, storage.RefreshToken{ID: "r"}))
	must(t, s.CreateOfflineSessions(ctx, storage.OfflineSessions{UserID: "u"}))
	told := record(s)
	got, err := s.GarbageCollect(ctx, epoch)
	must(t, err)
	want := storage.GCResult{AuthRequests: 2, AuthCodes: 2, DeviceRequests: 2, DeviceTokens: 2, AuthSessions: 3}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := told.all(); len(got) != 0 {
		t.Errorf("told %+v, want nothing", got)
	}
	for _, id := range []string{"now", "future", "far"} {
		if _, err := s.GetAuthRequest(ctx, id); err != nil {
			t.Errorf("auth request %q: %v", id, err)
		}
	}
	if _, err := s.GetAuthSession(ctx, "alive"); err != nil {
		t.Errorf("session that lives: %v", err)
	}
	if _, err := s.GetRefresh(ctx, "r"); err != nil {
		t.Errorf("refresh token: %v", err)
	}
}

// GarbageCollectSeesNewExpiry tests that an extension moves a session out of the collector's way, in both directions.
func GarbageCollectSeesNewExpiry(t *testing.T, s *store.Store) {
	t.Helper()
	ctx := t.Context()
	set := func(id string, expiry time.Time) {
		must(t, s.UpdateAuthSession(ctx, id, func(v storage.AuthSession) (storage.AuthSession, error) {
			v.IdleExpiry = expiry
			return v, nil
		}))
	}
	for _, id := range []string{"extended", "shortened"} {
		must(t, s.CreateAuthSession(ctx, newSession(id, "alice")))
	}
	set("extended", epoch.Add(3*time.Hour))
	set("shortened", epoch)
	got, err := s.GarbageCollect(ctx, epoch.Add(2*time.Hour))
	must(t, err)
	if _, err := s.GetAuthSession(ctx, "extended"); err != nil || got.AuthSessions != 1 {
		t.Errorf("collected %d sessions, and the extended one: %v", got.AuthSessions, err)
	}
}

// CanceledContextIsHonoured tests every kind of call.
func CanceledContextIsHonoured(t *testing.T, s *store.Store) {
	t.Helper()
	must(t, s.CreateAuthSession(t.Context(), newSession("sid", "alice")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range map[string]func() error{
		"get":      func() error { _, err := s.GetAuthSession(ctx, "sid"); return err },
		"list":     func() error { _, err := s.ListAuthSessions(ctx); return err },
		"create":   func() error { return s.CreateAuthSession(ctx, newSession("2", "alice")) },
		"delete":   func() error { return s.DeleteAuthSession(ctx, "sid") },
		"delete2":  func() error { return s.DeleteAuthCode(ctx, "sid") },
		"collect":  func() error { _, err := s.GarbageCollect(ctx, epoch); return err },
		"ping":     func() error { return s.Ping(ctx) },
		"follow":   func() error { return s.Follow(ctx) },
		"sessions": func() error { _, err := s.SessionsOf(ctx, "alice", "ad"); return err },
		"update": func() error {
			return s.UpdateAuthSession(ctx, "sid", func(v storage.AuthSession) (storage.AuthSession, error) { return v, nil })
		},
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want context.Canceled", name, err)
		}
	}
	if _, err := s.GetAuthSession(t.Context(), "sid"); err != nil {
		t.Errorf("the session after all that: %v", err)
	}
}

func inParallel(t testing.TB, n int, f func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	must(t, errors.Join(errs...))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("got error %v, want %v", got, want)
	}
}

func newSession(id, user string) storage.AuthSession {
	return storage.AuthSession{
		ID: id, Secret: "s", UserID: user, ConnectorID: "ad",
		ClientStates:   map[string]*storage.ClientAuthState{"app": {AuthenticatedAt: epoch}},
		CreatedAt:      epoch,
		LastActivity:   epoch,
		IdleExpiry:     epoch.Add(time.Hour),
		AbsoluteExpiry: epoch.Add(24 * time.Hour),
	}
}
