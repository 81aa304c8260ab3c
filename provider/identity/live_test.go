package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/connectors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A book is a connector that knows users.
type book struct {
	mu    sync.Mutex
	users map[string]connectors.Answer // others exist and have no groups
	err   error
	calls [][]string
	at    []time.Time
	most  int // Lookups at a time
	open  int
	hook  func(ctx context.Context, ids []string) error
}

func (b *book) Lookup(ctx context.Context, ids []string) ([]connectors.Answer, error) {
	b.mu.Lock()
	b.calls, b.at = append(b.calls, slices.Clone(ids)), append(b.at, time.Now())
	b.open++
	b.most = max(b.most, b.open)
	out, err, hook := make([]connectors.Answer, len(ids)), b.err, b.hook
	for i, id := range ids {
		a, ok := b.users[id]
		if !ok {
			a.Identity.UserID = id
		}
		out[i] = a
	}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.open--
		b.mu.Unlock()
	}()
	if hook != nil {
		if err := hook(ctx, ids); err != nil {
			return nil, err
		}
	}
	return out, err
}

func (b *book) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *book) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.calls)
}

func refused(r connectors.Reason) connectors.Answer {
	return connectors.Answer{Err: &connectors.Refusal{Reason: r}}
}

// A desk is a Live with books, and a store that can be down.
type desk struct {
	*Live
	books map[string]*book
	log   bytes.Buffer
	mu    sync.Mutex
	kept  map[string]string // groups by user
	ended []string
	down  error                // of the store
	over  map[string]time.Time // by user, until when sessions began that another password ends

	remembered map[string]time.Time
	writes     int // of them
}

var testPolicy = Policy{Every: time.Minute, Stale: 15 * time.Minute} // never assigned to

// pass lets time pass, which in a bubble takes none.
func pass(d time.Duration) { time.Sleep(d) }

// atDesk runs f in a bubble, in which time costs nothing and a goroutine that does not end is a failure.
func atDesk(t *testing.T, f func(t *testing.T, d *desk, b *book)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		d := newDesk(ctx)
		f(t, d, d.books["ldap"])
		cancel()
		synctest.Wait()
	})
}

func newDesk(ctx context.Context) *desk {
	d := &desk{books: map[string]*book{"ldap": {users: map[string]connectors.Answer{}}, "other": {}}, kept: map[string]string{}, remembered: map[string]time.Time{}}
	d.Live = NewLive(ctx, LiveOptions{
		Policy: testPolicy, Now: time.Now, Log: slog.New(slog.NewTextHandler(&d.log, nil)),
		Asker: func(connector string) (Asker, func(), error) {
			if b := d.books[connector]; b != nil {
				return b, func() {}, nil
			}
			return nil, nil, nil
		},
		Keep: func(_ context.Context, _ string, id connectors.Identity, _ time.Time) (bool, time.Time, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			groups := strings.Join(id.Groups, " ")
			old := d.kept[id.UserID]
			if d.down == nil {
				d.kept[id.UserID] = groups
			}
			return old != groups, d.over[id.UserID], d.down
		},
		End: func(_ context.Context, connector, userID string, reason connectors.Reason, until time.Time) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.down != nil {
				return d.down
			}
			d.ended = append(d.ended, fmt.Sprint(connector, " ", userID, " ", reason))
			return nil
		},
		Remember: func(_ context.Context, connector string, ids []string, at time.Time) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.writes++
			for _, id := range ids {
				d.remembered[connector+" "+id] = at
			}
			return d.down
		},
		Recall: func(_ context.Context, connector, id string) (time.Time, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.remembered[connector+" "+id], d.down
		},
	})
	return d
}

func (d *desk) storeDown(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = err
}

func (d *desk) logged() string {
	synctest.Wait()
	return d.log.String()
}

func (d *desk) endings() []string {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.ended)
}

// A client is somebody who has just signed in.
type client struct {
	*User
	signedInAt time.Time
}

func (d *desk) signIn(connector, id string) client {
	return client{d.User(connector, id, time.Now()), time.Now()}
}

// request returns how long a request of the client waits.
func (c client) request(ctx context.Context) (took time.Duration, waited bool, err error) {
	start := time.Now()
	waited, err = c.Vouch(ctx, c.signedInAt, start)
	return time.Since(start), waited, err
}

