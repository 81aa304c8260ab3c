package provider

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// A notice that has expired while its client rests, or while another process has claimed it, waits as others do. It once kept a processor and the
// database busy until then.
func TestExpiredNoticeIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		const tooMany = 200
		var looks atomic.Int64
		o := newOutbox(store.Memory(store.Options{}), func() time.Time {
			if looks.Add(1) >= tooMany {
				cancel()
			}
			return time.Now()
		}, slog.New(slog.DiscardHandler))
		session := storage.AuthSession{ID: "sid", UserID: "u", ConnectorID: "c"}
		if err := o.store.CreateAuthSession(ctx, session); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		n := store.Notice{ID: "n", ClientID: "web", SessionID: "sid", UserID: "u", ConnectorID: "c", Created: now.Add(-noticeUseful), Due: now.Add(noticeMost), Expiry: now.Add(-time.Second)}
		if err := o.store.EndSession(ctx, "sid", []store.Notice{n}); err != nil {
			t.Fatal(err)
		}
		go o.run(ctx)
		time.Sleep(noticeMost - time.Second)
		if got := looks.Load(); got >= tooMany {
			t.Fatalf("looked %d times while there was nothing to do", got)
		}
		time.Sleep(noticePoll)
		left := 0
		if err := o.store.Notices(ctx, func(store.Notice) bool { left++; return true }); err != nil || left != 0 {
			t.Errorf("%d notices are left, %v", left, err)
		}
	})
}

// A client that has failed while the store was looked into is left alone: what was found due is older news.
func TestClientRestsFromALookThatBeganBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := newOutbox(store.Memory(store.Options{}), time.Now, slog.New(slog.DiscardHandler))
		o.client = func(context.Context, string) (storage.Client, error) { return storage.Client{}, storage.ErrNotFound }
		if err := o.store.CreateAuthSession(ctx, storage.AuthSession{ID: "sid", UserID: "u", ConnectorID: "c"}); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		n := store.Notice{ID: "n", ClientID: "web", SessionID: "sid", UserID: "u", ConnectorID: "c", Created: now, Due: now, Expiry: now.Add(noticeUseful)}
		if err := o.store.EndSession(ctx, "sid", []store.Notice{n}); err != nil {
			t.Fatal(err)
		}
		left := func() (n int) {
			t.Helper()
			if err := o.store.Notices(ctx, func(store.Notice) bool { n++; return true }); err != nil {
				t.Fatal(err)
			}
			return n
		}
		o.clients["web"] = &recipient{failures: 1, rest: now.Add(noticeFirst)}
		o.begin(ctx, "web", []store.Notice{n})
		synctest.Wait()
		if left() != 1 {
			t.Error("it is told while it rests")
		}
		time.Sleep(noticeFirst)
		o.begin(ctx, "web", []store.Notice{n})
		synctest.Wait()
		if left() != 0 {
			t.Error("it is not told once it has rested")
		}
	})
}
