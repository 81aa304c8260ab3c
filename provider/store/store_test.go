package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dexidp/dex/storage"
)

func TestUpdateOfAMissingRecordCreatesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		for name, update := range map[string]func() error{
			"auth request": func() error {
				return s.UpdateAuthRequest(ctx, "x", func(v storage.AuthRequest) (storage.AuthRequest, error) { v.ID = "x"; return v, nil })
			},
			"session": func() error {
				return s.UpdateAuthSession(ctx, "x", func(v storage.AuthSession) (storage.AuthSession, error) { v.ID = "x"; return v, nil })
			},
			"refresh token": func() error {
				return s.UpdateRefreshToken(ctx, "x", func(v storage.RefreshToken) (storage.RefreshToken, error) { v.ID = "x"; return v, nil })
			},
			"user identity": func() error {
				return s.UpdateUserIdentity(ctx, "x", "y", func(v storage.UserIdentity) (storage.UserIdentity, error) { return v, nil })
			},
			"offline sessions": func() error {
				return s.UpdateOfflineSessions(ctx, "x", "y", func(v storage.OfflineSessions) (storage.OfflineSessions, error) { return v, nil })
			},
			"password": func() error {
				return s.UpdatePassword(ctx, "x", func(v storage.Password) (storage.Password, error) { v.Email = "x"; return v, nil })
			},
			"client": func() error {
				return s.UpdateClient(ctx, "x", func(v storage.Client) (storage.Client, error) { v.ID = "x"; return v, nil })
			},
			"connector": func() error {
				return s.UpdateConnector(ctx, "x", func(v storage.Connector) (storage.Connector, error) { v.ID = "x"; return v, nil })
			},
			"device token": func() error {
				return s.UpdateDeviceToken(ctx, "x", func(v storage.DeviceToken) (storage.DeviceToken, error) { v.DeviceCode = "x"; return v, nil })
			},
		} {
			if err := update(); err != storage.ErrNotFound { //nolint:errorlint // Dex compares with ==
				t.Errorf("%s: got %v, want ErrNotFound", name, err)
			}
		}
		if _, err := s.GetAuthSession(ctx, "x"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("session after the update: got %v, want ErrNotFound", err)
		}
	})
}

func TestUpdateOfARecordDeletedMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after func(context.Context, *Store) error // what another does while the updater runs
		want  error
		owner string // of the session in the end
	}{
		{"deleted stays deleted", func(ctx context.Context, s *Store) error { return s.DeleteAuthSession(ctx, "sid") }, storage.ErrNotFound, ""},
		{"created anew is not overwritten by the old one", func(ctx context.Context, s *Store) error {
			if err := s.DeleteAuthSession(ctx, "sid"); err != nil {
				return err
			}
			return s.CreateAuthSession(ctx, newSession("sid", "other"))
		}, nil, "other"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, s *Store) {
				ctx := t.Context()
				must(t, s.CreateAuthSession(ctx, newSession("sid", "alice")))
				once := sync.OnceValue(func() error { return tt.after(ctx, s) })
				err := s.UpdateAuthSession(ctx, "sid", func(v storage.AuthSession) (storage.AuthSession, error) {
					v.LastActivity = epoch.Add(time.Minute)
					return v, once()
				})
				if !errors.Is(err, tt.want) {
					t.Fatalf("update: got %v, want %v", err, tt.want)
				}
				got, err := s.GetAuthSession(ctx, "sid")
				if !errors.Is(err, tt.want) || got.UserID != tt.owner {
					t.Errorf("after: got user %q and error %v, want %q and %v", got.UserID, err, tt.owner, tt.want)
				}
			})
		})
	}
}

