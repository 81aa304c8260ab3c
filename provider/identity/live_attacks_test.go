package identity

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"gatehouse/connectors"
)

// A clock that was ahead, and is set right, keeps nobody in: neither the time of the last answer nor that of the sign-in is later than a refusal.
func TestClockThatWasAhead(t *testing.T) {
	for _, back := range []time.Duration{10 * time.Minute, 24 * time.Hour} {
		atDesk(t, func(t *testing.T, d *desk, b *book) {
			ahead := back
			d.Now = func() time.Time { return time.Now().Add(ahead) }
			c := client{d.User("ldap", "ada", d.Now()), d.Now()}
			request := func() error {
				_, err := c.Vouch(t.Context(), c.signedInAt, d.Now())
				return err
			}
			pass(70 * time.Second)
			if err := request(); err != nil {
				t.Fatal(err)
			}
			pass(10 * time.Second)
			if b.count() != 1 {
				t.Fatalf("got %d Lookups, want 1", b.count())
			}
			ahead = 0
			b.set(func() { b.users["ada"] = refused(connectors.AccountDisabled) })
			for range 5 * 60 {
				if request() != nil {
					break
				}
				pass(time.Second)
			}
			if err := request(); err == nil || len(d.endings()) != 1 {
				t.Errorf("set back by %s: a disabled user goes on for five minutes: %v, ended %v", back, err, d.endings())
			}
			if n := b.count(); n > 5 {
				t.Errorf("set back by %s: got %d Lookups", back, n)
			}
			pass(back)
			if err := request(); err == nil {
				t.Errorf("set back by %s: the session is good again", back)
			}
		})
	}
}

// Clocks of replicas differ a little: who has just signed in at another one is not asked about.
func TestSignInAtAReplicaWhoseClockIsAhead(t *testing.T) {
	for ahead, waits := range map[time.Duration]bool{5 * time.Second: false, time.Minute: true} {
		atDesk(t, func(t *testing.T, d *desk, b *book) {
			at := time.Now().Add(ahead)
			c := client{d.User("ldap", "ada", at), at}
			if _, waited, err := c.request(t.Context()); waited != waits || err != nil {
				t.Errorf("ahead by %s: waited %v, %v", ahead, waited, err)
			}
			b.set(func() { b.users["ada"] = refused(connectors.Gone) })
			pass(3 * time.Minute)
			c.wantError(t, "gone", true)
		})
	}
}

// Who goes on working with a clock that was set back is asked about once a minute, as before.
func TestClockSetBackCostsNoMoreLookups(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		ahead := time.Hour
		d.Now = func() time.Time { return time.Now().Add(ahead) }
		c := client{d.User("ldap", "ada", d.Now()), d.Now()}
		pass(70 * time.Second)
		for i := range 600 {
			if i == 60 {
				ahead = 0
			}
			if waited, err := c.Vouch(t.Context(), c.signedInAt, d.Now()); waited || err != nil {
				t.Errorf("second %d: waited %v, %v", i, waited, err)
			}
			pass(time.Second)
		}
		if n := b.count(); n < 8 || n > 12 {
			t.Errorf("got %d Lookups in ten minutes, want about ten", n)
		}
	})
}

// Everybody comes at once after a restart: each is asked about once, and those who were turned away are known when they try again.
func TestHerdAfterARestart(t *testing.T) {
	const users = 10_000
	for _, slow := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond} {
		atDesk(t, func(t *testing.T, d *desk, b *book) {
			b.hook = func(ctx context.Context, _ []string) error { sleep(ctx, slow); return nil }
			start := time.Now()
			var clients []client
			for i := range users {
				clients = append(clients, client{d.User("ldap", fmt.Sprint(i), start.Add(-time.Hour)), start.Add(-time.Hour)})
			}
			for try := 0; ; try++ {
				var mu sync.Mutex
				var wg sync.WaitGroup
				failed := 0
				for _, c := range clients {
					wg.Go(func() {
						if _, _, err := c.request(t.Context()); err != nil {
							mu.Lock()
							failed++
							mu.Unlock()
						}
					})
				}
				wg.Wait()
				t.Logf("Lookups of %s, try %d: %d of %d turned away after %s, %d Lookups", slow, try, failed, users, time.Since(start), b.count())
				if failed == 0 {
					break
				}
				if try == 20 {
					t.Error("it does not end")
					break
				}
				pass(time.Second)
			}
			if n := b.count(); n != (users+batchSize-1)/batchSize {
				t.Errorf("got %d Lookups", n)
			}
		})
	}
}

// Whoever waits does not stand behind those who do not: a directory that goes on changing has everybody asked about again and again.
func TestWhoWaitsComesFirst(t *testing.T) {
	const users = 10_000
	atDesk(t, func(t *testing.T, d *desk, b *book) {
		b.hook = func(ctx context.Context, _ []string) error { sleep(ctx, 100*time.Millisecond); return nil }
		idle := d.signIn("ldap", "idle")
		pass(10 * time.Minute)
		var all []client
		for i := range users {
			all = append(all, d.signIn("ldap", fmt.Sprint(i)))
		}
		pass(70 * time.Second)
		for _, c := range all {
			c.wantServed(t, "in use")
		}
		d.Changed("ldap", connectors.Change{})
		pass(2 * gatherWaited) // the round is under way
		idle.wantWaited(t, "somebody who was away")
	})
}