func (c client) wantServed(t *testing.T, what string) {
	t.Helper()
	if took, waited, err := c.request(t.Context()); err != nil || waited || took != 0 {
		t.Errorf("%s: waited %v, %s, %v: want it served at once", what, waited, took, err)
	}
}

func (c client) wantWaited(t *testing.T, what string) {
	t.Helper()
	if took, waited, err := c.request(t.Context()); err != nil || !waited || took <= 0 || took > time.Second {
		t.Errorf("%s: waited %v, %s, %v: want it served after a wait", what, waited, took, err)
	}
}

func (c client) wantError(t *testing.T, what string, ended bool) {
	t.Helper()
	if _, _, err := c.request(t.Context()); err == nil || errors.Is(err, ErrEnded) != ended {
		t.Errorf("%s: got %v, want an error, ended %v", what, err, ended)
	}
}

func TestWhenAUserIsAskedAbout(t *testing.T) {
	for name, tt := range map[string]struct {
		at     time.Duration // of a request after the sign-in
		waits  bool
		within time.Duration // there is a Lookup; 0: none
	}{
		"just signed in":               {at: 0},
		"younger than the interval":    {at: time.Minute - time.Millisecond},
		"older":                        {at: 68 * time.Second, within: 6 * time.Second},
		"just younger than two of it":  {at: 2*time.Minute - time.Millisecond, within: 6 * time.Second},
		"two of it":                    {at: 2 * time.Minute, waits: true, within: time.Second},
		"idle for an hour":             {at: time.Hour, waits: true, within: time.Second},
		"idle longer than one may be":  {at: 100 * time.Hour, waits: true, within: time.Second},
		"with a clock that went back":  {at: -10 * time.Minute, within: 6 * time.Second},
		"with a clock that went ahead": {at: 10 * time.Minute, waits: true, within: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			atDesk(t, func(t *testing.T, d *desk, b *book) {
				c := d.signIn("ldap", "ada")
				if tt.at < 0 {
					off := tt.at
					d.Now = func() time.Time { return time.Now().Add(off) }
					if waited, err := c.Vouch(t.Context(), c.signedInAt, d.Now()); waited || err != nil {
						t.Errorf("waited %v, %v", waited, err)
					}
				} else {
					time.Sleep(tt.at)
					if b.count() != 0 {
						t.Error("somebody whom nobody uses was asked about")
					}
					if tt.waits {
						c.wantWaited(t, name)
					} else {
						c.wantServed(t, name)
					}
				}
				time.Sleep(tt.within)
				synctest.Wait()
				if got := b.count(); (got == 1) != (tt.within > 0) || got > 1 {
					t.Errorf("got %d Lookups within %s", got, tt.within)
				}
				if waited, err := c.Vouch(t.Context(), c.signedInAt, d.Now()); tt.within > 0 && (waited || err != nil) {
					t.Errorf("after the answer: waited %v, %v", waited, err)
				}
			})
		})
	}
}

func TestUserInUseIsAskedAboutOnceAMinute(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		c := d.signIn("ldap", "ada")
		for range 3600 {
			c.wantServed(t, "in use")
			time.Sleep(time.Second)
		}
		synctest.Wait() // a Lookup may begin now
		if got := b.count(); got < 50 || got > 60 {
			t.Errorf("got %d Lookups in an hour, want about 55", got)
		}
		if got := len(d.kept); got != 1 {
			t.Errorf("kept %d", got)
		}
	})
}

func TestThousandUsersCostFewLookups(t *testing.T) {
	const users, minutes, limit = 1000, 10, 20
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		all := make([]client, users)
		for i := range all {
			time.Sleep(47 * time.Millisecond)
			all[i] = d.signIn("ldap", fmt.Sprint("user-", i))
		}
		start := time.Now()
		for time.Since(start) < minutes*time.Minute {
			for _, c := range all {
				c.wantServed(t, "one of many")
			}
			time.Sleep(500 * time.Millisecond)
		}
		synctest.Wait() // a Lookup may begin now
		asked := map[string]int{}
		for _, ids := range b.calls {
			if len(ids) > batchSize {
				t.Errorf("asked about %d at once", len(ids))
			}
			for _, id := range ids {
				asked[id]++
			}
		}
		if got := b.count(); got > limit*minutes {
			t.Errorf("got %d Lookups in %d minutes, want at most %d", got, minutes, limit*minutes)
		}
		for id, n := range asked {
			if n < minutes-2 || n > minutes {
				t.Errorf("%s was asked about %d times in %d minutes", id, n, minutes)
			}
		}
		t.Logf("%d users: %.1f Lookups a minute", len(asked), float64(b.count())/minutes)
	})
}