func TestUpdatersErrorIsReturnedAndWritesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		must(t, s.CreateAuthSession(ctx, newSession("sid", "alice")))
		told := record(s)
		cause := errors.New("refused")
		err := s.UpdateAuthSession(ctx, "sid", func(v storage.AuthSession) (storage.AuthSession, error) {
			v.UserID = "mallory"
			return v, cause
		})
		if err != cause { //nolint:errorlint // it must be the very same
			t.Errorf("got %v, want the updater's error itself", err)
		}
		if got, _ := s.GetAuthSession(ctx, "sid"); got.UserID != "alice" {
			t.Errorf("got user %q, want alice", got.UserID)
		}
		if got := told.all(); len(got) != 0 {
			t.Errorf("told %+v, want nothing", got)
		}
	})
}

func TestUpdateKeepsTheID(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		must(t, s.CreateClient(ctx, storage.Client{ID: "a"}))
		err := s.UpdateClient(ctx, "a", func(storage.Client) (storage.Client, error) { return storage.Client{ID: "b"}, nil })
		if err == nil || !strings.Contains(err.Error(), "changed the ID") {
			t.Errorf("got %v, want an error about the ID", err)
		}
	})
}

func TestParallelUpdatesLeaveNothingInTheQueue(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		must(t, s.CreateRefresh(t.Context(), storage.RefreshToken{ID: "r"}))
		inParallel(t, 100, func(int) error { return s.UpdateRefreshToken(t.Context(), "r", same) })
		if len(s.queue.lanes) != 0 {
			t.Errorf("%d lanes are left in the queue, want 0", len(s.queue.lanes))
		}
	})
}

func inParallel(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	must(t, errors.Join(errs...))
}

func TestUpdateOfTheSameTokenInItsUpdaterEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := Memory(Options{})
		ctx := t.Context()
		must(t, s.CreateRefresh(ctx, storage.RefreshToken{ID: "r", Token: "0"}))
		nested := sync.OnceValue(func() error {
			return s.UpdateRefreshToken(ctx, "r", func(v storage.RefreshToken) (storage.RefreshToken, error) {
				v.Token = "inner"
				return v, nil
			})
		})
		err := s.UpdateRefreshToken(ctx, "r", func(v storage.RefreshToken) (storage.RefreshToken, error) {
			v.ObsoleteToken = v.Token
			v.Token = "outer"
			return v, nested()
		})
		must(t, err)
		got, err := s.GetRefresh(ctx, "r")
		must(t, err)
		if got.Token != "outer" || got.ObsoleteToken != "inner" {
			t.Errorf("got %q after %q, want outer after inner", got.Token, got.ObsoleteToken)
		}
	})
}

func TestWaitForATokenEndsWithItsContext(t *testing.T) {
	s := Memory(Options{})
	must(t, s.CreateRefresh(t.Context(), storage.RefreshToken{ID: "r", Token: "0"}))
	working, finish := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- s.UpdateRefreshToken(t.Context(), "r", func(v storage.RefreshToken) (storage.RefreshToken, error) {
			close(working)
			<-finish
			v.Token = "1"
			return v, nil
		})
	}()
	<-working
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := s.UpdateRefreshToken(ctx, "r", func(storage.RefreshToken) (storage.RefreshToken, error) {
		return storage.RefreshToken{}, errors.New("must not run")
	})
	wantErr(t, err, context.Canceled)
	close(finish)
	must(t, <-first)
}

func TestReturnedValuesShareNothingWithTheStore(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		given := newSession("sid", "alice")
		must(t, s.CreateAuthSession(ctx, given))
		given.ClientStates["mine"] = &storage.ClientAuthState{}
		given.ClientStates["app"].ViaSSO = true

		got, err := s.GetAuthSession(ctx, "sid")
		must(t, err)
		got.ClientStates["yours"] = &storage.ClientAuthState{}
		got.ClientStates["app"].ViaSSO = true

		all, err := s.ListAuthSessions(ctx)
		must(t, err)
		all[0].ClientStates["listed"] = &storage.ClientAuthState{}

		failed := errors.New("no")
		err = s.UpdateAuthSession(ctx, "sid", func(v storage.AuthSession) (storage.AuthSession, error) {
			v.ClientStates["updating"] = &storage.ClientAuthState{}
			return v, failed
		})
		wantErr(t, err, failed)

		again, err := s.GetAuthSession(ctx, "sid")
		must(t, err)
		if want := newSession("sid", "alice"); !reflect.DeepEqual(again, want) {
			t.Errorf("got %+v, want %+v", again, want)
		}
	})
}

