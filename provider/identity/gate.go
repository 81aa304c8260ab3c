package identity

import (
	"context"
	"sync/atomic"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// A Gate is the storage that Dex gets: it shows the connectors that are open, as they were when they were opened. Dex
// opens by itself, unwrapped and in the middle of a request, one that it does not know, or whose resource version is
// another than that of the open one: neither can happen, whatever the storage says meanwhile.
type Gate struct {
	storage.Storage
	doors atomic.Pointer[Doors]
}

// NewGate returns a gate that shows one connector that opens at once, without which Dex does not start.
func NewGate(s storage.Storage) *Gate { return &Gate{Storage: s} }

// Show makes the gate show doors.
func (g *Gate) Show(d *Doors) { g.doors.Store(d) }

// ListConnectors implements storage.Storage.
func (g *Gate) ListConnectors(context.Context) ([]storage.Connector, error) {
	d := g.doors.Load()
	if d == nil {
		return []storage.Connector{{ID: dexconnectors.LocalConnector, Type: dexconnectors.LocalConnector}}, nil
	}
	all := d.All()
	open := make([]storage.Connector, len(all))
	for i, door := range all {
		open[i] = door.stored
	}
	return open, nil
}

// GetConnector implements storage.Storage.
func (g *Gate) GetConnector(_ context.Context, id string) (storage.Connector, error) {
	d := g.doors.Load()
	if d == nil {
		return storage.Connector{}, storage.ErrNotFound
	}
	door, ok := d.Door(id)
	if !ok {
		return storage.Connector{}, storage.ErrNotFound
	}
	return door.stored, nil
}
