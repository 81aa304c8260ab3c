package identity

import (
	"container/list"
	"context"
	"sync"
	"time"

	"gatehouse/connectors"
)

const (
	// maxWait is how long a sign-in may be expected to wait for its turn: beyond it a person reads at once that too many
	// sign in, instead of looking at a page that does not load.
	maxWait = 5 * time.Second
	// minQueue is how many may wait at least, however long one takes.
	minQueue = 8
)

// slotsFor is how many hashes are computed at a time on so many CPUs: half of the machine is for the checks.
func slotsFor(cpus int) int { return max(1, cpus/2) }

// workers run what costs much CPU, few at once and with a short queue: what the gateway checks needs the rest.
//
// Networks take turns, and where the queue is full the network that has most in it gives way: whoever floods it keeps
// himself waiting first. Those without a network count as one.
type workers struct {
	slots int
	most  int // may wait, however little one takes; 0: any number

	mu      sync.Mutex
	running int
	waiting int
	turns   *list.List               // of *line, the next one first
	lines   map[string]*list.Element // by network, in turns
	took    time.Duration            // what one job takes: a moving average
	refused uint64
}

// A line are the jobs of one network that wait, the oldest first.
type line struct {
	network string
	jobs    *list.List // of *job
}

type job struct {
	line  *line
	start chan bool // true: a slot is yours; false: you have given way
}

func newWorkers(slots int) *workers {
	return &workers{slots: max(1, slots), turns: list.New(), lines: map[string]*list.Element{}}
}

// do runs f, or fails with a Busy refusal: at once when the queue is full, or when ctx ends first.
func (w *workers) do(ctx context.Context, network string, f func()) *connectors.Refusal {
	j, no := w.enter(network)
	if no == nil && j != nil {
		no = w.wait(ctx, j)
	}
	if no != nil {
		return no
	}
	begin, took := time.Now(), time.Duration(0)
	defer func() { w.leave(took) }() // should f panic, too
	f()
	if ctx.Err() == nil { // else it may have ended early
		took = time.Since(begin)
	}
	return nil
}

// enter takes a free slot and returns nil, or a place in the queue.
func (w *workers) enter(network string) (*job, *connectors.Refusal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running < w.slots { // then nobody waits
		w.running++
		return nil, nil
	}
	e, ok := w.lines[network]
	if w.waiting >= w.limit() {
		longest := w.longest()
		if ok && e.Value.(*line).jobs.Len()+1 >= longest.jobs.Len() || !ok && longest.jobs.Len() <= 1 {
			return nil, w.refuse(nil)
		}
		newest := longest.jobs.Back()
		w.remove(longest, newest)
		newest.Value.(*job).start <- false
	}
	if !ok {
		e = w.turns.PushBack(&line{network: network, jobs: list.New()})
		w.lines[network] = e
	}
	l := e.Value.(*line)
	j := &job{line: l, start: make(chan bool, 1)}
	l.jobs.PushBack(j)
	w.waiting++
	return j, nil
}

// limit is how many may wait. The caller holds the lock.
func (w *workers) limit() int {
	n := minQueue
	if w.took > 0 {
		n = max(n, int(maxWait*time.Duration(w.slots)/w.took))
	}
	if w.most > 0 {
		n = min(n, w.most)
	}
	return n
}

// longest is the line with most jobs in it. The caller holds the lock; the queue is not empty.
func (w *workers) longest() (l *line) {
	for e := w.turns.Front(); e != nil; e = e.Next() {
		if at := e.Value.(*line); l == nil || at.jobs.Len() > l.jobs.Len() {
			l = at
		}
	}
	return l
}

// remove takes a job out of the queue. The caller holds the lock.
func (w *workers) remove(l *line, at *list.Element) {
	l.jobs.Remove(at)
	w.waiting--
	if l.jobs.Len() == 0 {
		w.turns.Remove(w.lines[l.network])
		delete(w.lines, l.network)
	}
}

// refuse counts a refusal. The caller holds the lock.
func (w *workers) refuse(cause error) *connectors.Refusal {
	w.refused++
	free := time.Duration(w.waiting+1) * w.took / time.Duration(w.slots)
	return &connectors.Refusal{Reason: connectors.Busy, RetryAfter: max(free, time.Second), Err: cause}
}

// wait returns when j has a slot.
func (w *workers) wait(ctx context.Context, j *job) *connectors.Refusal {
	timeout := time.NewTimer(2 * maxWait) // those who came later from other networks may have been first
	defer timeout.Stop()
	var cause error
	select {
	case yours := <-j.start:
		if yours {
			return nil
		}
	case <-timeout.C:
	case <-ctx.Done():
		cause = ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for e := j.line.jobs.Front(); e != nil; e = e.Next() {
		if e.Value.(*job) == j {
			w.remove(j.line, e)
			return w.refuse(cause)
		}
	}
	select {
	case yours := <-j.start: // meanwhile
		if yours {
			w.next()
		}
	default:
	}
	return w.refuse(cause)
}

// leave gives the slot on. took is what the job took, 0 if it did not come to its end.
func (w *workers) leave(took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if took > 0 {
		w.took += (took - w.took) / 8
	}
	w.next()
}

// next gives a slot that has become free to the network whose turn it is. The caller holds the lock.
func (w *workers) next() {
	e := w.turns.Front()
	if e == nil {
		w.running--
		return
	}
	w.turns.MoveToBack(e)
	l := e.Value.(*line)
	first := l.jobs.Front()
	w.remove(l, first)
	first.Value.(*job).start <- true
}

// expect says what a job will take, before there was any.
func (w *workers) expect(took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.took = max(w.took, took)
}

// Queue returns a function that tells how many sign-ins wait until their password is checked, and how many were turned away so
// far, since too many waited or since they gave up. All Doors over the same connectors share one queue.
func (d *Doors) Queue() func() (waiting int, refused uint64) { return d.workers.state }

// DirectoryQueue is the same of sign-ins at directories.
func (d *Doors) DirectoryQueue() func() (waiting int, refused uint64) { return d.directories.state }

func (w *workers) state() (waiting int, refused uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting, w.refused
}

type networkKey struct{}

// withNetwork tells a connector which network a sign-in comes from.
func withNetwork(ctx context.Context, network string) context.Context {
	return context.WithValue(ctx, networkKey{}, network)
}

func networkOf(ctx context.Context) string {
	n, _ := ctx.Value(networkKey{}).(string)
	return n
}