func TestManyComeAtOnce(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		b.hook = func(ctx context.Context, _ []string) error {
			sleep(ctx, 50*time.Millisecond)
			return nil
		}
		const users = 2000
		var wg sync.WaitGroup
		for i := range users {
			c := client{d.User("ldap", fmt.Sprint(i), time.Now().Add(-time.Hour)), time.Now().Add(-time.Hour)}
			for range 2 {
				wg.Go(func() { c.wantWaited(t, "after the night") })
			}
		}
		wg.Wait()
		if got, want := b.count(), (users+batchSize-1)/batchSize; got != want {
			t.Errorf("got %d Lookups, want %d", got, want)
		}
		if b.most != maxLookups {
			t.Errorf("got %d Lookups at a time, want %d", b.most, maxLookups)
		}
	})
}

func TestARequestWaitsNoLongerThanItMay(t *testing.T) {
	for name, tt := range map[string]struct {
		deadline, want time.Duration
	}{
		"no deadline":     {0, time.Second},
		"a late deadline": {5 * time.Second, time.Second},
		"a deadline":      {300 * time.Millisecond, 280 * time.Millisecond},
		"hardly any time": {10 * time.Millisecond, 0},
	} {
		t.Run(name, func(t *testing.T) {
			atDesk(t, func(t *testing.T, d *desk, b *book) {
				b.hook = func(ctx context.Context, _ []string) error { <-ctx.Done(); return ctx.Err() }
				c := d.signIn("ldap", "ada")
				time.Sleep(time.Hour)
				ctx := t.Context()
				if tt.deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.deadline)
					defer cancel()
				}
				took, _, err := c.request(ctx)
				if err == nil || errors.Is(err, ErrEnded) || took != tt.want {
					t.Errorf("got %v after %s, want an error after %s", err, took, tt.want)
				}
			})
		})
	}
}

func TestReasons(t *testing.T) {
	for reason, ends := range map[connectors.Reason]bool{
		connectors.Gone: true, connectors.AccountDisabled: true, connectors.AccountExpired: true, connectors.AccountLocked: true, connectors.NotAllowed: true,
		connectors.Unavailable: false, connectors.Busy: false, connectors.Throttled: false, "": false,
	} {
		t.Run(string(reason), func(t *testing.T) {
			atDesk(t, func(t *testing.T, d *desk, b *book) {
				c, other := d.signIn("ldap", "ada"), d.signIn("ldap", "eve")
				b.users["ada"] = refused(reason)
				time.Sleep(70 * time.Second)
				c.wantServed(t, "until it is known")
				other.wantServed(t, "another")
				time.Sleep(5100 * time.Millisecond)
				if got := d.endings(); slices.Equal(got, []string{"ldap ada " + string(reason)}) != ends {
					t.Errorf("ended %v", got)
				}
				if ends {
					c.wantError(t, "once it is known", true)
				} else {
					c.wantServed(t, "while it is not known")
				}
				other.wantServed(t, "another, after the answer")
			})
		})
	}
}

// While the store is down, a session cannot be ended; but it never lets anybody in again. A new sign-in does.
func TestEndedWhileTheStoreIsDown(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		c := d.signIn("ldap", "ada")
		time.Sleep(time.Hour)
		b.set(func() { b.users["ada"] = refused(connectors.AccountDisabled) })
		d.storeDown(errors.New("disk full"))
		c.wantError(t, "disabled", true)
		b.set(func() { delete(b.users, "ada") }) // enabled again
		for range 10 {
			time.Sleep(30 * time.Second)
			c.wantError(t, "while the session cannot be ended", true)
		}
		again := d.signIn("ldap", "ada")
		again.wantServed(t, "signed in anew")
		c.wantError(t, "the old session", true)
		time.Sleep(3 * time.Minute)
		again.wantWaited(t, "signed in anew, later")
		c.wantError(t, "the old session, after the other was vouched for", true)
		if got := strings.Count(d.logged(), "could not be ended"); got != 1 {
			t.Errorf("the log has it %d times, want once", got)
		}
		d.storeDown(nil)
		time.Sleep(lastRetry)
		if got := d.endings(); len(got) != 1 {
			t.Errorf("ended %v", got)
		}
	})
}