func TestListsAreComplete(t *testing.T) {
	const n, workers = 2*scanPage + 1, 20 // several pages
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		inParallel(t, workers, func(w int) error {
			for i := w; i < n; i += workers {
				if err := s.CreateAuthSession(ctx, newSession(fmt.Sprint(i), "alice")); err != nil {
					return err
				}
			}
			return nil
		})
		for name, list := range map[string]func() ([]storage.AuthSession, error){
			"all":    func() ([]storage.AuthSession, error) { return s.ListAuthSessions(ctx) },
			"a user": func() ([]storage.AuthSession, error) { return s.SessionsOf(ctx, "alice", "ad") },
		} {
			got, err := list()
			must(t, err)
			seen := map[string]bool{}
			for _, v := range got {
				seen[v.ID] = true
			}
			if len(got) != n || len(seen) != n {
				t.Errorf("%s: got %d sessions, %d different, want %d", name, len(got), len(seen), n)
			}
		}
	})
}

func TestUsersOfAmbiguousNamesAreKeptApart(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		users := [][2]string{{"a", "b:c"}, {"a:b", "c"}, {"", "a:b:c"}, {"a:b:c", ""}, {"1:a", "b"}, {"\x00", "x"}, {"", "\x00x"}}
		for _, u := range users {
			must(t, s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: u[0], ConnectorID: u[1]}))
			must(t, s.CreateOfflineSessions(ctx, storage.OfflineSessions{UserID: u[0], ConnID: u[1]}))
		}
		for _, u := range users {
			identity, err := s.GetUserIdentity(ctx, u[0], u[1])
			must(t, err)
			offline, err := s.GetOfflineSessions(ctx, u[0], u[1])
			must(t, err)
			if identity.UserID != u[0] || offline.ConnID != u[1] {
				t.Errorf("%q: got user %q and connector %q", u, identity.UserID, offline.ConnID)
			}
		}
	})
}

func TestNamesThatAreNoneOrThatJSONWouldChangeAreRefused(t *testing.T) {
	bad := "\xff"
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		for name, err := range map[string]error{
			"session of a binary user ID": s.CreateAuthSession(ctx, newSession("sid", bad)),
			"identity":                    s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: bad, ConnectorID: "ad"}),
			"group":                       s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: "a", Claims: storage.Claims{Groups: []string{bad}}}),
			"e-mail in a code":            s.CreateAuthCode(ctx, storage.AuthCode{ID: "c", Claims: storage.Claims{Email: bad}}),
			"connector of a token":        s.CreateRefresh(ctx, storage.RefreshToken{ID: "r", ConnectorID: bad}),
			"client ID":                   s.CreateClient(ctx, storage.Client{ID: bad}),
			"no ID":                       s.CreateAuthSession(ctx, newSession("", "alice")),
			"identity of nobody":          s.CreateUserIdentity(ctx, storage.UserIdentity{}),
			"offline session of nobody":   s.CreateOfflineSessions(ctx, storage.OfflineSessions{}),
		} {
			if err == nil {
				t.Errorf("%s: got no error", name)
			}
		}
		odd := newSession("sid", "alice")
		odd.UserAgent = bad
		must(t, s.CreateAuthSession(ctx, odd)) // a browser's oddity keeps nobody out
	})
}

func TestNilAndEmptyAreKept(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		// nil: the default; empty: share with nobody.
		must(t, s.CreateClient(ctx, storage.Client{ID: "nil"}))
		must(t, s.CreateClient(ctx, storage.Client{ID: "empty", SSOSharedWith: []string{}}))
		for id, wantNil := range map[string]bool{"nil": true, "empty": false} {
			c, err := s.GetClient(ctx, id)
			must(t, err)
			if got := c.SSOSharedWith == nil; got != wantNil {
				t.Errorf("client %s: SSOSharedWith is nil: %t, want %t", id, got, wantNil)
			}
		}
	})
}

