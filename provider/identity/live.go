package identity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"gatehouse/connectors"

	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// An Asker is a connector that says who its users are now: the answers are in the order of the ids. An error means that it could
// not find out about anybody.
type Asker interface {
	Lookup(ctx context.Context, userIDs []string) ([]connectors.Answer, error)
}

// A Watcher is a connector that tells of changes, until ctx ends or it cannot go on.
type Watcher interface {
	Watch(ctx context.Context, f func(connectors.Change)) error
}

// ErrEnded means that a user may not go on: the connector has said so.
var ErrEnded = errors.New("identity: the user may not go on")

// What asking costs at most.
const (
	batchSize     = 128                    // users in one Lookup
	maxLookups    = 4                      // Lookups of one connector at a time
	lookupTimeout = 10 * time.Second       // of one Lookup
	gatherWaited  = 100 * time.Millisecond // how long a Lookup waits for more users where a request waits for it
	gatherShare   = 12                     // and for the share of Every that this divides it into where none does
	longestWait   = time.Second            // of a request for an answer
	spare         = 20 * time.Millisecond  // that a request keeps for itself before its deadline
	roundEvery    = 500 * time.Millisecond // between two Lookups of a user, or of all, since something has changed
	firstRetry    = time.Second            // after a connector could not be asked
	lastRetry     = 30 * time.Second
	failingStep   = time.Second      // how often a request looks what has become of that
	rememberEvery = 5 * time.Minute  // how old what Remember keeps may get
	endersAtOnce  = 4                // users whose sessions are being ended
	clockSkew     = 10 * time.Second // between replicas: a sign-in of a later time was never
)

// A Policy says how often users are asked about.
type Policy struct {
	Every time.Duration   // an answer older than this is renewed in the background; one twice as old is waited for
	Stale time.Duration   // the last answer serves as long as this where no other is to be had
	Of    map[string]Pace // by connector, where it is another than that of a directory
}

// A Pace says how a connector is asked.
type Pace struct {
	Every   time.Duration // as in Policy
	Batch   int           // users in one Lookup
	Lookups int           // at a time
}

// pace is that of a connector.
func (p Policy) pace(connector string) Pace {
	if of, ok := p.Of[connector]; ok {
		return of
	}
	return Pace{Every: p.Every, Batch: batchSize, Lookups: maxLookups}
}

// LiveOptions are what a Live is made of. All but Wait are needed.
type LiveOptions struct {
	Policy Policy
	Now    func() time.Time
	Log    *slog.Logger
	// Asker returns who answers for a connector now, and what is called after the answer. Nil: its users are not asked about.
	// An error means that it cannot be asked at present.
	Asker func(connector string) (a Asker, release func(), err error)
	// Keep stores what a connector says of a user who was asked about at asOf, and reports whether that is news. A later sign-in knows better.
	// over is until when sessions began that are still to be ended, since the user's password is another one by now; zero: none are.
	Keep func(ctx context.Context, connector string, id connectors.Identity, asOf time.Time) (news bool, over time.Time, err error)
	// End ends the sessions of a user that began until then, and all that comes with them.
	End func(ctx context.Context, connector, userID string, reason connectors.Reason, until time.Time) error
	// Remember keeps the time of a good answer about users for Recall, which returns it, or the zero time. It counts after a restart while the
	// connector cannot be asked, and for nothing else.
	Remember func(ctx context.Context, connector string, userIDs []string, at time.Time) error
	Recall   func(ctx context.Context, connector, userID string) (time.Time, error)
	// Wait is how long a request waits for an answer, where that is not longestWait: tests that say what the answer is have more time.
	Wait time.Duration
}

// A Live goes on asking who users are, as long as somebody uses their sessions. It outlives configurations.
type Live struct {
	LiveOptions
	ctx     context.Context // of all that it does in the background
	stale   atomic.Int64    // milliseconds
	changes atomic.Int64    // how many the connectors have told of
	enders  chan struct{}   // one element per user whose sessions are being ended
	metrics *liveMetrics

	mu      sync.Mutex
	users   map[userKey]weak.Pointer[User] // those that a session in memory refers to
	sources map[string]*source
	policy  Policy
}

