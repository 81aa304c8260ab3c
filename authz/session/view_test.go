package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"gatehouse/authz/policy"
)

const (
	idle     = 12 * time.Hour
	absolute = 168 * time.Hour
	every    = idle / 20
)

var errDown = errors.New("connection refused")

// A fake is a Store that is told what to do. Its reads take a snapshot, then wait at the gate.
type fake struct {
	mu          sync.Mutex
	sessions    map[string]*Session
	subscribers []func(Change)
	reads       map[string]int
	touches     []string // id and time
	down        error
	gate        chan struct{} // nil: open
	touchGate   chan struct{}
	reading     int
	mostReading int
	onRead      func(id string) (s *Session, err error, handled bool)
}

func newFake(sessions ...*Session) *fake {
	f := &fake{sessions: map[string]*Session{}, reads: map[string]int{}}
	for _, s := range sessions {
		f.sessions[s.ID] = s
	}
	return f
}

func (f *fake) Session(ctx context.Context, id string) (*Session, error) {
	f.mu.Lock()
	f.reads[id]++
	f.reading++
	f.mostReading = max(f.mostReading, f.reading)
	s, err, gate, onRead := f.sessions[id], f.down, f.gate, f.onRead
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.reading--
		f.mu.Unlock()
	}()
	if onRead != nil {
		if s, err, handled := onRead(id); handled {
			return s, err
		}
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	switch {
	case err != nil:
		return nil, err
	case s == nil:
		return nil, ErrNotFound
	}
	return s, nil
}

func (f *fake) Touch(ctx context.Context, id string, at time.Time) (*Session, error) {
	f.mu.Lock()
	f.touches = append(f.touches, id+" "+at.Format(time.TimeOnly))
	old, err, gate := f.sessions[id], f.down, f.touchGate
	var s *Session
	switch {
	case err != nil:
	case old == nil:
		err = ErrNotFound
	default:
		next := *old
		next.LastActivity, next.IdleExpiry = at, at.Add(idle)
		s = &next
		f.sessions[id] = s
	}
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s, err
}

func (f *fake) Subscribe(g func(Change)) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subscribers = append(f.subscribers, g)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.subscribers = nil
	}
}

// set changes what is stored without telling.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) tell(c Change) {
	f.mu.Lock()
	subscribers := f.subscribers
	f.mu.Unlock()
	for _, g := range subscribers {
		g(c)
	}
}

func (f *fake) end(id string) {
	f.set(func() { delete(f.sessions, id) })
	f.tell(Change{Session: id})
}

func (f *fake) count(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads[id]
}

func (f *fake) touched() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.touches, ", ")
}

func newSession(id, user string, at time.Time) *Session {
	return &Session{
		ID: id, User: User{"ldap", user},
		Identity:   policy.Identity{Connector: "ldap", UserID: user, Expiry: at.Add(absolute)},
		SignedInAt: at, LastActivity: at, IdleExpiry: at.Add(idle), AbsoluteExpiry: at.Add(absolute),
	}
}

// inBubble runs f with a view of sessions signed in now, in a synctest bubble.
func inBubble(t *testing.T, ids string, f func(t *testing.T, store *fake, v *View)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := newFake()
		for id := range strings.FieldsSeq(ids) {
			user, _, _ := strings.Cut(id, "-")
			store.sessions[id] = newSession(id, user, time.Now())
		}
		v := NewView(store, Options{Idle: idle})
		f(t, store, v)
		if err := v.Close(t.Context()); err != nil {
			t.Error(err)
		}
		for _, sh := range v.shards {
			check(t, sh)
		}
	})
}

