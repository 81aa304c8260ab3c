package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dexidp/dex/storage"

	"gatehouse/test/peers"
)

func same[T any](v T) (T, error) { return v, nil }

func TestOwnChangesAreToldBeforeTheCallReturns(t *testing.T) {
	alice := Change{UserID: "alice", ConnectorID: "ad"}
	change := func(c Change, kind Kind, id string, deleted bool) Change {
		c.Kind, c.ID, c.Deleted = kind, id, deleted
		return c
	}
	onBoth(t, func(t *testing.T, s *Store) {
		ctx, told := t.Context(), record(s)
		password := storage.Password{Email: "A@example.com", UserID: "1"}
		for _, step := range []struct {
			name string
			do   func() error
			want []Change
		}{
			{"session created", func() error { return s.CreateAuthSession(ctx, newSession("sid", "alice")) }, []Change{change(alice, KindSession, "sid", false)}},
			{"session updated", func() error { return s.UpdateAuthSession(ctx, "sid", same) }, []Change{change(alice, KindSession, "sid", false)}},
			{"session of another user", func() error {
				return s.UpdateAuthSession(ctx, "sid", func(v storage.AuthSession) (storage.AuthSession, error) { v.UserID = "bob"; return v, nil })
			}, []Change{change(alice, KindSession, "sid", false), change(Change{UserID: "bob", ConnectorID: "ad"}, KindSession, "sid", false)}},
			{"session deleted", func() error { return s.DeleteAuthSession(ctx, "sid") }, []Change{change(Change{UserID: "bob", ConnectorID: "ad"}, KindSession, "sid", true)}},
			{"identity created", func() error {
				return s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: "alice", ConnectorID: "ad"})
			}, []Change{change(alice, KindIdentity, "5:alice:ad", false)}},
			{"identity updated", func() error { return s.UpdateUserIdentity(ctx, "alice", "ad", same) }, []Change{change(alice, KindIdentity, "5:alice:ad", false)}},
			{"identity deleted", func() error { return s.DeleteUserIdentity(ctx, "alice", "ad") }, []Change{change(alice, KindIdentity, "5:alice:ad", true)}},
			{"password created", func() error { return s.CreatePassword(ctx, password) }, []Change{change(Change{UserID: "1", ConnectorID: "local"}, KindPassword, "a@example.com", false)}},
			{"password updated", func() error { return s.UpdatePassword(ctx, "A@example.com", same) }, []Change{change(Change{UserID: "1", ConnectorID: "local"}, KindPassword, "a@example.com", false)}},
			{"password deleted", func() error { return s.DeletePassword(ctx, "A@example.com") }, []Change{change(Change{UserID: "1", ConnectorID: "local"}, KindPassword, "a@example.com", true)}},
			{"client created", func() error { return s.CreateClient(ctx, storage.Client{ID: "app"}) }, []Change{change(Change{}, KindClient, "app", false)}},
			{"client updated", func() error { return s.UpdateClient(ctx, "app", same) }, []Change{change(Change{}, KindClient, "app", false)}},
			{"client deleted", func() error { return s.DeleteClient(ctx, "app") }, []Change{change(Change{}, KindClient, "app", true)}},
			{"connector created", func() error { return s.CreateConnector(ctx, storage.Connector{ID: "ad"}) }, []Change{change(Change{}, KindConnector, "ad", false)}},
			{"connector updated", func() error { return s.UpdateConnector(ctx, "ad", same) }, []Change{change(Change{}, KindConnector, "ad", false)}},
			{"connector deleted", func() error { return s.DeleteConnector(ctx, "ad") }, []Change{change(Change{}, KindConnector, "ad", true)}},
			{"first keys", func() error { return s.UpdateKeys(ctx, same) }, []Change{change(Change{}, KindKeys, "keys", false)}},
			{"next keys", func() error { return s.UpdateKeys(ctx, same) }, []Change{change(Change{}, KindKeys, "keys", false)}},
			{"what fails is not told", func() error {
				wantErr(t, s.DeleteAuthSession(ctx, "sid"), storage.ErrNotFound)
				wantErr(t, s.UpdateAuthSession(ctx, "sid", same), storage.ErrNotFound)
				return nil
			}, nil},
			{"auth request, code, tokens are not told", func() error {
				return errors.Join(s.CreateAuthRequest(ctx, storage.AuthRequest{ID: "r"}), s.UpdateAuthRequest(ctx, "r", same), s.DeleteAuthRequest(ctx, "r"),
					s.CreateAuthCode(ctx, storage.AuthCode{ID: "c"}), s.DeleteAuthCode(ctx, "c"),
					s.CreateRefresh(ctx, storage.RefreshToken{ID: "t"}), s.UpdateRefreshToken(ctx, "t", same), s.DeleteRefresh(ctx, "t"),
					s.CreateDeviceToken(ctx, storage.DeviceToken{DeviceCode: "d"}), s.UpdateDeviceToken(ctx, "d", same))
			}, nil},
		} {
			before := len(told.all())
			must(t, step.do())
			got := told.all()[before:]
			for i := range got {
				if got[i].Seq == 0 {
					t.Errorf("%s: change without a Seq", step.name)
				}
				got[i].Seq = 0
			}
			if len(got) != len(step.want) || (len(got) > 0 && !reflect.DeepEqual(got, step.want)) {
				t.Errorf("%s: told %+v, want %+v", step.name, got, step.want)
			}
		}
	})
}