type userKey struct{ connector, id string }

// NewLive returns a Live that ends with ctx.
func NewLive(ctx context.Context, o LiveOptions) *Live {
	l := &Live{
		LiveOptions: o, ctx: ctx, enders: make(chan struct{}, endersAtOnce),
		users: map[userKey]weak.Pointer[User]{}, sources: map[string]*source{},
	}
	l.metrics = newLiveMetrics(l)
	l.SetPolicy(o.Policy)
	return l
}

// SetPolicy changes how often users are asked about, from the next request on. What is known of them stays known.
func (l *Live) SetPolicy(p Policy) {
	l.stale.Store(p.Stale.Milliseconds())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.policy = p
	for connector, s := range l.sources {
		s.setPace(p.pace(connector))
	}
}

// Every is how old an answer of a connector gets before it is renewed.
func (l *Live) Every(connector string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.policy.pace(connector).Every
}

// User returns what is known of a user who last proved who they are at signedIn. Whoever keeps it is asked for by Vouch. It is
// forgotten when nobody refers to it any more.
func (l *Live) User(connector, id string, signedIn time.Time) *User {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := userKey{connector, id}
	u := l.users[k].Value()
	if u == nil {
		u = &User{source: l.source(connector), id: id}
		l.users[k] = weak.Make(u)
		runtime.AddCleanup(u, l.forget, k)
	}
	u.signedIn(signedIn.UnixMilli())
	return u
}

// Ask asks about a user soon, whether or not anybody uses their sessions. It does not block.
func (l *Live) Ask(connector, id string) {
	if u := l.User(connector, id, time.Time{}); u.source.asked() {
		u.tell(0)
	}
}

// source is called with mu held.
func (l *Live) source(connector string) *source {
	s := l.sources[connector]
	if s == nil {
		s = &source{live: l, connector: connector}
		s.setPace(l.policy.pace(connector))
		l.sources[connector] = s
	}
	return s
}

func (l *Live) forget(k userKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users[k].Value() == nil {
		delete(l.users, k)
	}
}

// usersOf returns those of a connector that a session in memory refers to.
func (l *Live) usersOf(connector string) (all []*User) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, w := range l.users {
		if k.connector != connector {
			continue
		}
		if u := w.Value(); u != nil {
			all = append(all, u)
		}
	}
	return all
}

func (l *Live) nowMilli() int64 { return l.Now().UnixMilli() }

// A User is somebody whose sessions are in use, as the connector sees them. All times are in Unix milliseconds.
type User struct {
	source *source
	id     string
	// next is when something is to be done: until then Vouch has nothing else to look at.
	next atomic.Int64

	mu      sync.Mutex
	checked int64   // when the last good answer was asked for, a sign-in included
	seen    int64   // the last request that looked
	kept    int64   // what Remember has, as far as is known here
	recall  bool    // and that was looked up
	changed int64   // number of the last change that the connector told of
	must    bool    // that change came while nobody was there: the next request waits
	failed  bool    // the last answer was none
	retry   int64   // no other is asked for before
	refused int64   // sessions from before this time are over; 0: none is
	ending  bool    // some of those may still be there: every request looks whether it belongs to one
	flight  *flight // nil: not being asked about
}

// A moment is when a question was asked.
type moment struct {
	at      int64 // Unix milliseconds
	changes int64 // that had been told of by then
}

func (l *Live) moment() moment { return moment{l.nowMilli(), l.changes.Load()} }

// A flight is one question about a user that any number of requests wait for.
type flight struct{ done chan struct{} }

// signedIn notes that the user has proven who they are.
func (u *User) signedIn(at int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.source.live.nowMilli()
	if at > now+clockSkew.Milliseconds() {
		return
	}
	if at = min(at, now); at > u.checked {
		u.checked = at
		u.schedule()
	}
}

// schedule lets requests pass until the user is to be asked about again. Not all at once: many come in the morning.
func (u *User) schedule() {
	every := u.source.every.Load()
	u.pass(u.checked + every + rand.Int64N(every/8+1)) //nolint:gosec // G404: spreads load, guards nothing
}