// check holds what must be true of a shard between two calls.
func check(t *testing.T, sh *shard) {
	t.Helper()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if len(sh.ring) != len(sh.entries) || len(sh.ring) > sh.capacity {
		t.Errorf("got %d in the ring, %d entries, capacity %d", len(sh.ring), len(sh.entries), sh.capacity)
	}
	for i, e := range sh.ring {
		if int(e.slot) != i || sh.entries[e.session.ID] != e {
			t.Errorf("entry %d is in slot %d or not in the map", i, e.slot)
		}
	}
	listed := 0
	for u, e := range sh.users {
		for prev := (*entry)(nil); e != nil; prev, e = e, e.next {
			if e.session.User != u || e.prev != prev || sh.entries[e.session.ID] != e {
				t.Errorf("list of %v is broken", u)
			}
			listed++
		}
	}
	if listed != len(sh.ring) {
		t.Errorf("got %d entries by user, want %d", listed, len(sh.ring))
	}
}

func wantLive(t *testing.T, v *View, id string) *Session {
	t.Helper()
	s, err := v.Lookup(t.Context(), id, time.Now())
	if err != nil || s == nil || s.ID != id {
		t.Fatalf("%s: got %v, %v, want it live", id, s, err)
	}
	return s
}

func wantError(t *testing.T, v *View, id string, want error) {
	t.Helper()
	if s, err := v.Lookup(t.Context(), id, time.Now()); s != nil || !errors.Is(err, want) {
		t.Errorf("%s: got %v, %v, want error %v", id, s, err, want)
	}
}

func wantUnavailable(t *testing.T, v *View, id string) {
	t.Helper()
	s, err := v.Lookup(t.Context(), id, time.Now())
	var unavailable *UnavailableError
	if s != nil || !errors.As(err, &unavailable) {
		t.Errorf("%s: got %v, %v, want an *UnavailableError", id, s, err)
	}
}

func TestLookupExpiry(t *testing.T) {
	tests := []struct {
		name   string
		change func(s *Session, now time.Time)
		want   error
	}{
		{"live", func(*Session, time.Time) {}, nil},
		{"at the absolute expiry", func(s *Session, now time.Time) { s.AbsoluteExpiry = now }, ErrNotFound},
		{"before the absolute expiry", func(s *Session, now time.Time) { s.AbsoluteExpiry = now.Add(1) }, nil},
		{"at the idle expiry", func(s *Session, now time.Time) { s.IdleExpiry = now }, ErrNotFound},
		{"before the idle expiry", func(s *Session, now time.Time) { s.IdleExpiry = now.Add(1) }, nil},
		{"no absolute expiry", func(s *Session, _ time.Time) { s.AbsoluteExpiry = time.Time{} }, ErrNotFound},
		{"no idle expiry", func(s *Session, _ time.Time) { s.IdleExpiry = time.Time{} }, ErrNotFound},
		{"blocked until later", func(s *Session, now time.Time) { s.BlockedUntil = now.Add(1) }, ErrBlocked},
		{"blocked until now", func(s *Session, now time.Time) { s.BlockedUntil = now }, nil},
		{"blocked and expired", func(s *Session, now time.Time) { s.BlockedUntil, s.AbsoluteExpiry = now.Add(1), now }, ErrNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
				tt.change(store.sessions["a"], time.Now())
				for _, from := range []string{"the store", "memory"} {
					s, err := v.Lookup(t.Context(), "a", time.Now())
					if !errors.Is(err, tt.want) || (err == nil) != (s != nil) {
						t.Errorf("from %s: got %v, %v, want %v", from, s, err, tt.want)
					}
				}
			})
		})
	}
}

func TestExpiryIsSeenInMemory(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		for range int(absolute/idle) * 2 { // in use all the time
			time.Sleep(idle / 2)
			if time.Now().Before(store.sessions["a"].AbsoluteExpiry) {
				wantLive(t, v, "a")
				synctest.Wait()
			}
		}
		wantError(t, v, "a", ErrNotFound)
	})
}

