package session

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// What lookup in memory cannot answer.
var (
	errUnknown = errors.New("session: not in memory")
	errIdle    = errors.New("session: idle, as far as is known here")
)

// evictionProbes is how many sessions are looked at to find one that was not used lately.
const evictionProbes = 16

// A shard holds a part of the sessions. No call leaves the package while mu is held.
type shard struct {
	view     *View
	capacity int

	mu      sync.Mutex
	entries map[string]*entry
	users   map[User]*entry    // the first of each user's list
	flights map[string]*flight // reads under way, by session id
	ring    []*entry           // all entries, for eviction
	hand    int                // where eviction goes on looking
	closed  bool

	hits, misses, evictions uint64
}

// An entry is a session in memory. A change drops the entry, and only the result of a touch renews its
// session: a result that arrives after a change finds that its entry is gone.
//
// It fills one cache line: a lookup that finds its session cold pays for each line.
type entry struct {
	session    *Session
	touched    int64  // up to when activity is written, or on its way, in Unix milliseconds like the next two
	seen       int64  // the last request
	grace      int64  // no read of the store before this time, although idle
	slot       int32  // in the ring
	used       bool   // since eviction last came by
	prev, next *entry // of the same user
}

// A flight is one read of the store that any number of lookups wait for.
type flight struct {
	done    chan struct{}
	session *Session // valid once done is closed, as is err
	err     error

	// What has changed since the read began. Guarded by the shard's mu.
	stale bool
	users []User
}

// maxFlightUsers bounds how many changed users a flight remembers.
const maxFlightUsers = 64

func newShard(v *View, capacity int) *shard {
	return &shard{
		view: v, capacity: capacity,
		entries: make(map[string]*entry), users: make(map[User]*entry), flights: make(map[string]*flight),
	}
}

// lookup answers from memory. errUnknown and errIdle mean that the store must be asked.
func (sh *shard) lookup(id string, now time.Time) (*Session, error) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.entries[id]
	switch {
	case sh.closed:
		return nil, &UnavailableError{ErrClosed}
	case e == nil:
		sh.misses++
		return nil, errUnknown
	}
	s, err := sh.use(e, now)
	if errors.Is(err, errIdle) {
		sh.misses++
	} else {
		sh.hits++
	}
	return s, err
}

// use returns the session of e if it is live at now, and records the activity.
func (sh *shard) use(e *entry, now time.Time) (*Session, error) {
	s, at := e.session, now.UnixMilli()
	switch {
	case !now.Before(s.AbsoluteExpiry):
		sh.drop(e)
		return nil, ErrNotFound
	case !now.Before(s.IdleExpiry) && at >= e.grace:
		return nil, errIdle
	}
	e.used = true
	if now.Before(s.BlockedUntil) {
		return nil, ErrBlocked
	}
	e.seen = at
	every := sh.view.every.Milliseconds()
	if d := at - e.touched; d >= every || d <= -every { // the clock may have been set back
		if sh.view.queue(touch{sh, e, s.ID, now}) {
			e.touched = at
		}
	}
	return s, nil
}

// join returns the flight for a session and starts it if there is none.
func (sh *shard) join(id string) (*flight, error) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.closed {
		return nil, &UnavailableError{ErrClosed}
	}
	f := sh.flights[id]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		sh.flights[id] = f
		sh.view.flights.Add(1)
		go sh.view.fly(sh, id, f)
	}
	return f, nil
}

// land ends a flight with what was read, unless that may be from before a change: then it returns false, and
// the session must be read again.
func (sh *shard) land(id string, f *flight, s *Session, err error) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	found, missing := err == nil, errors.Is(err, ErrNotFound)
	if stale := f.stale || found && slices.Contains(f.users, s.User); stale && (found || missing) {
		f.stale, f.users = false, nil
		return false
	}
	delete(sh.flights, id)
	if old := sh.entries[id]; old != nil && (found || missing) {
		sh.drop(old)
	}
	if found && !sh.closed {
		sh.insert(&entry{session: s, touched: s.LastActivity.UnixMilli()})
	}
	f.session, f.err = s, err
	close(f.done)
	return true
}