func TestSubscriberMayUseTheStoreAndEndsByCancel(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		var users []string
		cancel := s.Subscribe(func(c Change) {
			v, err := s.GetAuthSession(ctx, c.ID)
			must(t, err)
			users = append(users, v.UserID)
		})
		must(t, s.CreateAuthSession(ctx, newSession("1", "alice")))
		cancel()
		cancel()
		must(t, s.CreateAuthSession(ctx, newSession("2", "bob")))
		if len(users) != 1 || users[0] != "alice" {
			t.Errorf("heard of the sessions of %q, want of alice's only", users)
		}
	})
}

// A pair of stores stands for two processes on one database.
func twoProcesses(t *testing.T, o Options, test func(t *testing.T, a, b *Store)) {
	t.Run("memory", func(t *testing.T) {
		d := newMemory()
		test(t, newStore(d, o, 0), newStore(d, o, 0))
	})
	t.Run("sqlite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "g.db")
		a, b := openFile(t, path, o), openFile(t, path, o)
		defer func() { must(t, errors.Join(a.Close(), b.Close())) }()
		test(t, a, b)
	})
	t.Run("postgres", func(t *testing.T) {
		c := newDatabase(t)
		a, b := openDatabase(t, c, o), openDatabase(t, c, o)
		defer func() { must(t, errors.Join(a.Close(), b.Close())) }()
		test(t, a, b)
	})
	t.Run("etcd", func(t *testing.T) {
		server := etcdAt(peers.Etcd(t, peers.EtcdOptions{}))
		a, b := openEtcdStore(t, server, o), openEtcdStore(t, server, o)
		defer func() { must(t, errors.Join(a.Close(), b.Close())) }()
		test(t, a, b)
	})
}

// follow runs Follow until the test ends.
func follow(t *testing.T, s *Store) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("follow: got %v, want context.Canceled", err)
		}
	})
}

func TestFollowGoesOnWhereItEnded(t *testing.T) {
	twoProcesses(t, Options{FeedInterval: time.Millisecond}, func(t *testing.T, a, b *Store) {
		told := record(a)
		for i, want := range []int{1, 3} { // the second reads "between 1", too
			id := fmt.Sprint(i + 1)
			t.Run("follow "+id, func(t *testing.T) {
				follow(t, a)
				must(t, b.CreateClient(t.Context(), storage.Client{ID: id}))
				told.wait(t.Context(), t, want)
			})
			must(t, b.CreateClient(t.Context(), storage.Client{ID: "between " + id}))
		}
		must(t, a.poll(t.Context()))
		var got []string
		for _, c := range told.all() {
			got = append(got, c.ID)
		}
		if want := "1,between 1,2,between 2"; strings.Join(got, ",") != want {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}

func TestFollowRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := Memory(Options{})
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error)
		go func() { first <- s.Follow(ctx) }()
		synctest.Wait()
		if err := s.Follow(ctx); err == nil || !strings.Contains(err.Error(), "already") {
			t.Errorf("second follow: got %v, want an error", err)
		}
		cancel()
		wantErr(t, <-first, context.Canceled)
	})
}

func TestAReaderThatWasAwayTooLongForgetsEverything(t *testing.T) {
	now := epoch
	o := Options{Now: func() time.Time { return now }, Retention: time.Minute}
	twoProcesses(t, o, func(t *testing.T, a, b *Store) {
		ctx, told := t.Context(), record(a)
		must(t, b.CreateClient(ctx, storage.Client{ID: "missed"}))
		now = now.Add(2 * time.Minute)
		must(t, b.CreateClient(ctx, storage.Client{ID: "kept"}))
		_, err := b.GarbageCollect(ctx, now)
		must(t, err)
		must(t, a.poll(ctx))
		must(t, b.CreateClient(ctx, storage.Client{ID: "after"}))
		must(t, a.poll(ctx))
		got := told.all()
		if len(got) != 2 || got[0].Kind != "" || got[1].ID != "after" {
			t.Errorf("told %+v, want one change of the zero Kind, then the next one", got)
		}
		checkLog(t, b.driver, "kept,after")
	})
}

