package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTouchInterval(t *testing.T) {
	tests := []struct {
		name       string
		idle, want time.Duration
	}{
		{"a twentieth", 12 * time.Hour, 36 * time.Minute},
		{"no more than once a minute", 10 * time.Minute, time.Minute},
		{"twice in a short idle time", 30 * time.Second, 15 * time.Second},
		{"unknown idle time", 0, time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := touchInterval(tt.idle); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestActivityIsWrittenOncePerInterval(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		start := time.Now()
		for time.Since(start) < 2*every+time.Minute {
			wantLive(t, v, "a")
			time.Sleep(time.Minute)
		}
		want := "a " + start.Add(every).Format(time.TimeOnly) + ", a " + start.Add(2*every).Format(time.TimeOnly)
		if got := store.touched(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got, want := wantLive(t, v, "a").IdleExpiry, start.Add(2*every+idle); !got.Equal(want) {
			t.Errorf("got idle expiry %v in memory, want %v", got, want)
		}
	})
}

func TestActivityOfTheFirstLookupIsWritten(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		time.Sleep(every)
		wantLive(t, v, "a")
		synctest.Wait()
		if got, want := store.touched(), "a "+time.Now().Format(time.TimeOnly); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestActivityIsWrittenAfterTheClockWasSetBack(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		for _, back := range []time.Duration{every - time.Millisecond, every} {
			if _, err := v.Lookup(t.Context(), "a", time.Now().Add(-back)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if got, want := store.touched(), "a "+time.Now().Add(-every).Format(time.TimeOnly); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestActivityKeepsTheMemo(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, _ *fake, v *View) {
		before := wantLive(t, v, "a")
		before.Memo.Store("made")
		time.Sleep(every)
		wantLive(t, v, "a")
		synctest.Wait()
		if after := wantLive(t, v, "a"); after == before || after.Memo.Load() != "made" {
			t.Errorf("another session %v, with %v, want one with what was made before", after != before, after.Memo.Load())
		}
	})
}

func TestRefusedRequestIsNoActivity(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		store.sessions["a"].BlockedUntil = time.Now().Add(absolute)
		time.Sleep(every)
		wantError(t, v, "a", ErrBlocked)
		wantError(t, v, "a", ErrBlocked)
		synctest.Wait()
		if got := store.touched(); got != "" {
			t.Errorf("got %q, want nothing", got)
		}
	})
}

func TestTouchEndsASession(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		store.set(func() { delete(store.sessions, "a") }) // collected: no change is told
		time.Sleep(every)
		wantLive(t, v, "a")
		synctest.Wait()
		wantError(t, v, "a", ErrNotFound)
	})
}

func TestBlockedStoreBlocksNoLookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = touchQueue + touchWorkers + 10
		store := newFake()
		for i := range n {
			id := fmt.Sprint(i)
			store.sessions[id] = newSession(id, "u", time.Now())
		}
		v := NewView(store, Options{Idle: idle})
		for i := range n {
			wantLive(t, v, fmt.Sprint(i))
		}
		store.touchGate = make(chan struct{})
		time.Sleep(every)
		start := time.Now()
		for i := range n {
			wantLive(t, v, fmt.Sprint(i))
			if i < touchWorkers {
				synctest.Wait() // until a worker is blocked with it
			}
		}
		if got := time.Since(start); got != 0 {
			t.Errorf("lookups waited %v", got)
		}
		if got := v.Stats().TouchesDropped; got != 10 {
			t.Errorf("got %d dropped, want 10", got)
		}
		close(store.touchGate)
		synctest.Wait()
		for i := range n {
			wantLive(t, v, fmt.Sprint(i))
		}
		if err := v.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if got := len(store.touches); got != n {
			t.Errorf("got %d touches, want %d: a dropped one is tried again", got, n)
		}
	})
}

func TestTouchResultAfterAChangeIsNotKept(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		time.Sleep(every)
		store.touchGate = make(chan struct{})
		wantLive(t, v, "a")
		synctest.Wait() // the store has touched the session, and the answer is on its way
		store.end("a")
		wantError(t, v, "a", ErrNotFound)
		close(store.touchGate)
		synctest.Wait()
		wantError(t, v, "a", ErrNotFound)
	})
}

func TestTouchResultDoesNotReplaceWhatWasReadSince(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		time.Sleep(every)
		store.touchGate = make(chan struct{})
		wantLive(t, v, "a")
		synctest.Wait()
		store.set(func() {
			s := *store.sessions["a"]
			s.BlockedUntil = time.Now().Add(time.Hour)
			store.sessions["a"] = &s
		})
		store.tell(Change{User: User{"ldap", "a"}})
		wantError(t, v, "a", ErrBlocked)
		close(store.touchGate)
		synctest.Wait()
		wantError(t, v, "a", ErrBlocked)
	})
}

func TestFailedTouchIsTriedAgainInAMinute(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		wantLive(t, v, "a")
		time.Sleep(every)
		store.set(func() { store.down = errDown })
		var want []string
		for range 3 {
			want = append(want, "a "+time.Now().Format(time.TimeOnly))
			for range 6 {
				wantLive(t, v, "a")
				synctest.Wait()
				time.Sleep(10 * time.Second)
			}
		}
		if got := store.touched(); got != strings.Join(want, ", ") {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := v.Stats().TouchErrors; got != 3 {
			t.Errorf("got %d touch errors, want 3", got)
		}
	})
}

func TestTouchThatHangsIsGivenUp(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		store.touchGate = make(chan struct{})
		time.Sleep(every)
		wantLive(t, v, "a")
		time.Sleep(touchTimeout)
		synctest.Wait()
		if got := v.Stats().TouchErrors; got != 1 {
			t.Errorf("got %d touch errors, want 1", got)
		}
	})
}

func TestCloseWritesWhatWaits(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(fmt.Sprintf("hangs=%v", hangs), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 100
				store := newFake()
				for i := range n {
					id := fmt.Sprint(i)
					store.sessions[id] = newSession(id, "u", time.Now())
				}
				v := NewView(store, Options{Idle: idle})
				time.Sleep(every)
				store.touchGate = make(chan struct{})
				for i := range n {
					wantLive(t, v, fmt.Sprint(i))
				}
				if !hangs {
					time.AfterFunc(time.Second, func() { close(store.touchGate) })
				}
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				err := v.Close(ctx)
				switch {
				case hangs && !errors.Is(err, context.DeadlineExceeded):
					t.Errorf("got %v, want a deadline error", err)
				case !hangs && (err != nil || len(store.touches) != n):
					t.Errorf("got %v and %d touches, want nil and %d", err, len(store.touches), n)
				}
				synctest.Wait()
				if err := v.Close(t.Context()); err != nil {
					t.Errorf("second Close: got %v", err)
				}
			})
		})
	}
}

func TestTouchResultsMayOvertakeEachOther(t *testing.T) {
	inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
		old := wantLive(t, v, "a")
		sh := v.shard("a")
		newer := *old
		newer.LastActivity = old.LastActivity.Add(every)
		done := touch{sh, sh.entries["a"], "a", newer.LastActivity}
		sh.touched(done, &newer, nil)
		sh.touched(done, old, nil)
		if got := wantLive(t, v, "a"); got != &newer {
			t.Errorf("got activity of %v in memory, want %v", got.LastActivity, newer.LastActivity)
		}
	})
}
