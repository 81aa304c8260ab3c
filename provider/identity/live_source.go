package identity

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"gatehouse/connectors"
)

// A source is a connector as a Live asks it: many users in one Lookup, few Lookups at a time, and not on and on while it is down.
type source struct {
	live      *Live
	connector string
	every     atomic.Int64 // milliseconds; this and the next two are the connector's Pace
	batch     atomic.Int64
	most      atomic.Int64

	mu       sync.Mutex
	first    []*User // to be asked about, since a request waits for it
	queue    []*User // to be asked about after those
	timer    *time.Timer
	due      time.Time // of the timer; zero: it does not run
	over     bool      // somebody in the queue has waited long enough
	lookups  int       // under way
	stuck    int       // of them, those that do not end when they should
	down     bool
	failures int   // in a row
	retry    int64 // no Lookup before

	rounds round
}

func (s *source) setPace(p Pace) {
	s.every.Store(p.Every.Milliseconds())
	s.batch.Store(int64(p.Batch))
	s.most.Store(int64(p.Lookups))
}

// asked reports whether users of the connector are asked about.
func (s *source) asked() bool {
	a, release, err := s.live.Asker(s.connector)
	if a != nil {
		release()
	}
	return a != nil || err != nil
}

// state reports whether the connector could not be asked lately, and when it is asked again.
func (s *source) state() (down bool, retry int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down, s.retry
}

// gather is how long a Lookup waits for more users.
func (s *source) gather(waited bool) time.Duration {
	if waited {
		return gatherWaited
	}
	return time.Duration(s.every.Load()) * time.Millisecond / gatherShare
}

// add has a user asked about with the next Lookup, which begins in time. Who is waited for comes before those who are not.
func (s *source) add(u *User, within time.Duration, waited bool) {
	s.mu.Lock()
	if waited {
		s.first = append(s.first, u)
	} else {
		s.queue = append(s.queue, u)
	}
	full := s.queued() >= int(s.batch.Load())
	s.mu.Unlock()
	if full {
		s.flush(false)
	}
	s.within(within)
}

// queued is called with mu held, as is take.
func (s *source) queued() int { return len(s.first) + len(s.queue) }

// take returns the next who are to be asked about.
func (s *source) take() []*User {
	size := int(s.batch.Load())
	n := min(len(s.first), size)
	m := min(len(s.queue), size-n)
	batch := slices.Concat(s.first[:n], s.queue[:m])
	s.first, s.queue = slices.Delete(s.first, 0, n), slices.Delete(s.queue, 0, m)
	return batch
}

// within has the next Lookup begin in time, if anybody is to be asked about.
func (s *source) within(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := time.Now().Add(d) // not Now of the options: a timer runs by this clock
	if s.queued() == 0 || !s.due.IsZero() && !due.Before(s.due) {
		return
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	s.due, s.timer = due, time.AfterFunc(d, func() { s.flush(true) })
}

// flush begins as many Lookups as it may: full ones, and others once it is due. What must wait is looked at when one of them ends.
func (s *source) flush(due bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if due {
		s.due, s.over = time.Time{}, true
	}
	most, size := int(s.most.Load()), int(s.batch.Load())
	for s.lookups < most || s.stuck >= most {
		if n := s.queued(); n == 0 || n < size && !s.over {
			break
		}
		batch := s.take()
		if s.stuck >= most {
			go s.land(batch, s.live.moment(), nil, errStuck)
			continue
		}
		s.lookups++
		go s.run(batch)
	}
	s.over = s.over && s.queued() > 0
}

var (
	errStuck = errors.New("identity: no Lookup of the connector ends")
	errLate  = errors.New("identity: the connector did not answer in time")
	errPanic = errors.New("identity: panic in the connector")
)

type answered struct {
	list []connectors.Answer
	err  error
}

// run asks about some users.
func (s *source) run(batch []*User) {
	began := s.live.moment()
	start := time.Now()
	ctx, cancel := context.WithTimeout(s.live.ctx, lookupTimeout)
	defer cancel()
	result := make(chan answered, 1)
	go func() {
		list, err := s.lookup(ctx, batch)
		result <- answered{list, err}
	}()
	var got answered
	select {
	case got = <-result:
		s.ended()
	case <-ctx.Done():
		got.err = errLate
		select {
		case got = <-result:
			s.ended()
		default:
			s.hangs(result)
		}
	}
	s.live.metrics.lookup(s.connector, time.Since(start))
	s.note(got.err)
	s.land(batch, began, got.list, got.err)
}

// ended makes room for the next Lookup.
func (s *source) ended() {
	s.mu.Lock()
	s.lookups--
	s.mu.Unlock()
	s.flush(false)
}

// hangs waits in the background for a Lookup that does not end: until then it takes the place of another.
func (s *source) hangs(result <-chan answered) {
	s.mu.Lock()
	s.stuck++
	s.mu.Unlock()
	go func() {
		<-result
		s.mu.Lock()
		s.stuck--
		s.mu.Unlock()
		s.ended()
	}()
}

// lookup asks the connector, which must not be able to stop the process or to answer for another user.
func (s *source) lookup(ctx context.Context, batch []*User) (list []connectors.Answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.live.Log.ErrorContext(ctx, "panic in a connector's Lookup", "connector", s.connector, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			list, err = nil, errPanic
		}
	}()
	a, release, err := s.live.Asker(s.connector)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(batch))
	for i, u := range batch {
		ids[i] = u.id
	}
	if a == nil { // a new configuration has none that can be asked: nothing is known against its users
		return nil, errNotOpen
	}
	defer release()
	list, err = a.Lookup(ctx, ids)
	if err == nil && len(list) != len(ids) {
		err = fmt.Errorf("identity: asked about %d users, got %d answers", len(ids), len(list))
	}
	return list, err
}

