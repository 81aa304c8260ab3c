package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/dexidp/dex/storage"
)

// A Sealer seals the data of records at rest.
type Sealer interface {
	// Seal returns data sealed for ad, which is not part of the result, appended to dst.
	Seal(dst, ad, data []byte) []byte
	// Open returns what was sealed for ad. Its error says which key is missing, or that the data is damaged or another record's.
	Open(ad, sealed []byte) ([]byte, error)
	// Current reports whether a value is sealed with the key that seals now.
	Current(sealed []byte) bool
}

// ErrSealed means that a record is there, and that it does not open. It is never taken for a record that is not there.
var ErrSealed = errors.New("a stored record does not open")

// sealedMark begins data that is sealed. No JSON begins so, and a random key does with a chance of 2^-64.
const sealedMark = "\x00sealed\x01"

// sealedFor is what the data of a record is sealed for: no other record, and none of another kind, can have it.
func sealedFor(kind Kind, id string) []byte { return []byte(string(kind) + "\x00" + id) }

// seal returns ops with their data sealed. It leaves those of the caller as they are: they may be written again.
func (d *counted) seal(ops []Op) []Op {
	if d.sealer == nil {
		return ops
	}
	ops = slices.Clone(ops)
	for i := range ops {
		if ops[i].Verb != Delete {
			ops[i].Record = d.sealed(ops[i].Record)
		}
	}
	return ops
}

func (d *counted) sealed(r Record) Record {
	r.Data = d.sealer.Seal([]byte(sealedMark), sealedFor(r.Kind, r.ID), r.Data)
	return r
}

// open returns a record as it was before it was sealed. One that is plain is taken as it is: it was written before there was a key.
func (d *counted) open(r Record) (Record, error) {
	sealed, is := bytes.CutPrefix(r.Data, []byte(sealedMark))
	if !is {
		return r, nil
	}
	if d.sealer == nil {
		return Record{}, &UnreadError{r.Kind, fmt.Errorf("store: %s: %w: it is sealed, and gateway.keys.file is not set: set it, to a file with the keys that sealed it", r.Kind, ErrSealed)}
	}
	var err error
	if r.Data, err = d.sealer.Open(sealedFor(r.Kind, r.ID), sealed); err != nil {
		return Record{}, &UnreadError{r.Kind, fmt.Errorf("store: %s: %w: %w: put back the line of gateway.keys.file that sealed it; if none is missing, the record was damaged "+
			"or taken from another place: restore the database", r.Kind, ErrSealed, err)}
	}
	return r, nil
}

// Read implements Backend. An error is ErrSealed for a record that does not open.
func (d *counted) Read(ctx context.Context, kind Kind, id string) (Record, error) {
	r, err := memoOf(ctx).read(ctx, d, kind, id)
	if err != nil {
		return Record{}, err
	}
	return d.open(r)
}

// Scan implements Backend, but for one thing: it goes on after a record that does not open, which it yields with an *UnreadError and without data. After any
// other error it ends.
func (d *counted) Scan(ctx context.Context, q Query) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for r, err := range d.Driver.Scan(ctx, q) {
			if err == nil {
				var opened Record
				if opened, err = d.open(r); err == nil {
					r = opened
				} else {
					r.Data = nil
				}
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

// witnessID is the secret that says whether records are sealed, and with which key: it is the first that is sealed, and the last that is
// sealed with another key (see Reseal).
const witnessID = "sealed"

// checkSeal fails where what is stored does not open, and leaves a witness before anything is sealed.
func (s *Store) checkSeal(ctx context.Context) error {
	if _, err := s.SigningKeys(ctx); err != nil {
		return err
	}
	_, err := s.driver.Read(ctx, KindSecret, witnessID)
	if !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if s.opts.Sealer == nil {
		return nil
	}
	_, err = s.driver.Write(ctx, []Op{{Verb: Create, Record: Record{Kind: KindSecret, ID: witnessID, Data: []byte("sealed")}}})
	if errors.Is(err, storage.ErrAlreadyExists) { // another process was first
		_, err = s.driver.Read(ctx, KindSecret, witnessID)
	}
	return err
}

// CheckSealer fails if a record is stored that this Store opens, and another Sealer would not: one that is to take the place of its own. It reads all
// records, since a process that does not seal with the same key yet may have written some after Reseal.
func (s *Store) CheckSealer(ctx context.Context, next Sealer) error {
	d := &counted{Driver: s.driver.Driver, sealer: next}
	if _, err := d.Read(ctx, KindSecret, witnessID); err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	for _, kind := range everyKind() {
		for r, err := range s.driver.Driver.Scan(ctx, Query{Kind: kind}) {
			if err != nil {
				return err
			}
			if _, err := d.open(r); err != nil {
				if _, damaged := s.driver.open(r); damaged == nil {
					return err
				}
			}
		}
	}
	return nil
}
