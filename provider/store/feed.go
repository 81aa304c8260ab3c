package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dexidp/dex/storage"
)

const (
	// feedPage is how many writes Follow reads at once.
	feedPage = 1000
	// pollTimeout ends a read of the change log that hangs.
	pollTimeout = 10 * time.Second
)

// A feed tells subscribers of changes.
type feed struct {
	instance string       // prefix of the Origin of this store's writes
	writes   atomic.Int64 // numbers them

	following atomic.Bool
	cursor    int64        // place in the change log; belongs to whoever follows
	opened    time.Time    // with its monotonic reading, which no setting of the clock changes
	heard     atomic.Int64 // when the log was last read to its end, in nanoseconds since opened

	mu        sync.Mutex
	listeners []*func(Change)      // replaced, never modified
	delays    func(time.Duration)  // nil: nobody counts
	unknown   map[string]time.Time // writes of ours whose outcome is not known, and since when
}

func newFeed(head int64) *feed {
	return &feed{instance: rand.Text() + "/", cursor: head, opened: time.Now(), unknown: map[string]time.Time{}}
}

// Subscribe has f called for every change in the log: for a change made through this Store after it is
// stored and before the call that made it returns, for those of other processes by Follow. f must not block
// and must be safe for concurrent use; it may use the Store. Calls for one record may come in another order
// than its changes did: f forgets what it knows of the record, whatever that is. A change of the zero Kind
// means: forget everything. Once cancel has returned, no new call of f begins.
func (s *Store) Subscribe(f func(Change)) (cancel func()) {
	l := &f
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.listeners = append(slices.Clone(s.feed.listeners), l)
	return func() {
		s.feed.mu.Lock()
		defer s.feed.mu.Unlock()
		s.feed.listeners = slices.DeleteFunc(slices.Clone(s.feed.listeners), func(o *func(Change)) bool { return o == l })
	}
}

// ObserveDelays has f called for each change of another process that Follow sees, with how long ago it was made, by the clocks of both. f must not block.
func (s *Store) ObserveDelays(f func(time.Duration)) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.delays = f
}

// late notes that a change was seen.
func (f *feed) late(by time.Duration) {
	f.mu.Lock()
	observe := f.delays
	f.mu.Unlock()
	if observe != nil {
		observe(max(0, by)) // less: the other clock is ahead
	}
}

func (f *feed) deliver(changes ...Change) {
	f.mu.Lock()
	listeners := f.listeners
	f.mu.Unlock()
	for _, c := range changes {
		for _, l := range listeners {
			(*l)(c)
		}
	}
}

// write makes one change and tells subscribers.
//
// A write that failed in an unknown way (the connection broke during the commit) may have happened, or may
// happen yet. It is told at once all the same, and once more by Follow if it shows up in the log.
func (s *Store) write(ctx context.Context, op Op, more ...Op) error {
	if len(op.Changes) == 0 {
		_, err := s.driver.Write(ctx, append([]Op{op}, more...))
		return err
	}
	origin, now := fmt.Sprintf("%s%d", s.feed.instance, s.feed.writes.Add(1)), s.opts.Now()
	for i := range op.Changes {
		op.Changes[i].Origin, op.Changes[i].At = origin, now
	}
	seq, err := s.driver.Write(ctx, append([]Op{op}, more...))
	if err != nil && isOutcome(err) {
		return err
	}
	if err != nil {
		s.feed.doubt(origin, now, s.opts.Retention)
		seq = 0
	}
	told := slices.Clone(op.Changes)
	for i := range told {
		told[i].Seq = seq
	}
	s.feed.deliver(told...)
	return err
}

// isOutcome reports whether err says that nothing was written.
func isOutcome(err error) bool {
	return errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrAlreadyExists) || errors.Is(err, ErrConflict)
}

// doubt remembers a write until it cannot be in the log any more.
func (f *feed) doubt(origin string, now time.Time, retention time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for o, since := range f.unknown {
		if now.Sub(since) > retention {
			delete(f.unknown, o)
		}
	}
	f.unknown[origin] = now
}

// isTold reports whether a change in the log is one of ours that subscribers know already.
func (f *feed) isTold(c Change) bool {
	if !strings.HasPrefix(c.Origin, f.instance) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, doubtful := f.unknown[c.Origin]
	return !doubtful
}

// Follow delivers the changes that other processes make until ctx is done, and then returns ctx's error. It
// reads the change log at once, then every Options.FeedInterval and whenever a Waker says so. One call may run at a time; a later one
// goes on where it ended.
//
// Each change is delivered exactly once: the log shows commits in their order (see Log), so that none can
// appear behind the place already read, and every entry names the write that made it, by which this store's
// own, which were told when they happened, are left out. (Those whose outcome was unknown are told twice.) A
// reader that stayed away for longer than the log is kept delivers one change of the zero Kind instead.
func (s *Store) Follow(ctx context.Context) error {
	if !s.feed.following.CompareAndSwap(false, true) {
		return errors.New("store: the change log is being followed already: call Follow once per Store")
	}
	defer s.feed.following.Store(false)
	tick := time.NewTicker(s.opts.FeedInterval)
	defer tick.Stop()
	woken, stop := s.wake(ctx)
	defer stop()
	silent := false
	for {
		err := s.poll(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case err != nil && !silent:
			s.opts.Logger.WarnContext(ctx, "the change log cannot be read: changes of other processes are not seen", "error", err)
		case err == nil && silent:
			s.opts.Logger.InfoContext(ctx, "the change log can be read again")
		}
		silent = err != nil
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-woken:
		}
	}
}

// wake returns a channel that says when to read the change log before its time. stop waits until nobody sends on it any more.
func (s *Store) wake(ctx context.Context) (woken <-chan struct{}, stop func()) {
	w, ok := s.driver.Driver.(Waker)
	if !ok {
		return nil, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	c, over := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(over)
		w.Wake(ctx, func() {
			select {
			case c <- struct{}{}:
			default: // one is waiting already
			}
		})
	}()
	return c, func() { cancel(); <-over }
}

// FeedAge returns how long ago the change log was last read to its end: what happened elsewhere
// before that is known here. It counts from the opening of the Store, by the monotonic clock: Options.Now, which may be
// set, has no part in it.
func (s *Store) FeedAge() time.Duration {
	return time.Since(s.feed.opened) - time.Duration(s.feed.heard.Load())
}

// poll reads the change log to its end.
func (s *Store) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	for {
		began := time.Since(s.feed.opened)
		page, err := s.driver.Changes(ctx, s.feed.cursor, feedPage)
		if errors.Is(err, ErrTrimmed) {
			if err := s.skipAhead(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for _, c := range page {
			if !s.feed.isTold(c) {
				s.feed.deliver(c)
				s.feed.late(s.opts.Now().Sub(c.At))
			}
			s.feed.cursor = c.Seq
		}
		if len(page) == 0 {
			s.feed.heard.Store(int64(began))
			return nil
		}
	}
}

// skipAhead goes to the end of a log that has lost changes, then has subscribers forget everything: in this
// order, so that what happens between the two is read next.
func (s *Store) skipAhead(ctx context.Context) error {
	head, err := s.driver.Head(ctx)
	if err != nil {
		return err
	}
	s.opts.Logger.WarnContext(ctx, "changes of other processes were missed: everything known is read again")
	s.feed.cursor = head
	s.feed.deliver(Change{Seq: head, At: s.opts.Now()})
	return nil
}