// note says once that a connector cannot be asked, and once that it can.
func (s *source) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.down
	s.down = err != nil
	if err == nil {
		s.failures, s.retry = 0, 0
		if was {
			s.live.Log.Info("connector answers again", "connector", s.connector)
		}
		return
	}
	s.retry = s.live.nowMilli() + backOff(s.failures, firstRetry, lastRetry).Milliseconds()
	s.failures++
	if no, ok := errors.AsType[*connectors.Refusal](err); ok && no.Err != nil {
		err = no.Err // nobody signs in here
	}
	if !was && s.live.ctx.Err() == nil {
		s.live.Log.Warn("connector cannot be asked who its users are now: what it said last serves for a while", "connector", s.connector, "error", err)
	}
}

// backOff returns the pause after failures in a row, with a jitter.
func backOff(failures int, first, last time.Duration) time.Duration {
	d := min(last, first<<min(failures, 16))
	return d/2 + rand.N(d/2+1) //nolint:gosec // G404: spreads load, guards nothing
}

// land makes answers of a question of began true.
func (s *source) land(batch []*User, began moment, list []connectors.Answer, err error) {
	ctx, cancel := context.WithTimeout(s.live.ctx, lookupTimeout)
	defer cancel()
	for i, u := range batch {
		if err != nil {
			s.count(resultUnavailable)
			s.recall(ctx, u)
			u.land(began, false)
			continue
		}
		s.answer(ctx, u, began, list[i])
	}
	if err == nil {
		s.remember(ctx, batch, began.at)
	}
}

// recall looks up once when a user was vouched for before this process began.
func (s *source) recall(ctx context.Context, u *User) {
	u.mu.Lock()
	known := u.recall || u.checked > u.source.live.nowMilli()-u.source.live.stale.Load()
	u.mu.Unlock()
	if known {
		return
	}
	var at time.Time
	err := quietly(func() (err error) {
		at, err = s.live.Recall(ctx, s.connector, u.id)
		return err
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	u.recall = err == nil
	if now := s.live.nowMilli(); err == nil && at.UnixMilli() <= now {
		u.kept = max(u.kept, at.UnixMilli())
	}
}

// remember keeps the time of good answers about users, now and then.
func (s *source) remember(ctx context.Context, batch []*User, at int64) {
	var users []*User
	var ids []string
	for _, u := range batch {
		u.mu.Lock()
		if u.checked == at && at-u.kept >= rememberEvery.Milliseconds() {
			users, ids = append(users, u), append(ids, u.id)
		}
		u.mu.Unlock()
	}
	if len(ids) == 0 {
		return
	}
	err := quietly(func() error { return s.live.Remember(ctx, s.connector, ids, time.UnixMilli(at)) })
	if err != nil { // the next answer is as good
		s.live.Log.DebugContext(ctx, "when users were vouched for is not kept", "connector", s.connector, "error", err)
		return
	}
	for _, u := range users {
		u.mu.Lock()
		u.kept = max(u.kept, at)
		u.mu.Unlock()
	}
}

// quietly makes an error of a panic.
func quietly(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("identity: panic in the store: %T", p)
		}
	}()
	return f()
}

