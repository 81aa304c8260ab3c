package session

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const grace = 10 * time.Minute

// silent returns a view of a store that has been silent for as long as the test says, and what is logged.
func silent(t *testing.T, store *fake) (v *View, silence *atomic.Int64, log *bytes.Buffer) {
	t.Helper()
	silence, log = new(atomic.Int64), new(bytes.Buffer)
	v = NewView(store, Options{
		Idle: idle, Silence: func() time.Duration { return time.Duration(silence.Load()) }, Grace: grace,
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	t.Cleanup(func() { _ = v.Close(t.Context()) })
	return v, silence, log
}

func TestSilence(t *testing.T) {
	at := time.Now()
	store := newFake(newSession("known", "alice", at), newSession("new", "bob", at))
	v, silence, log := silent(t, store)
	verified := func(id string) error {
		_, err := v.Lookup(t.Context(), id, at)
		return err
	}
	refused := func(id string) bool {
		var unavailable *UnavailableError
		err := verified(id)
		return errors.As(err, &unavailable) && errors.Is(err, ErrSilent)
	}
	if err := verified("known"); err != nil {
		t.Fatal(err)
	}
	silence.Store(int64(grace))
	if err := verified("known"); err != nil {
		t.Errorf("at the end of the grace: got %v", err)
	}
	silence.Store(int64(grace + 1))
	for range 3 {
		for _, id := range []string{"known", "new", "unknown"} {
			if !refused(id) {
				t.Errorf("session %q after the grace: got %v, want ErrSilent", id, verified(id))
			}
		}
	}
	if n := store.count("new"); n != 0 {
		t.Errorf("the silent store was read %d times for a session that is refused anyway", n)
	}
	v.SetGrace(2 * grace)
	if err := verified("known"); err != nil {
		t.Errorf("with a longer grace: got %v", err)
	}
	v.SetGrace(grace)
	if !refused("known") {
		t.Error("with a shorter grace again: the session is verified")
	}
	silence.Store(0)
	for _, id := range []string{"known", "new"} {
		if err := verified(id); err != nil {
			t.Errorf("session %q once the store is heard of: got %v", id, err)
		}
	}
	if err := verified("unknown"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown session once the store is heard of: got %v", err)
	}
	if got, want := strings.Count(log.String(), "level=ERROR"), 2; got != want {
		t.Errorf("got %d errors in the log, want one for each silence, %d: %s", got, want, log)
	}
	if got, want := strings.Count(log.String(), "heard of again"), 2; got != want {
		t.Errorf("got %d ends of a silence in the log, want %d: %s", got, want, log)
	}
}

// The clock of requests is set ten minutes forwards and backwards: sessions live by it, but the silence does not.
func TestClockJumpsAreNoSilence(t *testing.T) {
	at := time.Now()
	store := newFake(newSession("known", "alice", at))
	v, silence, _ := silent(t, store)
	silence.Store(int64(2 * time.Second))
	for _, jump := range []time.Duration{0, 10 * time.Minute, 0, -10 * time.Minute, 0} {
		if _, err := v.Lookup(t.Context(), "known", at.Add(jump)); err != nil {
			t.Errorf("the clock jumps by %v: got %v, want the session", jump, err)
		}
	}
	silence.Store(int64(grace + time.Second))
	for _, jump := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
		if _, err := v.Lookup(t.Context(), "known", at.Add(jump)); !errors.Is(err, ErrSilent) {
			t.Errorf("silent, and the clock jumps by %v: got %v, want ErrSilent", jump, err)
		}
	}
}

func TestSilenceAllocations(t *testing.T) {
	v, ids := filled(t, 1000)
	opened := time.Now()
	v.silence = func() time.Duration { return time.Since(opened) }
	v.SetGrace(time.Hour)
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

// BenchmarkSilence is what it costs to look at the silence: a lookup with and without.
func BenchmarkSilence(b *testing.B) {
	for _, looks := range []bool{false, true} {
		b.Run(fmt.Sprintf("looks=%t", looks), func(b *testing.B) {
			v, ids := filled(b, 1000)
			if opened := time.Now(); looks {
				v.silence = func() time.Duration { return time.Since(opened) }
				v.SetGrace(time.Hour)
			}
			at, ctx := time.Now(), b.Context()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := v.Lookup(ctx, ids[i%len(ids)], at); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}
