package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/connectors"
	"gatehouse/connectors/ldap"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/storage"
)

func TestChangeOfAUser(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		inUse, away, other := d.signIn("ldap", "in-use"), d.signIn("ldap", "away"), d.signIn("other", "in-use")
		time.Sleep(10 * time.Minute)
		inUse.wantWaited(t, "back again")
		time.Sleep(10 * time.Second)
		calls := b.count()

		b.set(func() { b.users["in-use"] = refused(connectors.AccountDisabled) })
		d.Changed("ldap", connectors.Change{UserID: "in-use"})
		d.Changed("ldap", connectors.Change{UserID: "nobody"})
		inUse.wantServed(t, "until it is known")
		time.Sleep(gatherWaited + time.Millisecond)
		inUse.wantError(t, "a moment later", true)
		if got := b.count() - calls; got != 1 {
			t.Errorf("got %d Lookups, want 1", got)
		}
		if d.books["other"].count() != 0 {
			t.Error("the user of that name at another connector was asked about")
		}
		other.wantWaited(t, "that one")

		d.Changed("ldap", connectors.Change{UserID: "away"})
		time.Sleep(time.Second)
		if got := b.count() - calls; got != 1 {
			t.Error("somebody whom nobody uses was asked about")
		}
		away.wantWaited(t, "who was away")
	})
}

// An answer to a question from before a change is not the last word.
func TestChangeWhileTheUserIsAskedAbout(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		c := d.signIn("ldap", "ada")
		time.Sleep(10 * time.Minute)
		b.hook = func(ctx context.Context, _ []string) error { sleep(ctx, 500*time.Millisecond); return nil }
		done := make(chan struct{})
		go func() { c.wantWaited(t, "back again"); close(done) }()
		time.Sleep(200 * time.Millisecond)
		b.set(func() { b.users["ada"] = refused(connectors.Gone) })
		d.Changed("ldap", connectors.Change{UserID: "ada"})
		<-done
		time.Sleep(roundEvery + 501*time.Millisecond)
		c.wantError(t, "asked about again", true)
		if b.count() != 2 {
			t.Errorf("got %d Lookups, want 2", b.count())
		}
	})
}

// A directory that says no more than that something has changed is asked about everybody in use, and not for each word.
func TestChangeOfAnybody(t *testing.T) {
	const users, seconds = 300, 20
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		var all []client
		for i := range users {
			all = append(all, d.signIn("ldap", fmt.Sprint(i)))
		}
		for _, c := range all {
			d.signIn("ldap", c.id+"-away")
		}
		time.Sleep(70 * time.Second)
		for _, c := range all {
			c.wantServed(t, "in use")
		}
		time.Sleep(10 * time.Second)
		calls := b.count()
		b.set(func() { b.users["7"] = refused(connectors.AccountExpired) })
		d.Changed("ldap", connectors.Change{})
		time.Sleep(gatherWaited + time.Millisecond)
		all[7].wantError(t, "a moment later", true)
		all[8].wantServed(t, "another")
		for range seconds * 1000 {
			d.Changed("ldap", connectors.Change{})
			time.Sleep(time.Millisecond)
		}
		most := (seconds*2 + 2) * ((users + batchSize - 1) / batchSize)
		if got := b.count() - calls; got > most || got < most/4 {
			t.Errorf("got %d Lookups for %d words in %d s, want at most %d", got, seconds*1000, seconds, most)
		}
		time.Sleep(time.Second)
		calls = b.count()
		time.Sleep(10 * time.Minute)
		if b.count() != calls {
			t.Error("it goes on when nothing changes")
		}
	})
}

// A watching directory tells of changes as it is told to.
type watching struct {
	directory
	book

	watches atomic.Int64
	closed  atomic.Int64
	tell    chan connectors.Change // closed: the watch fails
	how     func(ctx context.Context, f func(connectors.Change)) error
}

func (w *watching) Watch(ctx context.Context, f func(connectors.Change)) error {
	w.watches.Add(1)
	return w.how(ctx, f)
}

func (w *watching) Close() error { w.closed.Add(1); return nil }