// admit returns a session that was just read, if it is live at now.
func (sh *shard) admit(s *Session, now time.Time) (*Session, error) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.closed { // what ends it from now on is not told, and its activity is not written
		return nil, &UnavailableError{ErrClosed}
	}
	e := sh.entries[s.ID]
	if e == nil {
		e = &entry{session: s, touched: now.UnixMilli()} // already changed or evicted: good for this request only
	}
	s, err := sh.use(e, now)
	if errors.Is(err, errIdle) {
		sh.drop(e)
		return nil, ErrNotFound
	}
	return s, err
}

// goOn returns a session that is idle as far as the store ever said, but was seen here within the idle time,
// for a moment in which the store cannot be asked. Otherwise it returns err.
func (sh *shard) goOn(id string, now time.Time, err error) (*Session, error) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.entries[id]
	if e == nil || sh.closed || now.UnixMilli() >= e.seen+sh.view.idle.Milliseconds() {
		return nil, err
	}
	e.grace = now.Add(graceStep).UnixMilli()
	return sh.use(e, now)
}

// forget drops a session that has changed.
func (sh *shard) forget(id string) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if e := sh.entries[id]; e != nil {
		sh.drop(e)
	}
	if f := sh.flights[id]; f != nil {
		f.stale = true
	}
}

// forgetUser drops all sessions of a user that has changed. Whose session a flight reads is known when it lands.
func (sh *shard) forgetUser(u User) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for e := sh.users[u]; e != nil; e = sh.users[u] {
		sh.drop(e)
	}
	for _, f := range sh.flights {
		if len(f.users) < maxFlightUsers {
			f.users = append(f.users, u)
		} else {
			f.stale = true
		}
	}
}

func (sh *shard) forgetAll() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	clear(sh.entries)
	clear(sh.users)
	clear(sh.ring)
	sh.ring, sh.hand = sh.ring[:0], 0
	for _, f := range sh.flights {
		f.stale = true
	}
}

func (sh *shard) close() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.closed = true
}

func (sh *shard) stats(s *Stats) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s.Size += len(sh.ring)
	s.Capacity += sh.capacity
	s.Hits += sh.hits
	s.Misses += sh.misses
	s.Evictions += sh.evictions
}

func (sh *shard) insert(e *entry) {
	if len(sh.ring) >= sh.capacity {
		sh.evict()
	}
	e.slot = int32(len(sh.ring)) //nolint:gosec // G115: a capacity is far smaller
	sh.ring = append(sh.ring, e)
	sh.entries[e.session.ID] = e
	if first := sh.users[e.session.User]; first != nil {
		e.next, first.prev = first, e
	}
	sh.users[e.session.User] = e
}

// drop removes e if it is in memory.
func (sh *shard) drop(e *entry) {
	if sh.entries[e.session.ID] != e {
		return
	}
	delete(sh.entries, e.session.ID)
	last := len(sh.ring) - 1
	sh.ring[e.slot] = sh.ring[last]
	sh.ring[e.slot].slot = e.slot
	sh.ring[last] = nil
	sh.ring = sh.ring[:last]
	if e.next != nil {
		e.next.prev = e.prev
	}
	switch {
	case e.prev != nil:
		e.prev.next = e.next
	case e.next != nil:
		sh.users[e.session.User] = e.next
	default:
		delete(sh.users, e.session.User)
	}
	e.prev, e.next = nil, nil
}

// evict drops a session that was not used since it last came by (the clock algorithm), or, after some
// looking, any.
func (sh *shard) evict() {
	victim := sh.ring[0]
	for range evictionProbes {
		if sh.hand >= len(sh.ring) {
			sh.hand = 0
		}
		victim = sh.ring[sh.hand]
		sh.hand++
		if !victim.used {
			break
		}
		victim.used = false
	}
	sh.drop(victim)
	sh.evictions++
}
