package main

import (
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/authz/session"
	"gatehouse/provider/store"
	"gatehouse/provider/store/storetest"
	"gatehouse/test/peers"
)

// A callDriver counts the calls about sessions and users: keys and the outbox are looked at by the clock.
type callDriver struct {
	store.Driver

	reads, lists, writes atomic.Int64
}

func isOfUsers(k store.Kind) bool { return k == store.KindSession || k == store.KindIdentity }

// Read implements store.Backend.
func (d *callDriver) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if isOfUsers(kind) {
		d.reads.Add(1)
	}
	return d.Driver.Read(ctx, kind, id)
}

// Scan implements store.Backend.
func (d *callDriver) Scan(ctx context.Context, q store.Query) iter.Seq2[store.Record, error] {
	if isOfUsers(q.Kind) {
		d.lists.Add(1)
	}
	return d.Driver.Scan(ctx, q)
}

// Write implements store.Backend.
func (d *callDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	if isOfUsers(ops[0].Record.Kind) {
		d.writes.Add(1)
	}
	return d.Driver.Write(ctx, ops)
}

// TestStoreCallsOfChecks counts what the store is called for by the checks of sessions that are known, and holds docs/performance.md to it.
func TestStoreCallsOfChecks(t *testing.T) {
	const sessions, checks = 10, 1000
	d := &callDriver{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: utc})
	if err != nil {
		t.Fatal(err)
	}
	s, err := serviceOn(t, st)
	if err != nil {
		t.Fatal(err)
	}
	const due = time.Minute // of a session that ends after 20 without activity
	view := session.NewView(viewStore{s.provider}, session.Options{Idle: 20 * due, Now: utc})
	now := utc()
	who := storetest.Person{Connector: "local", ID: "u1", Email: "Alice@example.com", LastLogin: now} // as the file has her
	if err := storetest.AddPerson(t.Context(), st, who); err != nil {
		t.Fatal(err)
	}
	for i := range sessions {
		if err := storetest.AddSession(t.Context(), st, fmt.Sprint("session-", i), who, now.Add(1000*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	checkAll := func(n int, at time.Time) {
		t.Helper()
		for i := range n {
			if _, err := view.Lookup(t.Context(), fmt.Sprint("session-", i%sessions), at); err != nil {
				t.Fatal(err)
			}
		}
	}
	checkAll(sessions, now) // from here on they are known
	const known, active = "1,000 checks of 10 known sessions", "1,000 checks of 10 known sessions whose activity is due"
	count := func() [3]int64 { return [3]int64{d.reads.Swap(0), d.lists.Swap(0), d.writes.Swap(0)} }
	count()
	checkAll(checks, now.Add(due/2))
	if got, row := count(), storeCallRow(t, known); got != [3]int64{} || row != "0 | 0 | 0" {
		t.Errorf("%s: counted %v; docs/performance.md says %s", known, got, row)
	}
	checkAll(checks, now.Add(due+time.Second))
	if err := view.Close(t.Context()); err != nil { // what is queued is written
		t.Error(err)
	}
	// Two reads and a write for each session; a check that comes while that is being written reads again.
	got, row := count(), storeCallRow(t, active)
	t.Logf("%s: %v", active, got)
	if got[0] < 2*sessions || got[0] > 4*sessions || got[1] != 0 || got[2] != sessions || row != "20 to 40 | 0 | 10" {
		t.Errorf("%s: counted %v; docs/performance.md says %s", active, got, row)
	}
}

// storeCallRow returns a row of the table "Store calls" of docs/performance.md without what it is about.
func storeCallRow(t *testing.T, what string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(peers.Root(t), "docs", "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n| "+what+" | ")
	row, _, _ := strings.Cut(rest, " |\n")
	if !ok {
		t.Fatalf("docs/performance.md has no row %q", what)
	}
	return row
}
