package session

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A versioned store counts the changes of each session: a lookup must never return a version older than one
// that was announced before the lookup began.
type versioned struct {
	start     time.Time
	mu        sync.Mutex
	stored    []int64
	announced []atomic.Int64
	f         func(Change)
	touches   atomic.Int64
}

func (s *versioned) session(i int) *Session {
	r := newSession(strconv.Itoa(i), fmt.Sprint("user", i%5), s.start)
	r.Identity.Name = strconv.FormatInt(s.stored[i], 10)
	return r
}

func (s *versioned) Session(_ context.Context, id string) (*Session, error) {
	i, err := strconv.Atoi(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	r := s.session(i)
	s.mu.Unlock()
	runtime.Gosched()
	return r, nil
}

func (s *versioned) Touch(ctx context.Context, id string, at time.Time) (*Session, error) {
	r, err := s.Session(ctx, id)
	if err != nil {
		return nil, err
	}
	s.touches.Add(1)
	r.LastActivity, r.IdleExpiry = at, at.Add(idle)
	return r, nil
}

func (s *versioned) Subscribe(f func(Change)) func() {
	s.f = f
	return func() {}
}

// change changes the sessions that are congruent to i modulo step, and announces it.
func (s *versioned) change(i, step int, c Change) {
	s.mu.Lock()
	versions := map[int]int64{}
	for ; i < len(s.stored); i += step {
		s.stored[i]++
		versions[i] = s.stored[i]
	}
	s.mu.Unlock()
	s.f(c)
	for i, v := range versions {
		for old := s.announced[i].Load(); old < v && !s.announced[i].CompareAndSwap(old, v); old = s.announced[i].Load() {
		}
	}
}

func TestNoLookupIsOlderThanAChange(t *testing.T) {
	const n, lookups = 200, 20_000
	store := &versioned{start: time.Now(), stored: make([]int64, n), announced: make([]atomic.Int64, n)}
	v := NewView(store, Options{Capacity: n * 3 / 4, Idle: idle}) // some are evicted
	stop := make(chan struct{})
	var changers, readers sync.WaitGroup
	for seed := range 2 {
		changers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(seed), 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				switch i := random.IntN(n); random.IntN(10) {
				case 0:
					store.change(0, 1, Change{})
				case 1, 2:
					store.change(i%5, 5, Change{User: User{"ldap", fmt.Sprint("user", i%5)}})
				default:
					store.change(i, n, Change{Session: strconv.Itoa(i)})
				}
				runtime.Gosched()
			}
		})
	}
	for seed := range 4 {
		readers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(seed), 2))
			for k := range lookups {
				i := random.IntN(n)
				want := store.announced[i].Load()
				at := store.start.Add(time.Duration(k) * time.Second) // activity is due again and again
				s, err := v.Lookup(t.Context(), strconv.Itoa(i), at)
				if err != nil {
					t.Errorf("session %d: %v", i, err)
					return
				}
				if got, err := strconv.ParseInt(s.Identity.Name, 10, 64); err != nil || got < want {
					t.Errorf("session %d: got version %d after version %d was announced", i, got, want)
					return
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	changers.Wait()
	if err := v.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, sh := range v.shards {
		check(t, sh)
	}
	if got := v.Stats(); got.Hits == 0 || got.Misses == 0 || store.touches.Load() == 0 {
		t.Errorf("got %+v and %d touches: the test compares nothing", got, store.touches.Load())
	}
}

func TestConcurrentClose(t *testing.T) {
	store := &versioned{start: time.Now(), stored: make([]int64, 100), announced: make([]atomic.Int64, 100)}
	v := NewView(store, Options{Idle: idle})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				_, err := v.Lookup(t.Context(), strconv.Itoa(i%100), store.start.Add(every))
				var unavailable *UnavailableError
				if errors.As(err, &unavailable) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for store.touches.Load() == 0 {
		runtime.Gosched()
	}
	if err := v.Close(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if n := len(v.touches); n != 0 {
		t.Errorf("got %d touches left after Close, want 0", n)
	}
}

// fresh is a Voucher whose user has been vouched for, of about the size of the real one.
type fresh struct {
	next atomic.Int64
	_    [14]int64
}

func (f *fresh) Vouch(_ context.Context, _, now time.Time) (bool, error) {
	if now.UnixMilli() < f.next.Load() {
		return false, nil
	}
	return false, ErrNotFound
}

// filled returns a view that knows n sessions, and their ids.
func filled(tb testing.TB, n int) (*View, []string) {
	tb.Helper()
	store := newFake()
	ids := make([]string, n)
	at := time.Now()
	var vouched *fresh // of both sessions of a user
	for i := range ids {
		ids[i] = fmt.Sprintf("session-%032d", i)
		store.sessions[ids[i]] = newSession(ids[i], fmt.Sprint(i/2), at)
		if i%2 == 0 {
			vouched = &fresh{}
			vouched.next.Store(1 << 62)
		}
		store.sessions[ids[i]].Voucher = vouched
	}
	v := NewView(store, Options{Capacity: 2 * n, Idle: idle})
	for _, id := range ids {
		if _, err := v.Lookup(tb.Context(), id, at); err != nil {
			tb.Fatal(err)
		}
	}
	tb.Cleanup(func() {
		if err := v.Close(context.WithoutCancel(tb.Context())); err != nil {
			tb.Error(err)
		}
	})
	rand.Shuffle(n, func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return v, ids
}

func TestLookupAllocations(t *testing.T) {
	v, ids := filled(t, 1000)
	i, at := 0, time.Now()
	got := testing.AllocsPerRun(500, func() {
		if _, err := v.Lookup(t.Context(), ids[i%len(ids)], at); err != nil {
			t.Error(err)
		}
		i++
	})
	if got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("sessions=%d", n), func(b *testing.B) {
			v, ids := filled(b, n)
			at, ctx := time.Now(), b.Context()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := v.Lookup(ctx, ids[i%n], at); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
		b.Run(fmt.Sprintf("sessions=%d/parallel", n), func(b *testing.B) {
			v, ids := filled(b, n)
			at, ctx := time.Now(), b.Context()
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := rand.IntN(n); pb.Next(); i++ {
					if _, err := v.Lookup(ctx, ids[i%n], at); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkUserChange(b *testing.B) {
	v, _ := filled(b, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		v.changed(Change{User: User{"ldap", "nobody"}})
	}
}
