package identity

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/connectors"

	"github.com/dexidp/dex/connector"
)

// A queue is workers with what they did.
type queue struct {
	*workers
	mu   sync.Mutex
	done []string
	no   map[string]*connectors.Refusal
	wg   sync.WaitGroup
}

func newQueue(slots int, each time.Duration) *queue {
	q := &queue{workers: newWorkers(slots), no: map[string]*connectors.Refusal{}}
	q.expect(each)
	return q
}

// send lets a job of a network begin, and waits until it runs, waits or was turned away. Within a synctest bubble.
func (q *queue) send(ctx context.Context, network, name string, d time.Duration) {
	q.wg.Go(func() {
		no := q.do(ctx, network, func() { time.Sleep(d) })
		q.mu.Lock()
		defer q.mu.Unlock()
		if no != nil {
			q.no[name] = no
			return
		}
		q.done = append(q.done, name)
	})
	synctest.Wait()
}

func TestFullQueueIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(2, time.Second) // two slots: ten of a second within maxWait
		begin := time.Now()
		for i := range 13 {
			q.send(t.Context(), "", fmt.Sprint(i), time.Second)
		}
		if no := q.no["12"]; no == nil || no.Reason != connectors.Busy || no.RetryAfter != 5500*time.Millisecond || time.Since(begin) != 0 {
			t.Errorf("the 13th: %+v after %s, want busy, and to come again in 5.5s, at once", no, time.Since(begin))
		}
		if waiting, refused := q.state(); waiting != 10 || refused != 1 {
			t.Errorf("%d wait and %d were refused, want 10 and 1", waiting, refused)
		}
		q.wg.Wait()
		if len(q.done) != 12 || time.Since(begin) != 6*time.Second {
			t.Errorf("%d were done after %s, want 12 after 6s", len(q.done), time.Since(begin))
		}
		if waiting, _ := q.state(); waiting != 0 || q.running != 0 || len(q.lines) != 0 || q.turns.Len() != 0 {
			t.Errorf("something is left: %d wait, %d run, %d lines", waiting, q.running, len(q.lines))
		}
	})
}

func TestQueueIsAsLongAsJobsAllow(t *testing.T) {
	for took, want := range map[time.Duration]int{50 * time.Millisecond: 100, time.Second: minQueue, 0: minQueue} {
		q := newQueue(1, took)
		if got := q.limit(); got != want {
			t.Errorf("jobs of %s: %d may wait, want %d", took, got, want)
		}
	}
	q := newQueue(1, time.Second)
	for range 100 {
		q.leave(20 * time.Millisecond)
		q.running++
	}
	if got := q.limit(); got < 200 || got > 260 {
		t.Errorf("after 100 jobs of 20 ms, %d may wait, want about 250", got)
	}
}

func TestFloodersGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, time.Second) // minQueue may wait
		for i := range minQueue + 1 {
			q.send(t.Context(), "flooder", fmt.Sprint("f", i), time.Second)
		}
		q.send(t.Context(), "flooder", "f-late", time.Second)
		q.send(t.Context(), "other", "o1", time.Second)
		q.send(t.Context(), "other", "o2", time.Second)
		q.send(t.Context(), "third", "t1", time.Second)
		q.wg.Wait()
		var turnedAway []string
		for name := range q.no {
			turnedAway = append(turnedAway, name)
		}
		slices.Sort(turnedAway)
		if want := []string{"f-late", "f6", "f7", "f8"}; !slices.Equal(turnedAway, want) {
			t.Errorf("turned away: %v, want %v", turnedAway, want)
		}
		if want := []string{"f0", "f1", "o1", "t1", "f2", "o2", "f3", "f4", "f5"}; !slices.Equal(q.done, want) {
			t.Errorf("order: %v, want %v", q.done, want)
		}
	})
}

func TestManyNetworksFillTheQueueLikeOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, time.Second)
		for i := range minQueue + 2 {
			q.send(t.Context(), fmt.Sprint(i), fmt.Sprint(i), time.Second)
		}
		q.wg.Wait()
		if len(q.no) != 1 || q.no[fmt.Sprint(minQueue+1)] == nil {
			t.Errorf("turned away: %v, want the last", q.no)
		}
	})
}

func TestWhoHasGoneLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, time.Second)
		q.send(t.Context(), "a", "first", time.Second)
		ctx, leave := context.WithCancel(t.Context())
		q.send(ctx, "a", "gone", time.Second)
		q.send(t.Context(), "a", "last", time.Second)
		leave()
		synctest.Wait()
		if waiting, _ := q.state(); waiting != 1 || q.no["gone"] == nil || q.no["gone"].Reason != connectors.Busy {
			t.Errorf("%d wait, %v", waiting, q.no)
		}
		q.wg.Wait()
		if want := []string{"first", "last"}; !slices.Equal(q.done, want) {
			t.Errorf("done: %v, want %v", q.done, want)
		}
	})
}

func TestWhoGivesUpDoesNotMakeTheQueueLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, time.Second)
		for range 100 {
			ctx, leave := context.WithCancel(t.Context())
			if no := q.do(ctx, "", leave); no != nil {
				t.Fatal(no)
			}
		}
		if q.took != time.Second {
			t.Errorf("a job is thought to take %s, want 1s", q.took)
		}
	})
}

func TestNobodyWaitsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, time.Second)
		begin := time.Now()
		q.send(t.Context(), "", "stuck", time.Hour)
		q.send(t.Context(), "", "second", time.Second)
		time.Sleep(2*maxWait + time.Second)
		synctest.Wait()
		if no := q.no["second"]; no == nil || no.Reason != connectors.Busy {
			t.Errorf("after %s: %v", time.Since(begin), no)
		}
		q.wg.Wait()
	})
}

func TestPanicFreesTheSlot(t *testing.T) {
	q := newQueue(1, time.Second)
	func() {
		defer func() { _ = recover() }()
		_ = q.do(t.Context(), "", func() { panic("bug") })
	}()
	if no := q.do(t.Context(), "", func() {}); no != nil {
		t.Error(no)
	}
}

// turning refuses without looking at the password.
type turning struct {
	directory

	no *connectors.Refusal
}

func (d *turning) Login(context.Context, connector.Scopes, string, string) (connector.Identity, bool, error) {
	return connector.Identity{}, false, d.no
}

func TestPasswordsThatWereNotTriedAreRemembered(t *testing.T) {
	for reason, want := range map[connectors.Reason]bool{
		connectors.Busy: true, connectors.Throttled: true,
		connectors.WrongCredentials: false, connectors.Blocked: false, connectors.NotAllowed: false, connectors.Unavailable: false,
	} {
		no := &connectors.Refusal{Reason: reason, RetryAfter: time.Second}
		door, _ := newTestDoor(t, &turning{no: no}, DefaultLimits())
		ctx, turned := WithTurned(t.Context())
		if _, got := turned.Away(); got != nil {
			t.Errorf("%s: refused before it was tried", reason)
		}
		if _, ok, _ := (passwordPart{door}).Login(ctx, connector.Scopes{}, "alice", "right"); ok {
			t.Errorf("%s: signed in", reason)
		}
		if id, got := turned.Away(); (got == no && id == "dir") != want || !want && got != nil {
			t.Errorf("%s: remembered %+v of %q, want it: %v", reason, got, id, want)
		}
	}
}
