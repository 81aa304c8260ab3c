package session

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// What a View does at most.
const (
	defaultCapacity = 100_000
	maxCapacity     = 100_000_000
	maxShards       = 64
	minShardSize    = 64                    // sessions; fewer sessions have fewer shards
	maxID           = 256                   // bytes of a session id
	maxReads        = 64                    // reads of the store at one time
	readTimeout     = 5 * time.Second       // for one session, with all repetitions
	spare           = 50 * time.Millisecond // that a request keeps for its answer: at the deadline the proxy gives its own
	touchTimeout    = 5 * time.Second
	touchWorkers    = 4
	touchQueue      = 4096
	touchEvery      = time.Minute      // activity is written no more often
	graceStep       = 10 * time.Second // between two reads for a session that goes on from memory
)

// Options are the settings of a View. The zero value works.
type Options struct {
	Capacity int              // sessions in memory; 0 means 100,000
	Idle     time.Duration    // how long a session lives without activity; the store's setting
	Now      func() time.Time // nil means time.Now; measures how long a read took
	Logger   *slog.Logger     // nil logs nothing

	// Silence returns for how long the store has not been heard of the changes of others, by a clock that nobody sets. It is asked at every
	// request. nil: never.
	Silence func() time.Duration
	Grace   time.Duration // the longest Silence during which sessions are verified; see SetGrace
}

// A View answers which sessions are live. It is safe for concurrent use.
//
// It has no cache of ids that were not found: ids come from sealed cookies and signed tokens and cannot be
// made up. Who replays the cookie of an ended session costs one read at a time.
type View struct {
	store   Store
	idle    time.Duration
	every   time.Duration // between two touches of a session
	now     func() time.Time
	silence func() time.Duration
	grace   atomic.Int64 // nanoseconds
	logger  *slog.Logger
	seed    maphash.Seed
	shards  []*shard
	reads   chan struct{} // one element per read of the store
	touches chan touch

	ctx         context.Context // of reads and touches: no request's, ended by Close
	cancel      context.CancelFunc
	unsubscribe func()
	closing     sync.Once
	quit        chan struct{} // closed when no more touches are queued
	done        chan struct{} // closed when all goroutines have ended
	workers     sync.WaitGroup
	flights     sync.WaitGroup

	touchesDropped atomic.Uint64
	touchErrors    atomic.Uint64
	readErrors     atomic.Uint64
	touchFailing   atomic.Bool
	unheard        atomic.Bool // the last lookup found the store silent for too long
}

