package identity

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// opened opens connectors a, b and local, where resolve says what becomes of a and b.
func opened(ctx context.Context, t *testing.T, resolve dexconnectors.ResolveFunc) (*Doors, *Gate, error) {
	t.Helper()
	st := store.Memory(store.Options{})
	all := storage.WithStaticConnectors(st, []storage.Connector{{ID: "a", Type: "oidc"}, {ID: "local", Type: "local"}, {ID: "b", Type: "oidc"}})
	d, err := Open(ctx, dexconnectors.NewCache(all, resolve), all, Options{
		Limits: DefaultLimits(), Store: st, Now: time.Now, Log: slog.New(slog.DiscardHandler), OpenTimeout: 10 * time.Second, RetryEvery: 30 * time.Second, Resolve: resolve,
	})
	g := NewGate(all)
	if err == nil {
		g.Show(d)
	}
	return d, g, err
}

func names(d *Doors) (out []string) {
	for _, door := range d.All() {
		out = append(out, door.ID)
	}
	return out
}

func TestConnectorThatHangsOrFailsDoesNotHoldUpTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		release := make(chan struct{})
		var down atomic.Bool
		down.Store(true)
		start := time.Now()
		d, gate, err := opened(ctx, t, func(c storage.Connector) (connector.Connector, error) {
			if c.ID == "a" {
				<-release
			} else if down.Load() {
				return nil, errors.New("discovery: connection refused")
			}
			return &directory{}, nil
		})
		if err != nil || time.Since(start) != 10*time.Second {
			t.Fatalf("opened after %v: %v", time.Since(start), err)
		}
		if got := names(d); len(got) != 1 || got[0] != "local" {
			t.Errorf("open: %v, want local", got)
		}
		if _, err := gate.GetConnector(ctx, "b"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("Dex would open a connector that is not open: %v", err)
		}
		down.Store(false)
		close(release)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := names(d); len(got) != 3 || got[0] != "a" || got[2] != "b" {
			t.Errorf("later open: %v, want a, local, b", got)
		}
		if all, err := gate.ListConnectors(ctx); err != nil || len(all) != 3 {
			t.Errorf("Dex sees %v, %v", all, err)
		}
		c, ok := d.connectors.Cached("b")
		if _, wrapped := c.Connector.(connector.CallbackConnector); !ok || !wrapped {
			t.Error("Dex has the connector unwrapped")
		}
		cancel()
	})
}

func TestEndDuringTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		release := make(chan struct{})
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		_, _, err := opened(ctx, t, func(storage.Connector) (connector.Connector, error) { <-release; return &directory{}, nil })
		if !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		close(release)
	})
}