func (w *watching) follow(ctx context.Context, f func(connectors.Change)) error {
	for {
		select {
		case c, ok := <-w.tell:
			if !ok {
				return errors.New("connection reset")
			}
			f(c)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watched runs f with doors of one watching directory, whose Live watches it.
func watched(t *testing.T, how func(w *watching) func(context.Context, func(connectors.Change)) error, f func(t *testing.T, d *desk, w *watching, swap func(*Doors))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &watching{tell: make(chan connectors.Change)}
		w.how = how(w)
		d := newDesk(ctx)
		b := newBench(t)
		b.inner = func(storage.Connector) connector.Connector { return w }
		var current atomic.Pointer[Doors]
		doors, _, _ := b.open(ctx, dir("ldap", "Directory", "1"))
		current.Store(doors)
		d.Asker = func(id string) (Asker, func(), error) { return current.Load().Asker(id) }
		changed := make(chan struct{})
		var done sync.WaitGroup
		done.Go(func() { d.Watch(ctx, current.Load, changed) })
		f(t, d, w, func(next *Doors) {
			if next == nil {
				next, _, _ = b.open(ctx)
			}
			old := current.Swap(next)
			old.Close()
			changed <- struct{}{}
			synctest.Wait()
		})
		cancel()
		done.Wait()
		current.Load().Close()
	})
}

func TestWatchReachesUsersInUse(t *testing.T) {
	watched(t, func(w *watching) func(context.Context, func(connectors.Change)) error { return w.follow }, func(t *testing.T, d *desk, w *watching, swap func(*Doors)) {
		c := d.signIn("ldap", "ada")
		time.Sleep(70 * time.Second)
		c.wantServed(t, "in use")
		time.Sleep(10 * time.Second)
		w.set(func() { w.users = map[string]connectors.Answer{"ada": refused(connectors.Gone)} })
		w.tell <- connectors.Change{}
		time.Sleep(200 * time.Millisecond)
		c.wantError(t, "gone", true)
		if w.closed.Load() != 0 {
			t.Error("closed while in use")
		}
		swap(nil)
		if w.closed.Load() != 1 {
			t.Errorf("closed %d times once the watch has ended, want once", w.closed.Load())
		}
	})
}

func TestWatchThatBreaks(t *testing.T) {
	for name, how := range map[string]func(w *watching) func(context.Context, func(connectors.Change)) error{
		"at once": func(*watching) func(context.Context, func(connectors.Change)) error {
			return func(context.Context, func(connectors.Change)) error { return errors.New("refused") }
		},
		"by a panic": func(*watching) func(context.Context, func(connectors.Change)) error {
			return func(context.Context, func(connectors.Change)) error { panic("no") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			watched(t, how, func(t *testing.T, d *desk, w *watching, _ func(*Doors)) {
				time.Sleep(10*time.Minute + time.Second)
				if n := w.watches.Load(); n < 12 || n > 30 {
					t.Errorf("got %d tries in ten minutes, want them with a pause of up to a minute", n)
				}
				if n := len(d.logged()); n == 0 || n > 200_000 {
					t.Errorf("the log has %d bytes", n)
				}
			})
		})
	}
	watched(t, func(*watching) func(context.Context, func(connectors.Change)) error {
		return func(context.Context, func(connectors.Change)) error { return ldap.ErrNoWatch }
	}, func(t *testing.T, d *desk, w *watching, _ func(*Doors)) {
		time.Sleep(time.Hour)
		if n := w.watches.Load(); n != 1 || d.logged() != "" {
			t.Errorf("a directory that does not tell of changes was asked %d times to, and the log says %q", n, d.logged())
		}
	})
}

// The log has a line when a watch fails, and one when it works again.
func TestWatchThatComesBack(t *testing.T) {
	watched(t, func(w *watching) func(context.Context, func(connectors.Change)) error {
		return func(ctx context.Context, f func(connectors.Change)) error {
			n := w.watches.Load()
			if n > 1 && n < 5 {
				return errors.New("connection refused")
			}
			f(connectors.Change{})
			if n == 5 {
				return errors.New("connection reset")
			}
			ctx, cancel := context.WithTimeout(ctx, map[bool]time.Duration{true: 20 * time.Second, false: time.Hour}[n == 1])
			defer cancel()
			<-ctx.Done()
			return ctx.Err()
		}
	}, func(t *testing.T, d *desk, w *watching, _ func(*Doors)) {
		time.Sleep(30 * time.Minute)
		if fails, works := strings.Count(d.logged(), "does not tell of changes now"), strings.Count(d.logged(), "tells of changes again"); fails != 1 || works != 1 {
			t.Errorf("the log has %d lines of the failure and %d of its end, want one of each:\n%s", fails, works, d.logged())
		}
	})
}

// A door is held open while it is asked, and no longer.
func TestAskerHoldsItsConnector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b := newBench(t)
		w := &watching{}
		b.inner = func(storage.Connector) connector.Connector { return w }
		d, _, _ := b.open(ctx, dir("ldap", "Directory", "1"))
		a, release, err := d.Asker("ldap")
		if a == nil || err != nil {
			t.Fatalf("got %v, %v", a, err)
		}
		if a, _, err := d.Asker("none"); a != nil || err != nil {
			t.Errorf("a connector that does not exist: got %v, %v", a, err)
		}
		d.Close()
		if w.closed.Load() != 0 {
			t.Error("closed while it is asked")
		}
		if _, _, err := d.Asker("ldap"); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: got %v", err)
		}
		release()
		if w.closed.Load() != 1 {
			t.Errorf("closed %d times, want once", w.closed.Load())
		}
		b.inner, b.last, b.err = nil, nil, errors.New("no such file")
		d, _, _ = b.open(ctx, dir("ldap", "Directory", "1"))
		if a, _, err := d.Asker("ldap"); a != nil || err == nil {
			t.Errorf("a directory that is not open: got %v, %v, want an error", a, err)
		}
		b.err = nil
		d, _, _ = b.open(ctx, dir("ldap", "Directory", "2"))
		if a, _, err := d.Asker("ldap"); a != nil || err != nil {
			t.Errorf("one that cannot be asked: got %v, %v", a, err)
		}
	})
}

func TestLiveRace(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := newDesk(ctx)
	d.Log = slog.New(slog.DiscardHandler)
	d.SetPolicy(Policy{Every: 5 * time.Millisecond, Stale: time.Second})
	at := time.Now()
	var users, all sync.WaitGroup
	for i := range 8 {
		users.Go(func() {
			for k := range 300 {
				u := d.User("ldap", fmt.Sprint((i+k)%20), time.Now())
				if _, err := u.Vouch(ctx, at.Add(time.Hour), time.Now()); err != nil && !errors.Is(err, ErrEnded) && !strings.Contains(err.Error(), "did not say in time") { // a machine may be slow
					t.Error(err)
				}
			}
		})
	}
	stop := make(chan struct{})
	all.Go(func() {
		for k := 0; ; k++ {
			select {
			case <-stop:
				return
			default:
			}
			d.Changed("ldap", connectors.Change{UserID: []string{"", "3", "nobody"}[k%3]})
			b := d.books["ldap"]
			b.set(func() {
				b.users["5"] = []connectors.Answer{refused(connectors.Gone), {Identity: connectors.Identity{UserID: "5"}}}[k%2]
			})
		}
	})
	users.Wait()
	close(stop)
	all.Wait()
	cancel()
}