func TestReadsOnce(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		for range 3 {
			wantLive(t, v, "a")
			wantError(t, v, "b", ErrNotFound)
		}
		if a, b := store.count("a"), store.count("b"); a != 1 || b != 3 {
			t.Errorf("got %d reads of a known session and %d of an unknown one, want 1 and 3", a, b)
		}
		if got := v.Stats(); got.Size != 1 || got.Hits != 2 || got.Misses != 4 || got.Capacity < defaultCapacity {
			t.Errorf("got %+v", got)
		}
	})
}

func TestIDsThatCannotBeAreNotRead(t *testing.T) {
	inBubble(t, "", func(t *testing.T, store *fake, v *View) {
		for _, id := range []string{"", strings.Repeat("x", maxID+1)} {
			wantError(t, v, id, ErrNotFound)
			if got := store.count(id); got != 0 {
				t.Errorf("id of %d bytes: got %d reads, want 0", len(id), got)
			}
		}
	})
}

func TestOneReadForManyLookups(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		store.gate = make(chan struct{})
		first, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 11)
		lookup := func(ctx context.Context) {
			_, err := v.Lookup(ctx, "a", time.Now())
			errs <- err
		}
		go lookup(first)
		synctest.Wait()
		for range 10 {
			go lookup(t.Context())
		}
		synctest.Wait()
		cancel()
		var unavailable *UnavailableError
		if err := <-errs; !errors.As(err, &unavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("first: got %v, want an *UnavailableError of the cancelled context", err)
		}
		close(store.gate)
		for range 10 {
			if err := <-errs; err != nil {
				t.Errorf("others: got %v, want the session", err)
			}
		}
		if got := store.count("a"); got != 1 {
			t.Errorf("got %d reads, want 1", got)
		}
	})
}

func TestReadGoesOnWhenAllGiveUp(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		store.gate = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := v.Lookup(ctx, "a", time.Now()); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second-spare {
			t.Fatalf("got %v after %v, want a deadline error %v before 1s is over", err, time.Since(start), spare)
		}
		close(store.gate)
		synctest.Wait()
		wantLive(t, v, "a")
		if got := store.count("a"); got != 1 {
			t.Errorf("got %d reads, want 1", got)
		}
	})
}

// TestIDIsGoodDuringTheCallOnly pins that a read which outlives its caller does not refer to the caller's memory.
func TestIDIsGoodDuringTheCallOnly(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		store.gate = make(chan struct{})
		memory := []byte("a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := v.Lookup(ctx, unsafe.String(&memory[0], 1), time.Now()); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want a deadline error", err)
		}
		memory[0] = 'b'
		close(store.gate)
		synctest.Wait()
		wantLive(t, v, "a")
		if a, b := store.count("a"), store.count("b"); a != 1 || b != 0 || v.Stats().ReadErrors != 0 {
			t.Errorf("got %d reads of a, %d of b and %d errors, want 1, 0 and 0", a, b, v.Stats().ReadErrors)
		}
	})
}

func TestSlowReadCountsAgainstTheExpiry(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		store.sessions["a"].AbsoluteExpiry = time.Now().Add(2 * time.Second)
		store.gate = make(chan struct{})
		time.AfterFunc(2*time.Second, func() { close(store.gate) })
		wantError(t, v, "a", ErrNotFound)
	})
}

func TestReadsAreBounded(t *testing.T) {
	inBubble(t, "", func(t *testing.T, store *fake, v *View) {
		store.gate = make(chan struct{})
		var wg sync.WaitGroup
		for i := range 3 * maxReads {
			wg.Go(func() { wantError(t, v, fmt.Sprint(i), ErrNotFound) })
		}
		synctest.Wait()
		close(store.gate)
		wg.Wait()
		if store.mostReading != maxReads {
			t.Errorf("got %d reads at one time, want %d", store.mostReading, maxReads)
		}
	})
}

