package identity

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/connectors"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// closing is a directory that says when it is closed.
type closing struct {
	directory

	closed atomic.Int64
}

func (c *closing) Close() error { c.closed.Add(1); return nil }

// A bench opens generations of doors one after the other.
type bench struct {
	t      *testing.T
	store  *store.Store
	mu     sync.Mutex // connectors are opened at once
	opens  map[string]int
	latest map[string]*closing
	err    error                                       // of what is opened
	inner  func(storage.Connector) connector.Connector // what is opened; nil: a closing
	last   *Doors
}

func (b *bench) resolve(c storage.Connector) (connector.Connector, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opens[c.ID]++
	if b.err != nil {
		return nil, b.err
	}
	if b.inner != nil {
		return b.inner(c), nil
	}
	b.latest[c.ID] = &closing{}
	return b.latest[c.ID], nil
}

func (b *bench) open(ctx context.Context, all ...storage.Connector) (*Doors, *dexconnectors.Cache, *Gate) {
	b.t.Helper()
	st := storage.WithStaticConnectors(b.store, all)
	gate := NewGate(st)
	cache := dexconnectors.NewCache(gate, b.resolve)
	d, err := Open(ctx, cache, st, Options{
		Limits: DefaultLimits(), Store: b.store, Now: time.Now, Log: slog.New(slog.DiscardHandler), OpenTimeout: 10 * time.Second, RetryEvery: 30 * time.Second,
		Resolve: b.resolve, Previous: b.last,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	gate.Show(d)
	b.last = d
	return d, cache, gate
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return &bench{t: t, store: store.Memory(store.Options{}), opens: map[string]int{}, latest: map[string]*closing{}}
}

func dir(id, name, version string) storage.Connector {
	return storage.Connector{ID: id, Type: "ldap", Name: name, ResourceVersion: version}
}

func TestConnectorsAreCarriedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b := newBench(t)
		first, _, _ := b.open(ctx, dir("same", "Same", "1"), dir("edited", "Edited", "1"), dir("gone", "Gone", "1"))
		same, edited, gone := b.latest["same"], b.latest["edited"], b.latest["gone"]
		second, cache, _ := b.open(ctx, dir("same", "Another name", "1"), dir("edited", "Edited", "2"))
		if b.opens["same"] != 1 || b.opens["edited"] != 2 {
			t.Errorf("opened: %v", b.opens)
		}
		if door, _ := second.Door("same"); door.Name != "Another name" {
			t.Errorf("the name is %q", door.Name)
		}
		if door, _ := first.Door("same"); door.Name != "Same" {
			t.Errorf("the former generation has the name %q", door.Name)
		}
		for _, id := range []string{"same", "edited"} {
			c, err := cache.Get(ctx, id)
			if _, wrapped := c.Connector.(connector.CallbackConnector); err != nil || !wrapped {
				t.Errorf("%s: %T, %v: want it wrapped", id, c.Connector, err)
			}
		}
		if _, err := cache.Get(ctx, "gone"); err == nil {
			t.Error("a connector that is gone is still there")
		}
		if same.closed.Load()+edited.closed.Load()+gone.closed.Load() != 0 {
			t.Error("a connector was closed under the requests of the former generation")
		}
		first.Close()
		first.Close()
		if same.closed.Load() != 0 || edited.closed.Load() != 1 || gone.closed.Load() != 1 {
			t.Errorf("closed with the generation: same %d, edited %d, gone %d; want 0, 1, 1", same.closed.Load(), edited.closed.Load(), gone.closed.Load())
		}
		second.Close()
		if same.closed.Load() != 1 {
			t.Errorf("closed with the last generation: %d times", same.closed.Load())
		}
	})
}