func TestOutage(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		all := []client{d.signIn("ldap", "ada"), d.signIn("ldap", "eve"), d.signIn("ldap", "bob")}
		late, idle := d.signIn("other", "zoe"), d.signIn("ldap", "idle")
		start := time.Now()
		b.err = &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("connection refused")}
		for time.Since(start) < 15*time.Minute {
			for _, c := range all {
				c.wantServed(t, fmt.Sprint("the last answer is good at ", time.Since(start)))
			}
			time.Sleep(time.Second)
		}
		all[0].wantError(t, "the last answer is too old", false)
		idle.wantError(t, "that of somebody who was idle, too", false)
		late.wantWaited(t, "a user of another connector")
		if got := strings.Count(d.logged(), "cannot be asked"); got != 1 {
			t.Errorf("the log has it %d times, want once:\n%s", got, d.logged())
		}
		if strings.Contains(d.logged(), "sign-in") {
			t.Errorf("nobody signs in here: %s", d.logged())
		}
		if got := b.count(); got < 20 || got > 120 {
			t.Errorf("got %d Lookups in a quarter of an hour, want them with a pause between", got)
		}
		b.set(func() { b.err = nil })
		time.Sleep(lastRetry)
		for _, c := range all {
			c.wantWaited(t, "it answers again")
		}
		if got := strings.Count(d.logged(), "answers again"); got != 1 {
			t.Errorf("the log says %d times that it answers again, want once", got)
		}
	})
}

// After a start nothing is known but the sign-in.
func TestStart(t *testing.T) {
	for name, tt := range map[string]struct {
		signedIn time.Duration // ago
		down     bool
		want     func(c client, t *testing.T)
	}{
		"a sign-in of now":                      {0, true, func(c client, t *testing.T) { c.wantServed(t, "it") }},
		"an old one":                            {3 * time.Hour, false, func(c client, t *testing.T) { c.wantWaited(t, "it") }},
		"an old one, and nobody to ask":         {3 * time.Hour, true, func(c client, t *testing.T) { c.wantError(t, "it", false) }},
		"one of ten minutes, and nobody to ask": {10 * time.Minute, true, func(c client, t *testing.T) { c.wantWaited(t, "it"); c.wantServed(t, "the next") }},
	} {
		t.Run(name, func(t *testing.T) {
			atDesk(t, func(t *testing.T, d *desk, b *book) {
				if tt.down {
					b.err = errors.New("connection refused")
				}
				at := time.Now().Add(-tt.signedIn)
				tt.want(client{d.User("ldap", "ada", at), at}, t)
			})
		})
	}
}

// What was known before a restart serves while nobody can be asked, for as long as it would have without.
func TestRestartWhileNobodyCanBeAsked(t *testing.T) {
	for name, tt := range map[string]struct {
		ago    time.Duration // of the last answer
		store  error
		served bool
	}{
		"a young answer":                  {10 * time.Minute, nil, true},
		"one of the future":               {-time.Hour, nil, false},
		"an old one":                      {20 * time.Minute, nil, false},
		"a young one that cannot be read": {10 * time.Minute, errors.New("disk"), false},
		"none":                            {1000 * time.Hour, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			atDesk(t, func(t *testing.T, d *desk, b *book) {
				b.err = errors.New("connection refused")
				start := time.Now()
				d.remembered["ldap ada"], d.down = start.Add(-tt.ago), tt.store
				at := start.Add(-5 * time.Hour)
				c := client{d.User("ldap", "ada", at), at}
				if !tt.served {
					c.wantError(t, name, false)
					return
				}
				c.wantWaited(t, name)
				for time.Since(start) < 15*time.Minute-tt.ago-time.Second {
					c.wantServed(t, name)
					time.Sleep(time.Second)
				}
				time.Sleep(2 * time.Second)
				c.wantError(t, "too old by now", false)
				b.set(func() { b.err = nil })
				time.Sleep(lastRetry)
				c.wantWaited(t, "it answers again")
			})
		})
	}
	atDesk(t, func(t *testing.T, d *desk, _ *book) {
		c := d.signIn("ldap", "ada")
		for range 3600 {
			c.wantServed(t, "in use")
			time.Sleep(time.Second)
		}
		synctest.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		if last := time.Since(d.remembered["ldap ada"]); d.writes > 12 || last > 7*time.Minute {
			t.Errorf("%d writes in an hour, the last %s ago: want one every five to six minutes", d.writes, last)
		}
	})
}

