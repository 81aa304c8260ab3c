package store

import (
	"context"
	"sync"
	"time"
)

// A queue lets one caller at a time work on a key. It only saves work: what keeps updates apart is the
// record's version. Therefore nobody waits for ever, not even an updater that updates its own record.
type queue struct {
	patience time.Duration // how long one waits before going ahead regardless

	mu    sync.Mutex
	lanes map[string]*lane // keys with somebody in them
}

type lane struct {
	turn   chan struct{} // holds one token while somebody works
	inside int           // callers that wait or work; guarded by queue.mu
}

func newQueue(patience time.Duration) *queue {
	return &queue{patience: patience, lanes: map[string]*lane{}}
}

// enter waits for the turn of its caller, who must call leave in the end.
func (q *queue) enter(ctx context.Context, key string) (leave func(), err error) {
	q.mu.Lock()
	l := q.lanes[key]
	if l == nil {
		l = &lane{turn: make(chan struct{}, 1)}
		q.lanes[key] = l
	}
	l.inside++
	q.mu.Unlock()

	timer := time.NewTimer(q.patience)
	defer timer.Stop()
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn; q.exit(key, l) }, nil
	case <-timer.C:
		return func() { q.exit(key, l) }, nil
	case <-ctx.Done():
		q.exit(key, l)
		return nil, ctx.Err()
	}
}

func (q *queue) exit(key string, l *lane) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l.inside--; l.inside == 0 {
		delete(q.lanes, key)
	}
}