// Dex opens a connector again, unwrapped, when its resource version is another than that of the open one.
func TestStoredConnectorThatChangesStaysWrapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b := newBench(t)
		if err := b.store.CreateConnector(ctx, dir("stored", "Stored", "1")); err != nil {
			t.Fatal(err)
		}
		_, cache, gate := b.open(ctx, dir("file", "File", "1"))
		if err := b.store.UpdateConnector(ctx, "stored", func(c storage.Connector) (storage.Connector, error) {
			c.ResourceVersion, c.Name = "2", "Changed"
			return c, nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := b.store.CreateConnector(ctx, dir("later", "Later", "1")); err != nil {
			t.Fatal(err)
		}
		c, err := cache.Get(ctx, "stored")
		if _, wrapped := c.Connector.(connector.CallbackConnector); err != nil || !wrapped {
			t.Errorf("%T, %v: want it wrapped", c.Connector, err)
		}
		if c, err := cache.Get(ctx, "later"); !errors.Is(err, storage.ErrNotFound) && err == nil {
			t.Errorf("Dex opened %T by itself", c.Connector)
		}
		if all, err := gate.ListConnectors(ctx); err != nil || len(all) != 2 || b.opens["later"] != 0 {
			t.Errorf("Dex sees %v, %v; opened %v", all, err, b.opens)
		}
	})
}

// A directory that is down does not hold up a reload that is about something else.
func TestReloadDoesNotWaitForWhatWasJustTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b := newBench(t)
		b.err = errors.New("connection refused")
		b.open(ctx, dir("down", "Down", "1"))
		hang := make(chan struct{})
		start := time.Now()
		st := storage.WithStaticConnectors(b.store, []storage.Connector{dir("down", "Down", "1")})
		d, err := Open(ctx, dexconnectors.NewCache(st, b.resolve), st, Options{
			Limits: DefaultLimits(), Store: b.store, Now: time.Now, Log: slog.New(slog.DiscardHandler), OpenTimeout: 10 * time.Second, RetryEvery: 30 * time.Second,
			Resolve: func(storage.Connector) (connector.Connector, error) { <-hang; return &closing{}, nil }, Previous: b.last,
		})
		if err != nil || time.Since(start) != 0 {
			t.Errorf("opened after %s: %v", time.Since(start), err)
		}
		close(hang)
		synctest.Wait()
		if _, open := d.Door("down"); !open {
			t.Error("it is not open once it answers")
		}
	})
}

// What opens after its generation has ended is closed at once.
func TestLateConnectorIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBench(t)
		release, late := make(chan struct{}), &closing{}
		st := storage.WithStaticConnectors(b.store, []storage.Connector{dir("late", "Late", "1")})
		d, err := Open(ctx, dexconnectors.NewCache(st, b.resolve), st, Options{
			Limits: DefaultLimits(), Store: b.store, Now: time.Now, Log: slog.New(slog.DiscardHandler), OpenTimeout: time.Second, RetryEvery: 30 * time.Second,
			Resolve: func(storage.Connector) (connector.Connector, error) { <-release; return late, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		d.Close()
		close(release)
		synctest.Wait()
		if late.closed.Load() != 1 {
			t.Errorf("closed %d times, want once", late.closed.Load())
		}
	})
}

func TestFailuresCountOverGenerations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b := newBench(t)
		for i := range DefaultLimits().PerUser {
			d, _, _ := b.open(ctx, dir("dir", "Directory", string(rune('a'+i)))) // opened anew each time
			door, _ := d.Door("dir")
			if _, err := door.CheckPassword(ctx, Login{User: "alice", Password: "wrong"}); reason(err) != connectors.WrongCredentials {
				t.Fatalf("attempt %d: %v", i, err)
			}
		}
		d, _, _ := b.open(ctx, dir("dir", "Directory", "z"))
		door, _ := d.Door("dir")
		if _, err := door.CheckPassword(ctx, Login{User: "alice", Password: "right"}); reason(err) != connectors.Throttled {
			t.Errorf("got %v, want it throttled", err)
		}
	})
}
