package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"gatehouse/authz"
	"gatehouse/internal/config"
	"gatehouse/internal/seal"
	"gatehouse/provider"
	"gatehouse/provider/front"
	"gatehouse/provider/store"
)

// openStore opens the storage, sealed where there is a key file.
func (s *service) openStore(ctx context.Context) (err error) {
	var sealer store.Sealer
	if g := s.cfg.Gateway; g != nil && g.Keys.File != "" {
		if s.atRest, err = seal.NewAtRest(g.Keys.Ring); err != nil {
			return err
		}
		sealer = s.atRest
		s.log.InfoContext(ctx, "what the storage keeps is sealed with the first key of gateway.keys.file", "keys", strings.Join(s.atRest.IDs(), " "))
	}
	if s.store, err = openStore(ctx, s.cfg, s.log, sealer); err == nil && sealer == nil {
		s.log.InfoContext(ctx, "secrets in the storage are not sealed: who reads it, or a backup, has them; gateway.keys.file seals them")
	}
	return err
}

// openRing makes the ring for cookies and sealed states, with the keys of the file, or with those that are kept in the storage. cookieKey is the one that
// was there first.
func (s *service) openRing(ctx context.Context) (stored *provider.StoredRing, cookieKey []byte, err error) {
	purposes := slices.Concat(front.Purposes(), authz.Purposes())
	if s.atRest != nil {
		keys := s.cfg.Gateway.Keys.Ring
		s.ring, err = seal.NewRing(keys, purposes...)
		return nil, keys[len(keys)-1], err
	}
	stored, created, err := provider.OpenStoredRing(ctx, s.store, utc, s.log, purposes...)
	if err != nil {
		return nil, nil, err
	}
	if created {
		s.log.InfoContext(ctx, "made a key for cookies and kept it in the storage; gateway.keys.file keeps it outside")
	}
	s.ring = stored.Ring()
	return stored, stored.Oldest(), nil
}

// checkKeys refuses the keys of another configuration while records may be stored that they do not open.
func (s *service) checkKeys(ctx context.Context, next *config.Config) error {
	if s.atRest == nil || next.Gateway == nil {
		return nil
	}
	a, err := seal.NewAtRest(next.Gateway.Keys.Ring)
	if err != nil || slices.Equal(a.IDs(), s.atRest.IDs()) {
		return err
	}
	if err = s.store.CheckSealer(ctx, a); err != nil {
		s.resealSoon() // another replica may have written with that key after this one was done: it can go at the next try
	}
	return err
}

// resealSoon has resealRecords begin again.
func (s *service) resealSoon() {
	select {
	case s.rekeyed <- struct{}{}:
	default: // it is about to
	}
}

// applyKeys puts the keys of another configuration in the place of those that run, which checkKeys has looked at.
func (s *service) applyKeys(ctx context.Context, next *config.Config) {
	if s.atRest == nil || next.Gateway == nil {
		return
	}
	before := s.atRest.IDs()
	for _, replace := range []func([][]byte) error{s.atRest.Replace, s.ring.Replace} {
		if err := replace(next.Gateway.Keys.Ring); err != nil { // package config has looked at them
			s.log.ErrorContext(ctx, "keys cannot be taken up: restart", "error", err)
		}
	}
	if slices.Equal(before, s.atRest.IDs()) {
		return
	}
	s.log.InfoContext(ctx, "keys of gateway.keys.file taken up", "keys", strings.Join(s.atRest.IDs(), " "))
	s.resealSoon()
}

// resealRetry is the pause after records could not be sealed.
const resealRetry = time.Minute

// resealRecords seals records that are plain, or sealed with another key, at the start and whenever there are other keys, until ctx ends.
func (s *service) resealRecords(ctx context.Context) {
	if s.atRest == nil {
		return
	}
	for {
		key := s.atRest.IDs()[0]
		done, err := s.store.Reseal(ctx)
		retry := (<-chan time.Time)(nil)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.ErrorContext(ctx, "records could not be sealed with the first key; it is tried again", "key", key, "records", done.Records, "left", done.Left, "error", err)
			retry = time.After(resealRetry)
		default:
			s.log.InfoContext(ctx, "all records are sealed with the first key: others are needed for cookies only, and for as long as sessions live", "key", key, "records", done.Records)
		}
		select {
		case <-retry:
		case <-s.rekeyed:
		case <-ctx.Done():
			return
		}
	}
}