// checkLog compares the IDs in the change log after what was trimmed.
func checkLog(t *testing.T, d Driver, want string) {
	t.Helper()
	after := int64(0)
	changes, err := d.Changes(t.Context(), after, 100)
	for errors.Is(err, ErrTrimmed) {
		after++
		changes, err = d.Changes(t.Context(), after, 100)
	}
	must(t, err)
	ids := make([]string, 0, len(changes))
	for _, c := range changes {
		ids = append(ids, c.ID)
	}
	if got := strings.Join(ids, ","); got != want {
		t.Errorf("the log holds %q, want %q", got, want)
	}
}

// A faulty driver loses answers, before or after the write.
type faulty struct {
	Driver
	before, after, log atomic.Pointer[error]
}

func fault(f *atomic.Pointer[error]) error {
	if err := f.Load(); err != nil {
		return *err
	}
	return nil
}

func (f *faulty) Write(ctx context.Context, ops []Op) (int64, error) {
	if err := fault(&f.before); err != nil {
		return 0, err
	}
	seq, err := f.Driver.Write(ctx, ops)
	return seq, errors.Join(err, fault(&f.after))
}

func (f *faulty) Changes(ctx context.Context, after int64, limit int) ([]Change, error) {
	if err := fault(&f.log); err != nil {
		return nil, err
	}
	return f.Driver.Changes(ctx, after, limit)
}

func TestAWriteOfUnknownOutcomeIsTold(t *testing.T) {
	lost := errors.New("connection lost")
	for _, tt := range []struct {
		name string
		when func(*faulty) *atomic.Pointer[error]
		want int // how often it is told, Follow included
	}{
		{"it did not happen", func(f *faulty) *atomic.Pointer[error] { return &f.before }, 1},
		{"it did happen, maybe after it was told first", func(f *faulty) *atomic.Pointer[error] { return &f.after }, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			d := &faulty{Driver: newMemory()}
			s := newStore(d, Options{}, 0)
			told := record(s)
			tt.when(d).Store(&lost)
			wantErr(t, s.CreateAuthSession(ctx, newSession("sid", "alice")), lost)
			if got := told.all(); len(got) != 1 || got[0].ID != "sid" || got[0].Seq != 0 {
				t.Errorf("told %+v at once, want the session with Seq 0", got)
			}
			must(t, s.poll(ctx))
			if got := told.all(); len(got) != tt.want {
				t.Errorf("told %d times in all, want %d", len(got), tt.want)
			}
		})
	}
}

func TestDoubtsAreForgotten(t *testing.T) {
	f := newFeed(0)
	for i := range 100 {
		f.doubt(fmt.Sprint(i), epoch.Add(time.Duration(i)*time.Minute), 5*time.Minute)
	}
	if got := len(f.unknown); got != 6 {
		t.Errorf("%d doubtful writes are remembered, want the 6 of the last 5 minutes", got)
	}
}

func TestFeedAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged syncBuffer
		d := &faulty{Driver: newMemory()}
		var jump atomic.Int64 // of the wall clock
		now := func() time.Time { return time.Now().Add(time.Duration(jump.Load())) }
		s := newStore(d, Options{Now: now, Logger: slog.New(slog.NewTextHandler(&logged, nil))}, 0)
		<-time.After(3 * time.Second) // of synctest
		age := s.FeedAge
		if got := age(); got != 3*time.Second {
			t.Errorf("before Follow: got %v, want the 3s since the opening", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Follow(ctx) }()
		synctest.Wait()
		if got := age(); got != 0 {
			t.Errorf("after the first read: got %v, want 0", got)
		}
		broken := errors.New("database is gone")
		d.log.Store(&broken)
		<-time.After(time.Minute) // of synctest
		synctest.Wait()
		for _, jumped := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
			jump.Store(int64(jumped))
			if got := age(); got != time.Minute {
				t.Errorf("after a minute of errors and a jump of the clock by %v: got %v, want 1m", jumped, got)
			}
		}
		d.log.Store(nil)
		<-time.After(2 * time.Second) // of synctest
		synctest.Wait()
		if got := age(); got != 0 {
			t.Errorf("after the recovery: got %v, want 0", got)
		}
		cancel()
		wantErr(t, <-ended, context.Canceled)
		if got := strings.Count(logged.String(), "\n"); got != 2 {
			t.Errorf("logged %d lines, want one for the failure and one for the recovery:\n%s", got, logged.String())
		}
	})
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