// pass lets requests pass without a look until then.
func (u *User) pass(until int64) {
	if u.ending {
		until = 0
	}
	u.next.Store(until)
}

// Vouch returns nil at once while the last answer about the user is good at now, or a new one can be had without waiting. Else it
// waits for that, at most for a second and not until ctx ends, and reports that it did. ErrEnded means that a session that
// began at signedIn is over, every other error that nobody could say. It does not allocate where it does not wait.
func (u *User) Vouch(ctx context.Context, signedIn, now time.Time) (waited bool, err error) {
	at := now.UnixMilli()
	every := u.source.every.Load()
	if d := u.next.Load() - at; d > 0 && d <= 2*every { // more: the clock was set back, or Every made shorter
		return false, nil
	}
	f, err := u.decide(signedIn.UnixMilli(), at) //nolint:contextcheck // a Lookup is for all who wait: no caller ends it
	if f == nil {
		return false, err
	}
	return true, u.wait(ctx, f, signedIn.UnixMilli(), at)
}

// wait waits until it is known whether the user may go on.
func (u *User) wait(ctx context.Context, f *flight, signedIn, at int64) error {
	limit := cmp.Or(u.source.live.Wait, longestWait)
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end)-spare)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-f.done:
		case <-timer.C:
			return fmt.Errorf("identity: connector %q did not say in time who the user is now", u.source.connector)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var err error
		at = max(at, u.source.live.nowMilli())
		if f, err = u.decide(signedIn, at); f == nil { //nolint:contextcheck // a Lookup is for all who wait: no caller ends it
			return err
		}
	}
}

// decide returns what a request has to wait for; nil: nothing, since the answer is known.
func (u *User) decide(signedIn, at int64) (*flight, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	every, stale := u.source.every.Load(), u.source.live.stale.Load()
	now := u.source.live.nowMilli()
	u.setRight(now)
	u.seen = max(u.seen, at)
	if u.refused != 0 && (signedIn <= u.refused || signedIn > now+clockSkew.Milliseconds()) {
		return nil, ErrEnded
	}
	if !u.source.asked() {
		u.pass(at + every)
		return nil, nil
	}
	age, grace := at-u.checked, max(u.checked, u.kept)+stale
	if age < every && !u.must {
		u.schedule()
		return nil, nil
	}
	down, retry := u.source.state()
	must, failing := u.must || age >= 2*every, u.failed || down
	switch {
	case u.flight == nil && passed(retry, at, lastRetry.Milliseconds()) && passed(u.retry, at, every):
		u.ask(u.source.gather(must), must)
	case u.flight != nil && must:
		u.source.within(gatherWaited)
	}
	switch {
	case failing && at < grace:
		u.pass(min(at+failingStep.Milliseconds(), grace))
		return nil, nil
	case u.flight == nil:
		return nil, fmt.Errorf("identity: connector %q does not say who the user is now; what it said last is %s old", u.source.connector, time.Duration(age)*time.Millisecond)
	case must || failing:
		return u.flight, nil
	}
	u.pass(u.checked + 2*every)
	return nil, nil
}

// setRight takes back what a clock said that was ahead: no answer is younger than now, and no refusal later. It is called with mu held.
func (u *User) setRight(now int64) {
	u.kept, u.refused = min(u.kept, now), min(u.refused, now)
	if u.checked > now {
		u.checked = now - u.source.every.Load()
	}
}

// passed reports whether a time in the future has come, that was no further away than most: else the clock was set back.
func passed(when, at, most int64) bool { return at >= when || when-at > most }

// ask has the user asked about. It is called with mu held and no flight.
func (u *User) ask(within time.Duration, waited bool) {
	u.flight = &flight{done: make(chan struct{})}
	u.source.add(u, within, waited)
}

// tell notes that something about the user may have changed at the connector. Who is in use is asked about at once: lately
// is since when one would have been asked about otherwise.
func (u *User) tell(lately int64) *flight {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.changed = u.source.live.changes.Add(1)
	if u.seen < lately {
		u.must = true
		u.next.Store(0)
		return nil
	}
	if u.flight == nil {
		u.ask(gatherWaited, false)
	} else {
		u.source.within(gatherWaited)
	}
	return u.flight
}

