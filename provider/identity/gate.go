package identity

import (
	"context"
	"sync/atomic"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// A Gate is the storage that Dex gets: it shows the connectors that are open, and no others, since Dex would open an
// unknown one by itself, unwrapped and in the middle of a request.
type Gate struct {
	storage.Storage
	doors atomic.Pointer[Doors]
}

// NewGate returns a gate that shows one connector that opens at once, without which Dex does not start.
func NewGate(s storage.Storage) *Gate { return &Gate{Storage: s} }

// Show makes the gate show doors.
func (g *Gate) Show(d *Doors) { g.doors.Store(d) }

// ListConnectors implements storage.Storage.
func (g *Gate) ListConnectors(ctx context.Context) ([]storage.Connector, error) {
	d := g.doors.Load()
	if d == nil {
		return []storage.Connector{{ID: dexconnectors.LocalConnector, Type: dexconnectors.LocalConnector}}, nil
	}
	all, err := g.Storage.ListConnectors(ctx)
	if err != nil {
		return nil, err
	}
	open := all[:0:0]
	for _, c := range all {
		if _, ok := d.Door(c.ID); ok {
			open = append(open, c)
		}
	}
	return open, nil
}

// GetConnector implements storage.Storage.
func (g *Gate) GetConnector(ctx context.Context, id string) (storage.Connector, error) {
	if d := g.doors.Load(); d == nil {
		return storage.Connector{}, storage.ErrNotFound
	} else if _, ok := d.Door(id); !ok {
		return storage.Connector{}, storage.ErrNotFound
	}
	return g.Storage.GetConnector(ctx, id)
}
