package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"gatehouse/provider/store"
)

// FollowOptions are those of the stores of FollowTellsTheChangesOfOthersOnce.
func FollowOptions() store.Options { return store.Options{FeedInterval: time.Millisecond} }

// FollowTellsTheChangesOfOthersOnce tests two processes on one database, both writing and following.
func FollowTellsTheChangesOfOthersOnce(t *testing.T, a, b *store.Store) {
	t.Helper()
	const workers, each = 8, 25
	t.Run("run", func(t *testing.T) {
		ctx := t.Context()
		must(t, a.CreateAuthSession(ctx, newSession("before", "alice"))) // after opening, before Follow
		ofA, ofB := record(a), record(b)
		follow(t, a)
		follow(t, b)
		inParallel(t, workers, func(w int) error {
			for i := range each {
				s := a
				if (w+i)%2 == 0 {
					s = b
				}
				if err := s.CreateAuthSession(ctx, newSession(fmt.Sprintf("%d-%d", w, i), "alice")); err != nil {
					return err
				}
			}
			return nil
		})
		must(t, b.CreateAuthSession(ctx, newSession("last of b", "alice")))
		must(t, a.CreateAuthSession(ctx, newSession("last of a", "alice")))
		const all = workers*each + 2
		ofA.wait(ctx, t, all)
		ofB.wait(ctx, t, all+1)
		// What would be told twice comes in the order of the log: once these are told, it has been.
		must(t, b.DeleteAuthSession(ctx, "last of b"))
		must(t, a.DeleteAuthSession(ctx, "last of a"))
		checkOnce(t, "a", ofA.wait(ctx, t, all+2), all+2)
		checkOnce(t, "b", ofB.wait(ctx, t, all+3), all+3)
	})
}

func checkOnce(t *testing.T, who string, got []store.Change, want int) {
	t.Helper()
	seen := map[int64]int{}
	for _, c := range got {
		if seen[c.Seq]++; seen[c.Seq] == 2 {
			t.Errorf("%s: change %d (%s) was told twice", who, c.Seq, c.ID)
		}
	}
	if len(seen) != want {
		t.Errorf("%s: told %d changes, want %d", who, len(seen), want)
	}
}

// follow runs Follow until the test ends.
func follow(t *testing.T, s *store.Store) {
	t.Helper()
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

// A recorder collects changes.
type recorder struct {
	mu  sync.Mutex
	got []store.Change
	new chan struct{}
}

func record(s *store.Store) *recorder {
	r := &recorder{new: make(chan struct{}, 1)}
	s.Subscribe(func(c store.Change) {
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

func (r *recorder) all() []store.Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]store.Change(nil), r.got...)
}

// wait waits until n changes have been told.
func (r *recorder) wait(ctx context.Context, t *testing.T, n int) []store.Change {
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
			t.Fatalf("got %d changes, want %d", len(r.all()), n)
		}
	}
}
