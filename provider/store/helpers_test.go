package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"

	"gatehouse/test/peers"
)

// childEnv names what a child process that is this test binary does instead of testing, with the files in its
// working directory.
const childEnv = "GATEHOUSE_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	var err error
	switch what := os.Getenv(childEnv); what {
	case "":
		code := m.Run()
		if err := shared.stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	case "confirm":
		err = childConfirms(os.Stdout)
	case "unprivileged":
		err = childOpensUnprivileged(os.Stdout)
	default:
		err = fmt.Errorf("no such child: %q", what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// onBoth runs a test on each backend.
func onBoth(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Helper()
	for name, open := range stores() {
		t.Run(name, func(t *testing.T) {
			s := open(t, Options{})
			s.queue.patience = time.Hour // the machine may be busy
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			test(t, s)
		})
	}
}

func stores() map[string]func(testing.TB, Options) *Store {
	return map[string]func(testing.TB, Options) *Store{
		"memory":   func(_ testing.TB, o Options) *Store { return Memory(o) },
		"sqlite":   func(t testing.TB, o Options) *Store { return openFile(t, filepath.Join(t.TempDir(), "g.db"), o) },
		"postgres": func(t testing.TB, o Options) *Store { return openDatabase(t, newDatabase(t), o) },
		"etcd": func(t testing.TB, o Options) *Store {
			return openEtcdStore(t, etcdAt(peers.Etcd(t, peers.EtcdOptions{})), o)
		},
	}
}

func openFile(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := OpenSQLite(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
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

var epoch = time.Date(2026, 8, 6, 12, 0, 0, 0, time.UTC)

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

// A recorder collects changes.
type recorder struct {
	mu  sync.Mutex
	got []Change
	new chan struct{}
}

func record(s *Store) *recorder {
	r := &recorder{new: make(chan struct{}, 1)}
	s.Subscribe(func(c Change) {
		r.mu.Lock()
		r.got = append(r.got, c)
		r.mu.Unlock()
		select {
		case r.new <- struct{}{}:
		default:
		}
	})
	return r
}

// all returns what has been told so far, without times and origins.
func (r *recorder) all() []Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Change, 0, len(r.got))
	for _, c := range r.got {
		c.At, c.Origin = time.Time{}, ""
		out = append(out, c)
	}
	return out
}

// wait waits until n changes have been told.
func (r *recorder) wait(ctx context.Context, t *testing.T, n int) []Change {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if got := r.all(); len(got) >= n {
			return got
		}
		select {
		case <-r.new:
		case <-ctx.Done():
			t.Fatalf("got %d changes, want %d: %+v", len(r.all()), n, r.all())
		}
	}
}
