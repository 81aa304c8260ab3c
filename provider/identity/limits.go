package identity

import (
	"container/list"
	"context"
	"sync"
	"time"

	"gatehouse/connectors"
)

// Limits bound the guessing of passwords. Only failures count: a right password is never refused because of
// other right ones.
type Limits struct {
	PerUser    int           // failures of one user name at one connector within Window
	PerNetwork int           // failures from one network within Window; 0: off
	Window     time.Duration // after it, failures are forgotten
	Entries    int           // user names and networks remembered at most, each about 200 bytes
}

// DefaultLimits stay below the lockout thresholds that directories usually have.
func DefaultLimits() Limits {
	return Limits{PerUser: 5, PerNetwork: 50, Window: 15 * time.Minute, Entries: 100_000}
}

// A quota is how many failures of one user are allowed within a time.
type quota struct {
	failures int
	within   time.Duration
}

func (l Limits) quota() quota { return quota{l.PerUser, l.Window} }

// maxWindow is how long a failure counts at most: a directory may count until the next right password.
const maxWindow = time.Hour

// below is a quota that keeps a user's failures below what locks the account at a directory: most of them, where a failure counts for as
// long as counted. Nothing that is 0 is known.
func (q quota) below(most int, counted time.Duration) quota {
	if most > 0 {
		q.failures = min(q.failures, most)
		q.within = max(q.within, min(counted, maxWindow))
	}
	return q
}

// A limiter counts failures by key. An attempt that is under way counts as if it failed, so that many at once
// cannot pass a limit; the ones beyond it wait for those before them instead of being refused.
type limiter struct {
	window  time.Duration
	entries int
	now     func() time.Time

	mu    sync.Mutex
	byKey map[string]*list.Element // of *failures
	order *list.List               // least recently used first
}

type failures struct {
	key      string
	at       []time.Time // of the failures, oldest first
	inFlight int
	changed  chan struct{} // closed when an attempt ends
}

func newLimiter(window time.Duration, entries int, now func() time.Time) *limiter {
	return &limiter{window: window, entries: entries, now: now, byKey: map[string]*list.Element{}, order: list.New()}
}

// begin waits until key may try once more. done must be called with the outcome.
// It fails with a Throttled refusal when limit failures are younger than the window, or with ctx's error.
func (l *limiter) begin(ctx context.Context, key string, limit int) (done func(failed bool), err error) {
	return l.beginWithin(ctx, key, limit, l.window)
}

// beginWithin is the same with a window of the key's own.
func (l *limiter) beginWithin(ctx context.Context, key string, limit int, window time.Duration) (done func(failed bool), err error) {
	for {
		f, wait, err := l.tryBegin(key, limit, window)
		if err != nil {
			return nil, err
		}
		if wait == nil {
			return func(failed bool) { l.end(f, failed) }, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, &connectors.Refusal{Reason: connectors.Busy, RetryAfter: time.Second, Err: ctx.Err()}
		}
	}
}

func (l *limiter) tryBegin(key string, limit int, window time.Duration) (f *failures, wait <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f = l.entry(key)
	now := l.now()
	for len(f.at) > 0 && now.Sub(f.at[0]) >= window {
		f.at = f.at[1:]
	}
	if len(f.at) >= limit {
		return nil, nil, &connectors.Refusal{Reason: connectors.Throttled, RetryAfter: f.at[len(f.at)-limit].Add(window).Sub(now)}
	}
	if len(f.at)+f.inFlight >= limit {
		return nil, f.changed, nil
	}
	f.inFlight++
	return f, nil, nil
}

// entry returns the record of key, the most recently used one now. Records with attempts under way are kept.
func (l *limiter) entry(key string) *failures {
	if e, ok := l.byKey[key]; ok {
		l.order.MoveToBack(e)
		return e.Value.(*failures)
	}
	for e := l.order.Front(); e != nil && len(l.byKey) >= l.entries; {
		next := e.Next()
		if old := e.Value.(*failures); old.inFlight == 0 {
			l.order.Remove(e)
			delete(l.byKey, old.key)
		}
		e = next
	}
	f := &failures{key: key, changed: make(chan struct{})}
	l.byKey[key] = l.order.PushBack(f)
	return f
}

func (l *limiter) end(f *failures, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.inFlight--
	if failed {
		f.at = append(f.at, l.now())
	}
	close(f.changed)
	f.changed = make(chan struct{})
	if len(f.at) == 0 && f.inFlight == 0 { // nothing to remember
		if e, ok := l.byKey[f.key]; ok && e.Value.(*failures) == f {
			l.order.Remove(e)
			delete(l.byKey, f.key)
		}
	}
}
