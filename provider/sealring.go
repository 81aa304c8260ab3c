package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// A StoredRing is a ring of keys that are kept in the storage. Every replica has the same: a new key opens everywhere
// before it seals anywhere, and an old one opens for as long as a cookie may live.
type StoredRing struct {
	ring  *seal.Ring
	store *store.Store
	now   func() time.Time
	log   *slog.Logger
	lead  time.Duration // from the making of a key until it seals

	mu   sync.Mutex
	keys store.SealKeys
}

const (
	// maxSealKeys bounds the keys of a ring. Where so many were made within the life of a cookie, no more are until one is dropped.
	maxSealKeys = 32
	// shortestOpening is how long an old key opens at least: what is sealed besides cookies lives for minutes.
	shortestOpening = time.Hour
	// ringLook is how often a ring is looked at, at the latest: the clock may be set.
	ringLook = time.Minute
)

// OpenStoredRing reads the keys, and makes the first one where there is none: created says that this process did. The ring follows the
// storage until ctx is done.
func OpenStoredRing(ctx context.Context, st *store.Store, now func() time.Time, log *slog.Logger, purposes ...seal.Purpose) (r *StoredRing, created bool, err error) {
	r = &StoredRing{store: st, now: now, log: log, lead: st.FeedInterval() + publishLead}
	changed := make(chan struct{}, 1)
	cancel := st.Subscribe(func(c store.Change) {
		if !store.IsSealKeys(c) {
			return
		}
		select {
		case changed <- struct{}{}:
		default: // they are about to be read
		}
	})
	if r.keys, created, err = st.SealKeys(ctx, seal.NewKey); err != nil {
		cancel()
		return nil, false, err
	}
	if r.ring, err = seal.NewRing(ringAt(r.keys, now()), purposes...); err != nil {
		cancel()
		return nil, false, fmt.Errorf("provider: keys for cookies: %w", err)
	}
	go func() {
		defer cancel()
		r.follow(ctx, changed)
	}()
	return r, created, nil
}

// Ring returns the ring. Its keys change by themselves.
func (r *StoredRing) Ring() *seal.Ring { return r.ring }

// Oldest returns the key that was there first, of those that still open.
func (r *StoredRing) Oldest() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys.Keys[0].Key // one is there, or there would be no ring
}

// follow keeps the ring as the storage and the clock have it.
func (r *StoredRing) follow(ctx context.Context, changed <-chan struct{}) {
	t := time.NewTimer(r.untilNext())
	defer t.Stop()
	for {
		var err error
		select {
		case <-changed:
			err = r.read(ctx)
		case <-t.C:
			err = r.drop(ctx)
			r.use()
		case <-ctx.Done():
			return
		}
		t.Reset(r.untilNext())
		if err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "keys for cookies cannot be read or written; it is tried again", "error", err)
			t.Reset(rereadRetry)
		}
	}
}

// read takes the keys from the storage.
func (r *StoredRing) read(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	keys, _, err := r.store.SealKeys(ctx, seal.NewKey)
	if err != nil {
		return err
	}
	r.keys = keys
	return r.ring.Replace(ringAt(keys, r.now()))
}

// use makes the ring what the keys are now.
func (r *StoredRing) use() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.ring.Replace(ringAt(r.keys, r.now())) // these keys were in a ring before
}

// untilNext is when another key seals, or one opens no more.
func (r *StoredRing) untilNext() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	next, now := ringLook, r.now()
	for _, k := range r.keys.Keys {
		for _, at := range []time.Time{k.SealsFrom, k.OpensUntil} {
			if d := at.Sub(now); d > 0 {
				next = min(next, d)
			}
		}
	}
	return next
}

// ringAt returns the keys of a ring at a time, the sealing key first. The last key is always one of them.
func ringAt(all store.SealKeys, now time.Time) [][]byte {
	var keys [][]byte
	sealing := 0
	for _, k := range all.Keys {
		if !k.OpensUntil.IsZero() && !now.Before(k.OpensUntil) {
			continue
		}
		if !now.Before(k.SealsFrom) {
			sealing = len(keys)
		}
		keys = append(keys, k.Key)
	}
	if len(keys) > 0 {
		keys[0], keys[sealing] = keys[sealing], keys[0]
	}
	return keys
}

// errNothingToDo ends an update that would change nothing.
var errNothingToDo = errors.New("nothing to do")

// drop deletes keys that open no more.
func (r *StoredRing) drop(ctx context.Context) error {
	r.mu.Lock()
	known := slices.ContainsFunc(r.keys.Keys, r.over)
	r.mu.Unlock()
	if !known {
		return nil
	}
	err := r.store.UpdateSealKeys(ctx, func(k store.SealKeys) (store.SealKeys, error) {
		n := len(k.Keys)
		if k.Keys = slices.DeleteFunc(k.Keys, r.over); len(k.Keys) == n {
			return k, errNothingToDo
		}
		return k, nil
	})
	if err != nil && !errors.Is(err, errNothingToDo) {
		return err
	}
	return r.read(ctx)
}

func (r *StoredRing) over(k store.SealKey) bool {
	return !k.OpensUntil.IsZero() && !r.now().Before(k.OpensUntil)
}

// rotate adds a key, which seals as soon as every replica opens with it. The keys before it open for as long as a cookie lives that they
// sealed. While a key waits, there is no other.
func (r *StoredRing) rotate(ctx context.Context, cookieLife time.Duration) error {
	err := r.store.UpdateSealKeys(ctx, func(k store.SealKeys) (store.SealKeys, error) {
		k.Keys = slices.DeleteFunc(k.Keys, r.over)
		now := r.now()
		n, from := len(k.Keys), now.Add(r.lead)
		until := from.Add(max(cookieLife, shortestOpening) + r.lead)
		if n > 0 && k.Keys[n-1].SealsFrom.After(from.Add(clockOff)) { // by a clock that was ahead
			k.Keys = slices.Clone(k.Keys)
			k.Keys[n-1].SealsFrom = from
			for i := range n - 1 {
				k.Keys[i].OpensUntil = earlier(k.Keys[i].OpensUntil, until)
			}
			return k, nil
		}
		if n > 0 && now.Before(k.Keys[n-1].SealsFrom) {
			return k, errNothingToDo
		}
		if n >= maxSealKeys {
			r.log.WarnContext(ctx, "no new key for cookies: there are too many within gateway.session.absolute", "keys", n)
			return k, errNothingToDo
		}
		for i := range k.Keys {
			if k.Keys[i].OpensUntil.IsZero() {
				k.Keys[i].OpensUntil = until
			}
		}
		k.Keys = append(k.Keys, store.SealKey{Key: seal.NewKey(), SealsFrom: from})
		return k, nil
	})
	if err != nil && !errors.Is(err, errNothingToDo) {
		return fmt.Errorf("provider: keys for cookies: %w", err)
	}
	return r.read(ctx)
}
