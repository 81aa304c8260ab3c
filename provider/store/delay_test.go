package store

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
)

// TestDelaysAreOfOtherProcesses: what this process changes is known at once, and counts for nothing.
func TestDelaysAreOfOtherProcesses(t *testing.T) {
	d, skew := newMemory(), time.Duration(0)
	here := newStore(d, Options{Now: func() time.Time { return epoch.Add(3 * time.Second) }}, 0)
	other := newStore(d, Options{Now: func() time.Time { return epoch.Add(skew) }}, 0)
	must(t, here.CreateClient(t.Context(), storage.Client{ID: "nobody counts yet"}))
	must(t, here.poll(t.Context()))
	var seen []time.Duration
	here.ObserveDelays(func(ago time.Duration) { seen = append(seen, ago) })
	must(t, here.CreateClient(t.Context(), storage.Client{ID: "own"}))
	must(t, other.CreateClient(t.Context(), storage.Client{ID: "1"}))
	skew = time.Hour // a clock that is ahead
	must(t, other.CreateClient(t.Context(), storage.Client{ID: "2"}))
	must(t, here.poll(t.Context()))
	must(t, here.poll(t.Context()))
	if want := []time.Duration{3 * time.Second, 0}; !slices.Equal(seen, want) {
		t.Errorf("got delays %v, want %v", seen, want)
	}
}

// TestWriteFailuresAreOfTheDatabase: neither an answer that says no, nor a caller who went away, is one.
func TestWriteFailuresAreOfTheDatabase(t *testing.T) {
	d := &faulty{Driver: newMemory()}
	s := newStore(d, Options{}, 0)
	must(t, s.CreateClient(t.Context(), storage.Client{ID: "1"}))
	wantErr(t, s.CreateClient(t.Context(), storage.Client{ID: "1"}), storage.ErrAlreadyExists)
	broken := errors.New("disk full")
	d.before.Store(&broken)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, s.CreateClient(gone, storage.Client{ID: "2"}), broken)
	if n := s.WriteFailures(); n != 0 {
		t.Errorf("%d failures of a database that is well", n)
	}
	wantErr(t, s.CreateClient(t.Context(), storage.Client{ID: "2"}), broken)
	if n := s.WriteFailures(); n != 1 {
		t.Errorf("%d failures, want 1", n)
	}
}
