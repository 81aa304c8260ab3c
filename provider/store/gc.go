package store

import (
	"context"
	"fmt"
	"time"

	"github.com/dexidp/dex/storage"
)

// gcBatch bounds what one transaction deletes, and with it how long other writes wait.
const gcBatch = 1000

// GarbageCollect deletes what expired before now: auth requests and codes, spent codes and replays, what is known of users who were vouched for, what upstreams gave to ask about users with, notices, upstream sessions and what was seen once, device requests and tokens, and
// sessions by the earlier of their idle and absolute expiry. It goes on until nothing is left or ctx is done,
// and trims the change log. As in Dex, refresh tokens, offline sessions and identities stay.
func (s *Store) GarbageCollect(ctx context.Context, now time.Time) (storage.GCResult, error) {
	var r storage.GCResult
	var ours int64 // Dex has no place for what it does not know
	for _, sweep := range []struct {
		kind    Kind
		deleted *int64
	}{
		{KindAuthRequest, &r.AuthRequests},
		{KindAuthCode, &r.AuthCodes},
		{KindDeviceRequest, &r.DeviceRequests},
		{KindDeviceToken, &r.DeviceTokens},
		{KindSession, &r.AuthSessions},
		{KindSpentCode, &ours},
		{KindReplay, &ours},
		{KindVouched, &ours},
		{KindOutbox, &ours},
		{KindUpstream, &ours},
		{KindSeen, &ours},
		{KindGrants, &ours},
	} {
		err := exhaust(sweep.deleted, func() (int, error) { return s.driver.Sweep(ctx, sweep.kind, now, gcBatch) })
		if err != nil {
			return r, fmt.Errorf("store: garbage collection of %s: %w", sweep.kind, err)
		}
	}
	var trimmed int64
	err := exhaust(&trimmed, func() (int, error) {
		return s.driver.Trim(ctx, s.opts.Now().Add(-s.opts.Retention), gcBatch)
	})
	if err != nil {
		return r, fmt.Errorf("store: trim the change log: %w", err)
	}
	return r, nil
}

// exhaust calls batch until it has nothing more to do, and counts.
func exhaust(total *int64, batch func() (int, error)) error {
	for {
		n, err := batch()
		*total += int64(n)
		if err != nil || n < gcBatch {
			return err
		}
	}
}