func TestChanges(t *testing.T) {
	const ids = "u-1 u-2 u-3 w-1 w-2"
	tests := []struct {
		name   string
		change Change
		want   string // read again
	}{
		{"a session", Change{Session: "u-2"}, "u-2"},
		{"a session and its user", Change{Session: "u-2", User: User{"ldap", "u"}}, "u-2"},
		{"a user", Change{User: User{"ldap", "u"}}, "u-1 u-2 u-3"},
		{"a user of another connector", Change{User: User{"local", "u"}}, ""},
		{"an unknown session", Change{Session: "u-9"}, ""},
		{"everything", Change{}, ids},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, ids, func(t *testing.T, store *fake, v *View) {
				for id := range strings.FieldsSeq(ids) {
					wantLive(t, v, id)
				}
				store.tell(tt.change)
				var again []string
				for id := range strings.FieldsSeq(ids) {
					wantLive(t, v, id)
					if store.count(id) == 2 {
						again = append(again, id)
					}
				}
				if got := strings.Join(again, " "); got != tt.want {
					t.Errorf("got %q read again, want %q", got, tt.want)
				}
			})
		})
	}
}

func TestEndedSessionIsDeadAtOnce(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		store.end("a")
		wantError(t, v, "a", ErrNotFound)
	})
}

// A read that began before a change must not bring back what was before it.
func TestChangeDuringRead(t *testing.T) {
	many := func(store *fake) {
		for i := range maxFlightUsers + 1 {
			store.tell(Change{User: User{"ldap", fmt.Sprint(i)}})
		}
	}
	tests := []struct {
		name   string
		change func(store *fake)
		reads  int
		want   error
	}{
		{"session ended", func(store *fake) { store.end("u-1") }, 2, ErrNotFound},
		{"user ended", func(store *fake) {
			store.set(func() { delete(store.sessions, "u-1") })
			store.tell(Change{User: User{"ldap", "u"}})
		}, 2, ErrNotFound},
		{"everything ended", func(store *fake) {
			store.set(func() { clear(store.sessions) })
			store.tell(Change{})
		}, 2, ErrNotFound},
		{"user blocked", func(store *fake) {
			store.set(func() {
				s := *store.sessions["u-1"]
				s.BlockedUntil = time.Now().Add(time.Hour)
				store.sessions["u-1"] = &s
			})
			store.tell(Change{User: User{"ldap", "u"}})
		}, 2, ErrBlocked},
		{"another session", func(store *fake) { store.tell(Change{Session: "u-2"}) }, 1, nil},
		{"another user", func(store *fake) { store.tell(Change{User: User{"ldap", "w"}}) }, 1, nil},
		{"more users than are remembered", many, 2, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, "u-1", func(t *testing.T, store *fake, v *View) {
				store.gate = make(chan struct{})
				result := make(chan error, 1)
				go func() {
					_, err := v.Lookup(t.Context(), "u-1", time.Now())
					result <- err
				}()
				synctest.Wait() // the store has taken its snapshot
				tt.change(store)
				close(store.gate)
				if err := <-result; !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				if got := store.count("u-1"); got != tt.reads {
					t.Errorf("got %d reads, want %d", got, tt.reads)
				}
				if _, err := v.Lookup(t.Context(), "u-1", time.Now()); !errors.Is(err, tt.want) {
					t.Errorf("afterwards: got %v, want %v", err, tt.want)
				}
			})
		})
	}
}

// A session that is created while it is looked up was not found by a read that came too early.
func TestCreatedDuringRead(t *testing.T) {
	inBubble(t, "", func(t *testing.T, store *fake, v *View) {
		store.gate = make(chan struct{})
		go func() {
			store.set(func() { store.sessions["a"] = newSession("a", "u", time.Now()) })
			store.tell(Change{Session: "a"})
			close(store.gate)
		}()
		wantLive(t, v, "a")
	})
}