// NewView returns a view of store that is told of every change from now on. Close ends it.
func NewView(store Store, o Options) *View {
	if o.Capacity <= 0 {
		o.Capacity = defaultCapacity
	}
	o.Capacity = min(o.Capacity, maxCapacity)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	v := &View{
		store: store, idle: o.Idle, every: touchInterval(o.Idle), now: o.Now, silence: o.Silence, logger: o.Logger, seed: maphash.MakeSeed(),
		reads: make(chan struct{}, maxReads), touches: make(chan touch, touchQueue),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	v.SetGrace(o.Grace)
	v.ctx, v.cancel = context.WithCancel(context.Background())
	n := maxShards
	for n > 1 && o.Capacity/n < minShardSize {
		n /= 2
	}
	for range n {
		v.shards = append(v.shards, newShard(v, (o.Capacity+n-1)/n))
	}
	for range touchWorkers {
		v.workers.Go(v.writeTouches)
	}
	v.unsubscribe = store.Subscribe(v.changed)
	return v
}

// touchInterval returns how often activity is written: often enough that a session dies at most a twentieth
// of its idle time early. Idle times under two minutes need it more often than touchEvery, or a session in
// use would die.
func touchInterval(idle time.Duration) time.Duration {
	every := max(touchEvery, idle/20)
	if idle > 0 {
		every = min(every, idle/2)
	}
	return every
}

func (v *View) shard(id string) *shard {
	return v.shards[maphash.String(v.seed, id)&uint64(len(v.shards)-1)] //nolint:gosec // G115: their number is a power of two
}

// Lookup returns the session with this id if it is live at now, and records the activity without waiting for
// it. It fails with ErrNotFound if there is no such live session, with ErrBlocked if its user is refused at
// now, and with an *UnavailableError if that could not be found out before ctx ended. A session that the view
// knows costs no read of the store and does not allocate.
//
// While the store is unavailable, the sessions that the view knows go on: until their absolute expiry, and as
// long as this view sees activity within the idle time.
//
// A session whose user has not been vouched for lately waits until that is found out.
//
// Once the store has been silent for longer than the grace, no session is verified: one of them may have ended elsewhere. The first lookup after
// the silence is answered as before.
//
// id is good during the call only: a caller need not copy it out of what it has read.
func (v *View) Lookup(ctx context.Context, id string, now time.Time) (*Session, error) {
	if err := v.heard(ctx); err != nil {
		return nil, err
	}
	s, err := v.find(ctx, id, now)
	if err != nil || s.Voucher == nil {
		return s, err
	}
	waited, err := s.Voucher.Vouch(ctx, s.SignedInAt, now)
	if err == nil && !waited {
		return s, nil
	}
	return v.vouched(ctx, s, now, err)
}

// SetGrace changes how long the store may be silent before no session is verified.
func (v *View) SetGrace(d time.Duration) { v.grace.Store(int64(d)) }

// heard fails while the store has been silent for longer than the grace. What the silence is measured by never jumps, forwards or backwards.
func (v *View) heard(ctx context.Context) error {
	if v.silence == nil {
		return nil
	}
	silent, grace := v.silence(), time.Duration(v.grace.Load())
	if silent <= grace {
		if v.unheard.Load() && v.unheard.Swap(false) {
			v.logger.LogAttrs(ctx, slog.LevelInfo, "the storage is heard of again: sessions are verified as before")
		}
		return nil
	}
	if !v.unheard.Swap(true) {
		v.logger.LogAttrs(ctx, slog.LevelError, "no session can be verified: the storage has been silent for too long, and what has ended elsewhere is not known here",
			slog.Duration("silent", silent), slog.Duration("grace", grace))
	}
	return &UnavailableError{ErrSilent}
}

// vouched returns what is known of s after it was found out who its user is.
func (v *View) vouched(ctx context.Context, s *Session, now time.Time, err error) (*Session, error) {
	var unavailable *UnavailableError
	switch {
	case err == nil:
		return v.find(ctx, s.ID, later(now, v.now()))
	case errors.Is(err, ErrNotFound), errors.As(err, &unavailable):
		return nil, err
	}
	return nil, &UnavailableError{err}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// find is Lookup for a user who is vouched for.
func (v *View) find(ctx context.Context, id string, now time.Time) (*Session, error) {
	if id == "" || len(id) > maxID {
		return nil, ErrNotFound
	}
	sh := v.shard(id)
	s, err := sh.lookup(id, now)
	if err == nil {
		return s, nil
	}
	id = strings.Clone(id) // a read outlives the call
	switch {
	case errors.Is(err, errUnknown):
		return v.read(ctx, sh, id, now)
	case errors.Is(err, errIdle):
		// Another replica may have seen activity: ask once before declaring it dead.
		s, err = v.read(ctx, sh, id, now)
		var unavailable *UnavailableError
		if errors.As(err, &unavailable) {
			return sh.goOn(id, now, err)
		}
	}
	return s, err
}

// read waits, until shortly before the deadline of ctx, for one read of the store that knows of every change before the call.
func (v *View) read(ctx context.Context, sh *shard, id string, now time.Time) (*Session, error) {
	start := v.now()
	if end, ok := ctx.Deadline(); ok {
		var cancel func()
		ctx, cancel = context.WithDeadline(ctx, end.Add(-spare))
		defer cancel()
	}
	f, err := sh.join(id) //nolint:contextcheck // the read is for all who wait: no caller ends it
	if err != nil {
		return nil, err
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, &UnavailableError{fmt.Errorf("no answer in time: %w", context.Cause(ctx))}
	}
	if f.err != nil {
		return nil, f.err
	}
	return sh.admit(f.session, now.Add(v.now().Sub(start)))
}

// fly reads a session until no change of it has come in between. It goes on when those who wait for it give
// up: the next request has use for it.
func (v *View) fly(sh *shard, id string, f *flight) {
	defer v.flights.Done()
	ctx, cancel := context.WithTimeout(v.ctx, readTimeout)
	defer cancel()
	for {
		s, err := v.readStore(ctx, id)
		if err != nil && !errors.Is(err, ErrNotFound) {
			v.readErrors.Add(1)
			err = &UnavailableError{err}
		}
		if sh.land(id, f, s, err) {
			return
		}
	}
}

func (v *View) readStore(ctx context.Context, id string) (*Session, error) {
	select {
	case v.reads <- struct{}{}:
		defer func() { <-v.reads }()
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return v.guard(ctx, id, func() (*Session, error) { return v.store.Session(ctx, id) })
}

// guard calls the store, which must not be able to stop the process or to hand out another session.
func (v *View) guard(ctx context.Context, id string, call func() (*Session, error)) (s *Session, err error) {
	defer func() {
		if p := recover(); p != nil {
			v.logger.LogAttrs(ctx, slog.LevelError, "panic in the session store", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			s, err = nil, errors.New("session: panic in the store")
		}
	}()
	s, err = call()
	switch {
	case err != nil:
		return nil, err
	case s == nil || s.ID != id:
		return nil, errors.New("session: store returned another session than the one asked for")
	}
	return s.compact(), nil
}

// changed forgets what is no longer true. It is called by the store, inside the call that makes the change.
func (v *View) changed(c Change) {
	if c.Session != "" {
		v.shard(c.Session).forget(c.Session)
		return
	}
	for _, sh := range v.shards {
		if c.User == (User{}) {
			sh.forgetAll()
		} else {
			sh.forgetUser(c.User)
		}
	}
}

// Stats are counts for metrics. All but Size and Capacity only grow.
type Stats struct {
	Size, Capacity int    // sessions in memory
	Hits           uint64 // lookups answered from memory
	Misses         uint64 // lookups that had to wait for the store
	Evictions      uint64 // sessions that made room for others
	ReadErrors     uint64 // failed reads of the store
	TouchesDropped uint64 // activity that was not written since too much was waiting
	TouchErrors    uint64 // activity that the store did not take
}

// Stats returns the counts at this moment.
func (v *View) Stats() Stats {
	s := Stats{
		ReadErrors:     v.readErrors.Load(),
		TouchesDropped: v.touchesDropped.Load(),
		TouchErrors:    v.touchErrors.Load(),
	}
	for _, sh := range v.shards {
		sh.stats(&s)
	}
	return s
}

// Close ends the view: it writes the activity that waits to be written, but no longer than ctx. Lookups fail
// with an *UnavailableError from now on, since the view is no longer told of changes. It may be called more
// than once.
func (v *View) Close(ctx context.Context) error {
	v.closing.Do(func() {
		for _, sh := range v.shards {
			sh.close()
		}
		v.unsubscribe()
		close(v.quit)
		go func() {
			v.workers.Wait()
			v.cancel()
			v.flights.Wait()
			close(v.done)
		}()
	})
	select {
	case <-v.done:
		return nil
	default:
	}
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
		v.cancel()
		return fmt.Errorf("session: close: the store takes no activity, %d sessions are waiting: %w", len(v.touches), ctx.Err())
	}
}
