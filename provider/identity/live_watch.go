package identity

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"gatehouse/connectors"
	"gatehouse/connectors/ldap"
)

// How connectors are watched.
const (
	lookForDoors   = 5 * time.Second // connectors open whenever they can
	firstRewatch   = time.Second
	lastRewatch    = time.Minute
	watchedMeansUp = 2 * time.Second  // a watch that has lasted so long, or has told something, works
	watchedIsNews  = 10 * time.Second // one that has lasted so long is in the log, after one that failed
)

// Watch watches the connectors of the current doors that tell of changes, until ctx ends. It looks at the doors again when
// changed says so.
func (l *Live) Watch(ctx context.Context, current func() *Doors, changed <-chan struct{}) {
	var all sync.WaitGroup
	defer all.Wait()
	running := map[*handle]context.CancelFunc{}
	tick := time.NewTicker(lookForDoors)
	defer tick.Stop()
	for {
		l.watchDoors(ctx, current(), running, &all)
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// watchDoors begins to watch what is open, and ends it for what is not used any more.
func (l *Live) watchDoors(ctx context.Context, d *Doors, running map[*handle]context.CancelFunc, all *sync.WaitGroup) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed { // there is a successor
		return
	}
	open := map[*handle]bool{}
	for _, door := range d.live.Load().ordered {
		w, ok := door.inner.(Watcher)
		if !ok {
			continue
		}
		h := door.handle
		open[h] = true
		if running[h] != nil {
			continue
		}
		h.users.Add(1)
		wctx, stop := context.WithCancel(ctx)
		running[h] = stop
		all.Go(func() {
			defer h.release(d.opts.Log, door.ID)
			l.watch(wctx, door.ID, w)
		})
	}
	for h, stop := range running {
		if !open[h] {
			stop()
			delete(running, h)
		}
	}
}

// watch watches one connector, again and again until ctx ends or the connector says that it does not tell of changes.
func (l *Live) watch(ctx context.Context, connector string, w Watcher) {
	state := &watchState{}
	l.metrics.watch(connector, state)
	defer l.metrics.unwatch(connector, state)
	var said atomic.Bool // that it does not work
	for failures := 0; ; failures++ {
		start := time.Now()
		state.begin(start)
		again := time.AfterFunc(watchedIsNews, func() {
			if state.told.Load() && said.CompareAndSwap(true, false) {
				l.Log.InfoContext(ctx, "connector tells of changes again", "connector", connector)
			}
		})
		err := l.watchOnce(ctx, connector, w, state)
		again.Stop()
		up := state.end(time.Now())
		if ctx.Err() != nil || errors.Is(err, ldap.ErrNoWatch) {
			return
		}
		if time.Since(start) > lastRewatch {
			failures = 0
			said.Store(false)
		}
		if said.CompareAndSwap(false, true) {
			l.Log.WarnContext(ctx, "connector does not tell of changes now: they are seen when users are asked about", "connector", connector, "worked", up, "error", err)
		}
		if !sleep(ctx, backOff(failures, firstRewatch, lastRewatch)) {
			return
		}
	}
}

func (l *Live) watchOnce(ctx context.Context, connector string, w Watcher, state *watchState) (err error) {
	defer func() {
		if p := recover(); p != nil {
			l.Log.ErrorContext(ctx, "panic in a connector's Watch", "connector", connector, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return w.Watch(ctx, func(c connectors.Change) { //nolint:contextcheck // a Lookup is for all who wait: no caller ends it
		state.told.Store(true)
		l.Changed(connector, c)
	})
}

// A watchState says whether a watch works.
type watchState struct {
	since atomic.Int64 // Unix nanoseconds; 0: it does not run
	told  atomic.Bool
}

func (w *watchState) begin(at time.Time) {
	w.told.Store(false)
	w.since.Store(at.UnixNano())
}

func (w *watchState) end(at time.Time) (up bool) {
	up = w.up(at)
	w.since.Store(0)
	return up
}

func (w *watchState) up(at time.Time) bool {
	since := w.since.Load()
	return since != 0 && (w.told.Load() || at.Sub(time.Unix(0, since)) >= watchedMeansUp)
}

// Changed takes up what a connector tells of: its users in use are asked about at once, the others when they come back. It does not block.
func (l *Live) Changed(connector string, c connectors.Change) {
	l.mu.Lock()
	s := l.source(connector)
	u := l.users[userKey{connector, c.UserID}].Value()
	l.mu.Unlock()
	if c.UserID == "" {
		s.changed()
	} else if u != nil {
		u.tell(s.lately())
	}
}

// lately is since when a user has been seen who is in use.
func (s *source) lately() int64 { return s.live.nowMilli() - 2*s.every.Load() }

// A round asks about all users of a connector that are in use. While one runs, the next is pending.
type round struct {
	mu      sync.Mutex
	running bool
	pending bool
}

// changed has all users asked about who are in use.
func (s *source) changed() {
	s.rounds.mu.Lock()
	defer s.rounds.mu.Unlock()
	s.rounds.pending = true
	if !s.rounds.running && s.live.ctx.Err() == nil {
		s.rounds.running = true
		go s.goRound()
	}
}

// next reports whether another round is wanted.
func (r *round) next() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running, r.pending = r.pending, false
	return r.running
}

func (s *source) goRound() {
	for s.rounds.next() {
		pause := time.NewTimer(roundEvery)
		lately := s.lately()
		var wait []*flight
		for _, u := range s.live.usersOf(s.connector) {
			if f := u.tell(lately); f != nil {
				wait = append(wait, f)
			}
		}
		for _, f := range wait {
			select {
			case <-f.done:
			case <-s.live.ctx.Done():
			}
		}
		select {
		case <-pause.C:
		case <-s.live.ctx.Done():
			pause.Stop()
		}
	}
}