func (s *source) count(result string) {
	s.live.metrics.results.WithLabelValues(s.connector, result).Inc()
}

// answer makes one answer true. One that is older than the question counts from when it was given.
func (s *source) answer(ctx context.Context, u *User, began moment, a connectors.Answer) {
	if !a.At.IsZero() {
		began.at = min(began.at, a.At.UnixMilli())
	}
	switch {
	case a.Err == nil:
		news, over, err := s.keep(ctx, u, a.Identity, began.at)
		switch {
		case err != nil:
			s.live.Log.WarnContext(ctx, "what a connector says of a user could not be taken", "connector", s.connector, "user_id", u.id, "error", err)
			s.count(resultUnavailable)
		case news:
			s.count(resultChanged)
		default:
			s.count(resultSame)
		}
		// What began in the same millisecond may be of the new password: the store tells them apart.
		if until := over.UnixMilli() - 1; err == nil && !over.IsZero() && u.outdated(until) {
			go s.end(u, connectors.PasswordChanged, until)
		}
		u.land(began, err == nil)
	case a.Err.Reason == connectors.Unaskable:
		s.count(resultUnaskable)
		u.land(began, true)
	case !final(a.Err.Reason):
		s.count(resultUnavailable)
		u.land(began, false)
	case u.refuse(began.at):
		s.count(resultEnded)
		go s.end(u, a.Err.Reason, began.at)
	}
}

// final reports whether a reason says that the user may not go on, and not that it is not known.
func final(r connectors.Reason) bool {
	unknown := []connectors.Reason{"", connectors.Unavailable, connectors.Busy, connectors.Throttled, connectors.ThrottledAccount, connectors.NegotiateRefused, connectors.Unaskable}
	return !slices.Contains(unknown, r)
}

// What a directory may say of one user, in bytes and groups.
const (
	maxClaim  = 4 << 10
	maxGroups = 100_000
)

// keep stores an identity if it is news.
func (s *source) keep(ctx context.Context, u *User, id connectors.Identity, began int64) (news bool, over time.Time, err error) {
	if id.UserID != u.id {
		return false, over, errors.New("identity: the answer is about another user")
	}
	texts := append([]string{id.Email, id.Name, id.PreferredUsername}, id.Groups...)
	if len(id.Groups) > maxGroups {
		return false, over, fmt.Errorf("identity: got %d groups, want at most %d", len(id.Groups), maxGroups)
	}
	for _, t := range texts {
		if len(t) > maxClaim || !utf8.ValidString(t) {
			return false, over, fmt.Errorf("identity: a name, e-mail or group is longer than %d bytes or not UTF-8", maxClaim)
		}
	}
	err = quietly(func() (err error) {
		news, over, err = s.live.Keep(ctx, s.connector, id, time.UnixMilli(began))
		return err
	})
	return news, over, err
}

// end ends a user's sessions, and tries again until that is done: the user is refused meanwhile.
func (s *source) end(u *User, reason connectors.Reason, until int64) {
	for failures := 0; ; failures++ {
		err := s.endOnce(u, reason, time.UnixMilli(until))
		if err == nil {
			u.over(until)
			return
		}
		if s.live.ctx.Err() != nil {
			return
		}
		if failures == 0 {
			s.live.Log.Error("sessions of a user who may not go on could not be ended: they are refused, and it is tried again",
				"connector", s.connector, "user_id", u.id, "reason", string(reason), "error", err)
		}
		if !sleep(s.live.ctx, backOff(failures, firstRetry, lastRetry)) {
			return
		}
	}
}

func (s *source) endOnce(u *User, reason connectors.Reason, until time.Time) error {
	select {
	case s.live.enders <- struct{}{}:
	case <-s.live.ctx.Done():
		return s.live.ctx.Err()
	}
	defer func() { <-s.live.enders }()
	return quietly(func() error { return s.live.End(s.live.ctx, s.connector, u.id, reason, until) })
}

// sleep waits, and reports whether it was to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
