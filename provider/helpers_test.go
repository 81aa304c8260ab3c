package provider

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/provider/store"

	"github.com/go-jose/go-jose/v4"

	"github.com/dexidp/dex/server/signer"
)

// countingDriver counts writes.
type countingDriver struct {
	store.Driver
	writes atomic.Int64
}

func (d *countingDriver) wrap(t *testing.T, clk *clock) *store.Store {
	t.Helper()
	d.Driver = store.MemoryDriver()
	s, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (d *countingDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	d.writes.Add(1)
	return d.Driver.Write(ctx, ops)
}

func (d *countingDriver) reset()       { d.writes.Store(0) }
func (d *countingDriver) count() int64 { return d.writes.Load() }

// rotateOnce makes a new signing key, as another replica would, and returns something that is signed with it.
func rotateOnce(ctx context.Context, c *keyCache, now func() time.Time) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := (&signer.LocalConfig{KeysRotationPeriod: "6h", Algorithm: jose.RS256}).Open(ctx, c, 24*time.Hour, now, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	s.Start(ctx)
	return s.Sign(ctx, []byte(`{"iss":"nobody"}`))
}