func TestPasswordsAreFoundInAnyCase(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		must(t, s.CreatePassword(ctx, storage.Password{Email: "Alice@Example.com", UserID: "1"}))
		wantErr(t, s.CreatePassword(ctx, storage.Password{Email: "aLICE@example.com"}), storage.ErrAlreadyExists)
		must(t, s.UpdatePassword(ctx, "ALICE@example.com", func(p storage.Password) (storage.Password, error) {
			p.Email, p.Username = "ALICE@example.com", "alice"
			return p, nil
		}))
		p, err := s.GetPassword(ctx, "alice@EXAMPLE.com")
		must(t, err)
		if p.Username != "alice" {
			t.Errorf("got user name %q, want alice", p.Username)
		}
		must(t, s.DeletePassword(ctx, "alicE@example.com"))
		_, err = s.GetPassword(ctx, "alice@example.com")
		wantErr(t, err, storage.ErrNotFound)
	})
}

func TestDamagedRecordIsAnErrorAndCanBeDeleted(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		bad := Record{Kind: KindSession, ID: "sid", Data: []byte(`{"ID":`)}
		if _, err := s.driver.Write(ctx, []Op{{Verb: Create, Record: bad}}); err != nil {
			t.Fatal(err)
		}
		if v, err := s.GetAuthSession(ctx, "sid"); err == nil || v.ID != "" {
			t.Errorf("get: got %+v and error %v, want an error", v, err)
		}
		if _, err := s.ListAuthSessions(ctx); err == nil {
			t.Error("list: got no error")
		}
		told := record(s)
		must(t, s.DeleteAuthSession(ctx, "sid"))
		if got := told.all(); len(got) != 1 || got[0].ID != "sid" || !got[0].Deleted {
			t.Errorf("told %+v, want the deletion", got)
		}
	})
}

func TestGarbageCollectTakesEverythingInOneCall(t *testing.T) {
	const expired, live = 50_000, 5_000
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		fill(ctx, t, s, "old", expired, epoch.Add(-time.Second))
		fill(ctx, t, s, "new", live, epoch.Add(time.Hour))
		start := time.Now()
		got, err := s.GarbageCollect(ctx, epoch)
		must(t, err)
		t.Logf("%d of %d records deleted in %v", got.AuthRequests, expired+live, time.Since(start))
		if got.AuthRequests != expired {
			t.Errorf("got %d deleted, want %d", got.AuthRequests, expired)
		}
		again, err := s.GarbageCollect(ctx, epoch)
		must(t, err)
		if !again.IsEmpty() {
			t.Errorf("a second call deleted %+v, want nothing", again)
		}
		if _, err := s.GetAuthRequest(ctx, "new 0"); err != nil {
			t.Errorf("a live record: %v", err)
		}
	})
}

// fill writes auth requests past the Store, many in a transaction.
func fill(ctx context.Context, t testing.TB, s *Store, name string, n int, expiry time.Time) {
	t.Helper()
	var ops []Op
	for i := range n {
		r, err := authRequests.encode(&storage.AuthRequest{ID: fmt.Sprintf("%s %d", name, i), State: strings.Repeat("x", 200), Expiry: expiry})
		must(t, err)
		ops = append(ops, Op{Verb: Create, Record: r})
	}
	size := 500 // far from what a transaction may take on a busy machine
	if _, ok := s.driver.Driver.(*etcdDriver); ok {
		size = etcdTxnOps / 2 // each record has one index entry
	}
	for batch := range slices.Chunk(ops, size) {
		if _, err := s.driver.Write(ctx, batch); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPing(t *testing.T) {
	for name, open := range stores() {
		t.Run(name, func(t *testing.T) {
			s := open(t, Options{})
			must(t, s.Ping(t.Context()))
			must(t, s.Close())
			if err := s.Ping(t.Context()); name == "sqlite" && err == nil {
				t.Error("ping of a closed database: got no error")
			}
		})
	}
}
