package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dexidp/dex/storage"
)

// resealPause is between two records that Reseal writes: others come first.
const resealPause = time.Millisecond

// everyKind are all kinds. What lives for minutes is among them: a key may have to go at once.
func everyKind() []Kind {
	return []Kind{
		KindKeys, KindSecret, KindClient, KindConnector, KindPassword, KindIdentity, KindMark, KindOffline, KindRefreshToken, KindSession, KindGrants, KindUpstream,
		KindOutbox, KindReplay, KindSeen, KindVouched, KindSpentCode, KindAuthRequest, KindAuthCode, KindDeviceRequest, KindDeviceToken,
	}
}

// A Resealed says what Reseal did.
type Resealed struct {
	Records int // that were plain, or sealed with another key
	Left    int // that do not open
}

// Reseal seals all records with the key that seals now: those that are plain, and those of another key, which can then be removed. It
// waits between records, and takes its time. Any number of processes may do it at once, beside all other work: a record is written only as it was read,
// and a conflict means that another one wrote it, with the same key. Nobody is told, since nothing is different. An error, also for records
// that do not open, leaves the rest as it was, and what is done is done.
func (s *Store) Reseal(ctx context.Context) (Resealed, error) {
	var done Resealed
	if s.opts.Sealer == nil {
		return done, nil
	}
	var left error
	probe := s.opts.Sealer.Seal(nil, nil, nil)
	for _, kind := range everyKind() {
		for raw, err := range s.driver.Driver.Scan(ctx, Query{Kind: kind}) {
			if err != nil {
				return done, fmt.Errorf("store: seal %s: %w", kind, err)
			}
			if kind == KindSecret && raw.ID == witnessID {
				continue
			}
			written, err := s.reseal(ctx, raw)
			switch {
			case errors.Is(err, ErrSealed):
				done.Left++
				left = err
			case err != nil:
				return done, err
			case written:
				done.Records++
			}
		}
	}
	if left != nil {
		return done, fmt.Errorf("%d records: %w", done.Left, left)
	}
	if !s.opts.Sealer.Current(probe) { // what was read first is sealed with the key of then
		return done, errors.New("store: another key seals since records began to be sealed anew: begin again")
	}
	raw, err := s.driver.Driver.Read(ctx, KindSecret, witnessID)
	switch {
	case errors.Is(err, storage.ErrNotFound): // in memory
		return done, nil
	case err != nil:
		return done, fmt.Errorf("store: seal the witness: %w", err)
	}
	_, err = s.reseal(ctx, raw)
	return done, err
}

// reseal writes a record if it is not sealed with the key that seals now.
func (s *Store) reseal(ctx context.Context, raw Record) (written bool, err error) {
	if sealed, is := bytes.CutPrefix(raw.Data, []byte(sealedMark)); is && s.opts.Sealer.Current(sealed) {
		return false, nil
	}
	r, err := s.driver.open(raw)
	if err != nil {
		return false, err
	}
	_, err = s.driver.Write(ctx, []Op{{Verb: Put, Record: r}})
	switch {
	case errors.Is(err, ErrConflict), errors.Is(err, storage.ErrNotFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("store: seal %s: %w", r.Kind, err)
	}
	t := time.NewTimer(resealPause)
	defer t.Stop()
	select {
	case <-t.C:
		return true, nil
	case <-ctx.Done():
		return true, ctx.Err()
	}
}