func TestUnknownConnectorIsNotAsked(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, _ *book) {
		c := d.signIn("github", "ada")
		time.Sleep(100 * time.Hour)
		c.wantServed(t, "a user of a connector that cannot be asked")
	})
}

// A connector whose Lookups never end, whatever their context says, costs four goroutines and its own users.
func TestLookupThatHangs(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		release := make(chan struct{})
		b.hook = func(context.Context, []string) error { <-release; return errors.New("at last") }
		var all []client
		for i := range 10 * batchSize {
			all = append(all, d.signIn("ldap", fmt.Sprint(i)))
		}
		other := d.signIn("other", "zoe")
		for range 900 {
			for _, c := range all {
				c.wantServed(t, "the last answer serves")
			}
			other.wantServed(t, "a user of another connector")
			time.Sleep(time.Second)
		}
		all[0].wantError(t, "too old", false)
		if b.count() != maxLookups || b.most != maxLookups {
			t.Errorf("got %d Lookups, %d at a time, want %d", b.count(), b.most, maxLookups)
		}
		b.set(func() { b.hook = nil })
		close(release)
		time.Sleep(lastRetry)
		all[0].wantWaited(t, "it answers again")
	})
}

func TestSlowLookup(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		b.hook = func(ctx context.Context, _ []string) error { sleep(ctx, time.Second); return ctx.Err() }
		c := d.signIn("ldap", "ada")
		for range 600 {
			c.wantServed(t, "a user in use never waits for a directory that takes a second")
			time.Sleep(500 * time.Millisecond)
		}
		time.Sleep(time.Hour)
		c.wantError(t, "one who was idle gets no answer in time", false)
		time.Sleep(200 * time.Millisecond)
		c.wantServed(t, "and then does")
	})
}

func TestAnswersThatCannotBe(t *testing.T) {
	for name, b := range map[string]*book{
		"a panic":         {hook: func(context.Context, []string) error { panic("no") }},
		"another user's":  {users: map[string]connectors.Answer{"ada": {Identity: connectors.Identity{UserID: "eve", Groups: []string{"admins"}}}}},
		"nobody's":        {users: map[string]connectors.Answer{"ada": {Identity: connectors.Identity{Groups: []string{"admins"}}}}},
		"not UTF-8":       {users: map[string]connectors.Answer{"ada": {Identity: connectors.Identity{UserID: "ada", Groups: []string{"\xff"}}}}},
		"a giant's":       {users: map[string]connectors.Answer{"ada": {Identity: connectors.Identity{UserID: "ada", Name: strings.Repeat("x", maxClaim+1)}}}},
		"too many groups": {users: map[string]connectors.Answer{"ada": {Identity: connectors.Identity{UserID: "ada", Groups: make([]string, maxGroups+1)}}}},
	} {
		t.Run(name, func(t *testing.T) {
			atDesk(t, func(t *testing.T, d *desk, _ *book) {
				d.books["ldap"] = b
				c := d.signIn("ldap", "ada")
				time.Sleep(10 * time.Minute)
				c.wantWaited(t, "what was known last serves")
				time.Sleep(10 * time.Minute)
				c.wantError(t, "for a quarter of an hour", false)
				if len(d.kept) != 0 {
					t.Errorf("kept %v", d.kept)
				}
			})
		})
	}
	t.Run("too few", func(t *testing.T) {
		atDesk(t, func(t *testing.T, d *desk, _ *book) {
			d.Asker = func(string) (Asker, func(), error) { return short{}, func() {}, nil }
			c := client{d.User("ldap", "ada", time.Time{}), time.Time{}}
			c.wantError(t, "no answer", false)
		})
	})
}

type short struct{}

func (short) Lookup(context.Context, []string) ([]connectors.Answer, error) { return nil, nil }

