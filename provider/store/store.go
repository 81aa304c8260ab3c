package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/dexidp/dex/storage"
)

const (
	// maxTries bounds an update. In one process a second try waits in a queue, so that only as many processes
	// compete as there are; a hundred tries in a row are lost only to an updater that updates its own record.
	maxTries = 100
	maxPause = 8 * time.Millisecond
	// patience is longer than any connector may take to answer.
	patience = 15 * time.Second
)

// Options of a Store. The zero value is fine.
type Options struct {
	Now          func() time.Time // nil: time.Now
	Logger       *slog.Logger     // nil: nothing is logged
	FeedInterval time.Duration    // how often Follow reads the change log; 0: 2 s
	Retention    time.Duration    // how long the change log is kept; 0: 5 min
	Sealer       Sealer           // seals all data at rest; nil: it is plain
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FeedInterval <= 0 {
		o.FeedInterval = 2 * time.Second
	}
	if o.Retention <= 0 {
		o.Retention = 5 * time.Minute
	}
	return o
}

// A Store is Dex's storage.Storage over a Driver. Values that it returns share no memory with it. Its methods
// are safe for concurrent use and honour their contexts. Where the contract of Dex wants storage.ErrNotFound or
// storage.ErrAlreadyExists, the error is that value itself.
type Store struct {
	driver *counted
	opts   Options
	queue  *queue
	feed   *feed
}

// New returns a Store over a driver, which it closes in the end. It reads the place in the change log from
// which Follow goes on, so that nothing is missed between the two. It fails where what is stored is sealed, and the Sealer does not open it.
func New(ctx context.Context, d Driver, o Options) (*Store, error) {
	head, err := d.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("store: read the change log: %w", err)
	}
	s := newStore(d, o, head)
	if err := s.checkSeal(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Memory returns a Store that forgets everything when the process ends.
func Memory(o Options) *Store { return newStore(newMemory(), o, 0) }

// OpenSQLite returns a Store in an SQLite file. The file is made, for its owner only, if it does not exist; its
// directory must exist. Several processes of one machine may share a file. Errors say what to do: no
// directory, not writable, not an SQLite file, not Gatehouse's, made by a newer Gatehouse.
func OpenSQLite(ctx context.Context, path string, o Options) (*Store, error) {
	o = o.withDefaults()
	d, err := openSQLite(ctx, path, o.Logger)
	if err != nil {
		return nil, err
	}
	return newOrClose(ctx, d, o)
}

// OpenPostgres returns a Store in the schema gatehouse of a PostgreSQL database, version 14 or later, which any number of processes may share.
// The schema is made or migrated first. Errors say what to do, and no error holds the password.
func OpenPostgres(ctx context.Context, c PostgresConfig, o Options) (*Store, error) {
	o = o.withDefaults()
	d, err := openPostgres(ctx, c, o.Logger)
	if err != nil {
		return nil, err
	}
	return newOrClose(ctx, d, o)
}

// newOrClose is New for a driver that is nobody's if that fails.
func newOrClose(ctx context.Context, d Driver, o Options) (*Store, error) {
	s, err := New(ctx, d, o)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return s, nil
}

func newStore(d Driver, o Options, head int64) *Store {
	o = o.withDefaults()
	return &Store{driver: &counted{Driver: d, sealer: o.Sealer, now: o.Now}, opts: o, queue: newQueue(patience), feed: newFeed(head)}
}

// counted is a driver that counts its writes, and seals at rest.
type counted struct {
	Driver
	sealer           Sealer // or nil
	now              func() time.Time
	writes, failures atomic.Int64
}

func (d *counted) Write(ctx context.Context, ops []Op) (int64, error) {
	d.writes.Add(1)
	defer Forget(ctx) // before the caller looks at what is true after it
	seq, err := d.Driver.Write(ctx, d.seal(ops))
	if err != nil && !isOutcome(err) && ctx.Err() == nil { // else the caller has gone
		d.failures.Add(1)
	}
	return seq, err
}

// Writes returns how many transactions this Store has written, or tried to, since it was opened. Those that only delete what
// is out of date are not among them.
func (s *Store) Writes() int64 { return s.driver.writes.Load() }

// WriteFailures returns how many of Writes the database did not take, or did not answer.
func (s *Store) WriteFailures() int64 { return s.driver.failures.Load() }

// Close closes the database. End Follow before.
func (s *Store) Close() error { return s.driver.Close() }

// Ping asks the database for a record that does not exist: it writes nothing.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.driver.Read(ctx, KindKeys, "ping")
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return fmt.Errorf("store: ping: %w", err)
	}
	return nil
}