// land ends the flight with a good answer to a question of began, or with none.
func (u *User) land(began moment, good bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.flight
	u.flight = nil
	defer close(f.done)
	u.failed = !good
	if !good {
		u.retry = u.source.live.nowMilli() + min(u.source.every.Load()/4, lastRetry.Milliseconds())
		u.next.Store(0)
		return
	}
	u.retry = 0
	u.checked = max(u.checked, began.at)
	if u.changed <= began.changes {
		u.must = false
		u.schedule()
		return
	}
	u.askAgain() // it may be from before the change
}

// askAgain renews an answer that was overtaken.
func (u *User) askAgain() {
	if u.must {
		u.next.Store(0)
	} else {
		u.schedule()
	}
	u.ask(roundEvery, u.must)
}

// refuse ends the flight: the connector said at began that the user may not go on. It reports whether that is still so; who
// has signed in since may.
func (u *User) refuse(began int64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.flight
	u.flight = nil
	defer close(f.done)
	u.failed, u.retry = false, 0
	if u.checked > began {
		u.askAgain()
		return false
	}
	u.refused, u.ending = max(u.refused, began), true
	u.next.Store(0)
	return true
}

// outdated notes that the sessions from before a time are over, though the user may go on. It reports whether somebody is to end them.
func (u *User) outdated(until int64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ending && u.refused >= until {
		return false
	}
	u.refused, u.ending = max(u.refused, until), true
	u.next.Store(0)
	return true
}

// over notes that the sessions from before a time are gone.
func (u *User) over(until int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ending = u.refused > until
}

// errNotOpen means that a connector exists and is not open yet.
var errNotOpen = errors.New("identity: the connector is not open yet")

// Asker returns the connector of that id if its users can be asked about, and what is called afterwards: until then it stays open. It
// returns nil for one that is not there or cannot be asked. ErrClosed means that other doors have taken the place of these.
func (d *Doors) Asker(id string) (a Asker, release func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, ErrClosed
	}
	door, open := d.live.Load().byID[id]
	if !open {
		return d.askerOfClosed(id)
	}
	if a = door.asker(); a == nil {
		return nil, nil, nil
	}
	door.handle.users.Add(1)
	return a, func() { door.handle.release(d.opts.Log, id) }, nil
}

// asker returns who says who the users of the door are now, nil if nobody does.
func (d *Door) asker() Asker {
	if a, ok := d.inner.(Asker); ok && d.ID != dexconnectors.LocalConnector {
		return a
	}
	if a := d.upstream(); a != nil {
		return a
	}
	return nil
}

// askerOfClosed is Asker for a connector that is not open. Those that cannot be asked about by nature must not wait for it.
func (d *Doors) askerOfClosed(id string) (Asker, func(), error) {
	for _, c := range d.configured {
		switch {
		case c.ID != id:
		case c.Type == typeLDAP:
			return nil, nil, errNotOpen
		case d.opts.Upstream != nil && AsksUpstream(c.Type):
			return &upstreamAsker{up: d.opts.Upstream, door: id, kind: c.Type, config: c.ResourceVersion}, func() {}, nil
		}
	}
	return nil, nil, nil
}

// Configured reports whether there is a connector of that id, open or not.
func (d *Doors) Configured(id string) bool {
	return slices.ContainsFunc(d.configured, func(c storage.Connector) bool { return c.ID == id })
}

// ErrClosed means that doors are closed.
var ErrClosed = errors.New("identity: the doors are closed")

// typeLDAP is Dex's type of connector whose users can be asked about.
const typeLDAP = "ldap"

// Replaced returns the ids of the connectors whose users are asked about, and which are not the same as those of the doors before:
// what they say may be something else.
func (d *Doors) Replaced(before *Doors) (ids []string) {
	old := before.live.Load().byID
	for id, door := range d.live.Load().byID {
		if door.asker() != nil && (old[id] == nil || old[id].handle != door.handle) {
			ids = append(ids, id)
		}
	}
	return ids
}