// A sign-in while a user is asked about knows better than the answer.
func TestSignInBeatsAnOlderAnswer(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		b.hook = func(ctx context.Context, _ []string) error { sleep(ctx, 500*time.Millisecond); return nil }
		b.users["ada"] = refused(connectors.AccountLocked)
		c := d.signIn("ldap", "ada")
		time.Sleep(70 * time.Second)
		c.wantServed(t, "asked in the background")
		time.Sleep(5*time.Second + 200*time.Millisecond) // the Lookup is under way
		b.set(func() { delete(b.users, "ada") })
		again := d.signIn("ldap", "ada")
		time.Sleep(2 * time.Second)
		again.wantServed(t, "the new session")
		c.wantServed(t, "the old one, whose user is vouched for")
		if got := d.endings(); len(got) != 0 || b.count() != 2 {
			t.Errorf("ended %v after %d Lookups, want none after 2", got, b.count())
		}
	})
}

func TestPolicyChanges(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		c := d.signIn("ldap", "ada")
		d.SetPolicy(Policy{Every: 10 * time.Second, Stale: time.Minute})
		time.Sleep(9 * time.Second)
		c.wantServed(t, "what is known stays known")
		time.Sleep(3 * time.Second)
		c.wantServed(t, "and is renewed by the new interval")
		time.Sleep(time.Second)
		if b.count() != 1 {
			t.Errorf("got %d Lookups, want 1", b.count())
		}
		b.set(func() { b.err = errors.New("down") })
		time.Sleep(time.Minute)
		c.wantError(t, "stale by the new limit", false)
	})
}

func TestUsersAreForgotten(t *testing.T) {
	d := newDesk(t.Context())
	keep := d.User("ldap", "keep", time.Now())
	for i := range 1000 {
		d.User("ldap", fmt.Sprint(i), time.Now())
	}
	size := func() int {
		d.Live.mu.Lock()
		defer d.Live.mu.Unlock()
		return len(d.users)
	}
	for deadline := time.Now().Add(time.Minute); size() > 1 && time.Now().Before(deadline); {
		runtime.GC()
		runtime.Gosched()
	}
	if size() != 1 || d.User("ldap", "keep", time.Time{}) != keep {
		t.Errorf("got %d users, want the one that is in use", size())
	}
}

func TestVouchDoesNotAllocate(t *testing.T) {
	d := newDesk(t.Context())
	at := time.Now()
	u := d.User("ldap", "ada", at)
	if got := testing.AllocsPerRun(1000, func() {
		if waited, err := u.Vouch(t.Context(), at, at); waited || err != nil {
			t.Error(waited, err)
		}
	}); got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

func TestLiveMetrics(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		r := prometheus.NewPedanticRegistry()
		if err := r.Register(d.Collector()); err != nil {
			t.Fatal(err)
		}
		a, e := d.signIn("ldap", "ada"), d.signIn("ldap", "eve")
		b.users["ada"] = connectors.Answer{Identity: connectors.Identity{UserID: "ada", Groups: []string{"g"}}}
		b.users["eve"] = refused(connectors.Gone)
		time.Sleep(2 * time.Minute)
		a.wantWaited(t, "a")
		e.wantError(t, "e", true)
		time.Sleep(2 * time.Minute)
		a.wantWaited(t, "a")
		time.Sleep(30 * time.Second)
		a.wantServed(t, "a")
		want := `
# HELP gatehouse_revalidation_oldest_seconds Age of the oldest answer about a user in use.
# TYPE gatehouse_revalidation_oldest_seconds gauge
gatehouse_revalidation_oldest_seconds{connector="ldap"} 30
# HELP gatehouse_revalidations_total Answers of connectors about users in use, by what they said.
# TYPE gatehouse_revalidations_total counter
gatehouse_revalidations_total{connector="ldap",result="changed"} 1
gatehouse_revalidations_total{connector="ldap",result="ended"} 1
gatehouse_revalidations_total{connector="ldap",result="same"} 1
# HELP gatehouse_users_in_use Users of sessions that were used lately, as this process has seen.
# TYPE gatehouse_users_in_use gauge
gatehouse_users_in_use{connector="ldap"} 1
`
		if err := testutil.GatherAndCompare(r, strings.NewReader(want), "gatehouse_revalidations_total", "gatehouse_revalidation_oldest_seconds", "gatehouse_users_in_use"); err != nil {
			t.Error(err)
		}
	})
}