func TestEndlessChangesAreNoEndlessRead(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		store.onRead = func(string) (*Session, error, bool) {
			time.Sleep(100 * time.Millisecond)
			store.tell(Change{Session: "a"})
			return nil, nil, false
		}
		start := time.Now()
		wantUnavailable(t, v, "a")
		if got := time.Since(start); got < readTimeout || got > readTimeout+time.Second {
			t.Errorf("got an answer after %v, want %v", got, readTimeout)
		}
	})
}

func TestIdleDeathAsksOnce(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		time.Sleep(idle)
		store.set(func() { // another replica saw activity, which is no change
			s := *store.sessions["a"]
			s.LastActivity, s.IdleExpiry = time.Now(), time.Now().Add(time.Hour)
			store.sessions["a"] = &s
		})
		wantLive(t, v, "a")
		wantLive(t, v, "a")
		if got := store.count("a"); got != 2 {
			t.Errorf("extended elsewhere: got %d reads, want 2", got)
		}
		time.Sleep(time.Hour)
		wantError(t, v, "a", ErrNotFound)
		if got := store.count("a"); got != 3 {
			t.Errorf("idle: got %d reads, want 3", got)
		}
		if got := v.Stats().Size; got != 0 {
			t.Errorf("got %d sessions in memory, want the dead one gone", got)
		}
	})
}

func TestStoreDown(t *testing.T) {
	inBubble(t, "a b c", func(t *testing.T, store *fake, v *View) {
		for _, id := range []string{"a", "b"} {
			wantLive(t, v, id)
		}
		store.set(func() { store.down = errDown })
		wantUnavailable(t, v, "c")
		start := time.Now()
		for time.Since(start) < 2*idle { // a is in use, b is not
			wantLive(t, v, "a")
			time.Sleep(idle / 3)
		}
		reads := store.count("a")
		for range 5 {
			wantLive(t, v, "a")
		}
		if got := store.count("a") - reads; got != 1 {
			t.Errorf("got %d reads for 5 lookups of an idle session, want 1", got)
		}
		wantUnavailable(t, v, "b")
		store.set(func() { store.down = nil })
		time.Sleep(graceStep)
		wantError(t, v, "b", ErrNotFound)
		time.Sleep(absolute)
		store.set(func() { store.down = errDown })
		wantError(t, v, "a", ErrNotFound)
		if got := v.Stats().ReadErrors; got == 0 {
			t.Error("got no read errors, want some")
		}
	})
}

func TestKnownSessionsGoOnUntilTheAbsoluteExpiry(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		store.set(func() { store.down = errDown })
		start := time.Now()
		for {
			time.Sleep(time.Hour)
			if time.Since(start) >= absolute {
				break
			}
			wantLive(t, v, "a")
		}
		wantError(t, v, "a", ErrNotFound)
	})
}

func TestEndedSessionDoesNotGoOn(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		store.set(func() { store.down = errDown })
		store.tell(Change{Session: "a"})
		wantUnavailable(t, v, "a")
	})
}

func TestStoreThatLies(t *testing.T) {
	tests := []struct {
		name string
		read func(string) (*Session, error, bool)
	}{
		{"nothing and no error", func(string) (*Session, error, bool) { return nil, nil, true }},
		{"another session", func(string) (*Session, error, bool) { return newSession("b", "u", time.Now()), nil, true }},
		{"a session and an error", func(id string) (*Session, error, bool) { return newSession(id, "u", time.Now()), errDown, true }},
		{"a panic", func(string) (*Session, error, bool) { panic("index out of range") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
				store.onRead = tt.read
				wantUnavailable(t, v, "a")
				if got := v.Stats().Size; got != 0 {
					t.Errorf("got %d sessions in memory, want 0", got)
				}
			})
		})
	}
}

func TestCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFake()
		v := NewView(store, Options{Capacity: 100, Idle: idle})
		for i := range 1000 {
			id := fmt.Sprintf("%d-x", i)
			store.set(func() { store.sessions[id] = newSession(id, "u", time.Now()) })
			wantLive(t, v, id)
			wantLive(t, v, "0-x") // in use all the time
		}
		got := v.Stats()
		if got.Size != 100 || got.Capacity != 100 || got.Evictions < 900 {
			t.Errorf("got %+v, want 100 sessions in memory", got)
		}
		if reads := store.count("0-x"); reads > 20 {
			t.Errorf("got %d reads of a session in use, want it to stay in memory", reads)
		}
		store.tell(Change{User: User{"ldap", "u"}})
		if got := v.Stats().Size; got != 0 {
			t.Errorf("got %d sessions after all of them changed, want 0", got)
		}
		if err := v.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFake(newSession("a", "u", time.Now()))
		v := NewView(store, Options{Idle: idle})
		wantLive(t, v, "a")
		for range 2 {
			if err := v.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		wantError(t, v, "a", ErrClosed)
		wantError(t, v, "b", ErrClosed)
		wantUnavailable(t, v, "a")
		if len(store.subscribers) != 0 {
			t.Error("still subscribed after Close")
		}
	})
}

func TestCloseDuringRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFake(newSession("a", "u", time.Now()))
		store.gate = make(chan struct{})
		v := NewView(store, Options{Idle: idle})
		go wantUnavailable(t, v, "a")
		synctest.Wait()
		if err := v.Close(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := v.Stats().Size; got != 0 {
			t.Errorf("got %d sessions in memory, want 0", got)
		}
	})
}

// A lookup whose read had just ended when the view was closed is refused: its activity would wait for nobody.
func TestCloseAfterRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewView(newFake(newSession("a", "u", time.Now())), Options{Idle: idle})
		s := wantLive(t, v, "a")
		if err := v.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if got, err := v.shard("a").admit(s, time.Now().Add(every)); got != nil || !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, %v, want error %v", got, err, ErrClosed)
		}
		if n := len(v.touches); n != 0 {
			t.Errorf("got %d touches left after Close, want 0", n)
		}
	})
}

func TestStoreFaultsAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		store := newFake(newSession("a", "u", time.Now()))
		v := NewView(store, Options{Idle: idle, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		wantLive(t, v, "a")
		store.set(func() { store.down = errDown })
		for range 3 {
			time.Sleep(every)
			wantLive(t, v, "a")
			synctest.Wait()
		}
		store.set(func() { store.down = nil })
		time.Sleep(every)
		wantLive(t, v, "a")
		if err := v.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if got := strings.Count(log.String(), "\n"); got != 2 {
			t.Errorf("got %d lines, want one for the fault and one for its end:\n%s", got, log.String())
		}
	})
}

// TestCompact pins that a compacted session says the same, from memory of its own, and leaves out what was made of the old one.
func TestCompact(t *testing.T) {
	now := time.Now()
	old := &Session{
		ID: "id", User: User{"ldap", "u"}, SignedInAt: now, LastActivity: now, IdleExpiry: now, AbsoluteExpiry: now, BlockedUntil: now, Voucher: &clerk{},
		Identity: policy.Identity{
			Connector: "ldap", UserID: "u", Email: "a@example.com", Name: "A", PreferredUsername: "", Groups: []string{"g", "", "hh"}, Expiry: now,
		},
	}
	got := old.compact()
	if !reflect.DeepEqual(got, old) {
		t.Errorf("got %+v, want %+v", got, old)
	}
	if got.Identity.Groups[0] = "x"; old.Identity.Groups[0] != "g" {
		t.Error("the groups are those of the old session")
	}
	old.Memo.Store("made")
	if old.compact().Memo.Load() != nil {
		t.Error("what was made of the old session is kept")
	}
	if empty := (&Session{ID: "i"}).compact(); empty.Identity.Groups != nil || empty.ID != "i" {
		t.Errorf("got %+v", empty)
	}
	fields := reflect.TypeFor[Session]().NumField()
	if fields != 10 {
		t.Errorf("a session has %d fields, and compact copies 10", fields)
	}
}
