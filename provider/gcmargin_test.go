package provider

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// A replica whose clock is ahead deletes no session that goes on for the others, and what has expired for all of them in the end.
func TestGarbageCollectionByAClockThatIsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		st := store.Memory(store.Options{})
		end := time.Now().Add(5 * time.Minute)
		if err := st.CreateAuthSession(ctx, storage.AuthSession{ID: "sid", UserID: "u", ConnectorID: "c", IdleExpiry: end, AbsoluteExpiry: end}); err != nil {
			t.Fatal(err)
		}
		p := &Provider{store: st, log: slog.New(slog.DiscardHandler), now: func() time.Time { return time.Now().Add(10 * time.Minute) }}
		go p.collectGarbage(ctx)
		time.Sleep(4 * time.Minute)
		if _, err := st.GetAuthSession(ctx, "sid"); err != nil {
			t.Errorf("while it goes on: %v", err)
		}
		time.Sleep(gcMargin)
		if _, err := st.GetAuthSession(ctx, "sid"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("once it has expired: %v", err)
		}
	})
}