func create[T any](ctx context.Context, s *Store, k *kind[T], v *T) error {
	r, err := k.encode(v)
	if err != nil {
		return err
	}
	return s.write(ctx, Op{Verb: Create, Record: r, Changes: k.changes(r.ID, nil, v)})
}

func get[T any](ctx context.Context, s *Store, k *kind[T], id string) (T, error) {
	r, err := s.driver.Read(ctx, k.name, id)
	if err != nil {
		var zero T
		return zero, err
	}
	if k.flat {
		return decodedOnce(ctx, s, k, r)
	}
	return k.decode(r)
}

// list returns all that can be read, and an error if that is not all: OnlyUnread if no other is missing.
func list[T any](ctx context.Context, s *Store, k *kind[T], owner string) (out []T, _ error) {
	var unread Unreads
	for r, err := range s.driver.Scan(ctx, Query{Kind: k.name, Owner: owner}) {
		var v T
		if err == nil {
			v, err = k.decode(r)
		}
		switch {
		case err == nil:
			out = append(out, v)
		case !unread.Add(err):
			return out, err
		}
	}
	return out, unread.Err()
}

// remove deletes a record. Of several that delete it at once exactly one succeeds; the others get ErrNotFound.
func remove[T any](ctx context.Context, s *Store, k *kind[T], id string) error {
	op := Op{Verb: Delete, Record: Record{Kind: k.name, ID: id}}
	if k.logged {
		// Read it to tell whose it was. A record that cannot be decoded can be deleted all the same.
		r, err := s.driver.Read(ctx, k.name, id)
		if err != nil && !errors.Is(err, ErrSealed) {
			return err
		}
		var before *T
		if v, decodeErr := k.decode(r); err == nil && decodeErr == nil {
			before = &v
		}
		op.Changes = k.changes(id, before, nil)
	}
	return s.write(ctx, op)
}

// An updating says how update works on a record.
type updating struct {
	id     string
	create bool // a missing record is a zero value to the updater, and is created
	queued bool // updaters of one process take turns from the first try
}

// update replaces a value by what the updater makes of it: see the package comment. The updater's error is
// returned as it is.
func update[T any](ctx context.Context, s *Store, k *kind[T], u updating, updater func(T) (T, error)) error {
	leave := func() {}
	defer func() { leave() }()
	for try := range maxTries {
		if (u.queued && try == 0) || (!u.queued && try == 1) {
			l, err := s.queue.enter(ctx, string(k.name)+" "+u.id)
			if err != nil {
				return err
			}
			leave = l
		}
		err := updateOnce(ctx, s, k, u, updater)
		if !errors.Is(err, ErrConflict) {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
	return fmt.Errorf("store: update %s: %w, %d times in a row: does its updater update the same record?", k.name, ErrConflict, maxTries)
}

func updateOnce[T any](ctx context.Context, s *Store, k *kind[T], u updating, updater func(T) (T, error)) error {
	old, err := s.driver.Read(ctx, k.name, u.id)
	missing := errors.Is(err, storage.ErrNotFound)
	if err != nil && (!missing || !u.create) {
		return err
	}
	var before *T
	var v T
	if !missing {
		if v, err = k.decode(old); err != nil {
			return err
		}
		prior := v // shallow: only its texts are looked at, which no updater can modify
		before = &prior
	}
	after, err := updater(v)
	if err != nil {
		return err
	}
	r, err := k.encode(&after)
	if err != nil {
		return err
	}
	if r.ID != u.id {
		return fmt.Errorf("store: update %s: the updater changed the ID: create a new record and delete the old one", k.name)
	}
	op := Op{Verb: Put, Record: r, Changes: k.changes(u.id, before, &after)}
	op.Record.Version = old.Version
	if missing {
		op.Verb = Create
	}
	// Written even if nothing is different: the version must move, or an update that runs inside of another's
	// updater would go unnoticed the second time.
	err = s.write(ctx, op)
	if missing && errors.Is(err, storage.ErrAlreadyExists) {
		return ErrConflict
	}
	return err
}

// pause waits a random time that grows with the number of tries.
func pause(ctx context.Context, try int) error {
	limit := min(maxPause, time.Millisecond<<min(try, 10))
	t := time.NewTimer(rand.N(limit)) //nolint:gosec // G404: spreads load, guards nothing
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
