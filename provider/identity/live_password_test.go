package identity

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/connectors"
)

// What began with a former password is over, and what begins afterwards is not: the user may go on.
func TestSessionsOfAFormerPassword(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, _ *book) {
		old := d.signIn("ldap", "ada")
		time.Sleep(3 * time.Minute)
		d.over = map[string]time.Time{"ada": time.Now()}
		d.storeDown(errors.New("disk full"))
		old.wantWaited(t, "what the store has not taken is not known: the last answer serves")
		if got := d.endings(); len(got) != 0 {
			t.Errorf("ended %q", got)
		}
		d.storeDown(nil)
		time.Sleep(time.Minute)
		old.wantServed(t, "it is asked again behind a request")
		time.Sleep(10 * time.Second)
		old.wantError(t, "the former password", true)
		if got, want := d.endings(), []string{"ldap ada " + string(connectors.PasswordChanged)}; !slices.Equal(got, want) {
			t.Errorf("ended %q, want %q", got, want)
		}
		old.wantError(t, "still", true)
		d.mu.Lock()
		d.over = nil
		d.mu.Unlock()
		fresh := d.signIn("ldap", "ada")
		fresh.wantServed(t, "the new password")
		for range 10 {
			time.Sleep(time.Minute)
			if _, _, err := fresh.request(t.Context()); err != nil {
				t.Errorf("the new password, later: %v", err)
			}
		}
		if got := d.endings(); len(got) != 1 {
			t.Errorf("ended %q", got)
		}
	})
}

// While sessions cannot be ended they are refused, and no second try is begun beside the first.
func TestFormerPasswordEndsOnceAtATime(t *testing.T) {
	atDesk(t, func(t *testing.T, d *desk, _ *book) {
		old := d.signIn("ldap", "ada")
		time.Sleep(3 * time.Minute)
		d.over = map[string]time.Time{"ada": time.Now()}
		tries, most, down := 0, 0, true
		end := d.End
		d.End = func(ctx context.Context, connector, userID string, reason connectors.Reason, until time.Time) error {
			d.mu.Lock()
			tries++
			most = max(most, tries)
			failing := down
			d.mu.Unlock()
			defer func() {
				d.mu.Lock()
				tries--
				d.mu.Unlock()
			}()
			time.Sleep(time.Second)
			if failing {
				return errors.New("disk full")
			}
			return end(ctx, connector, userID, reason, until)
		}
		time.Sleep(time.Second)
		fresh := d.signIn("ldap", "ada")
		time.Sleep(2 * time.Minute)
		fresh.wantWaited(t, "the new password")
		for range 20 {
			old.wantError(t, "the former password", true)
			time.Sleep(time.Minute)
			if _, _, err := fresh.request(t.Context()); err != nil {
				t.Errorf("the new password: %v", err)
			}
		}
		d.mu.Lock()
		down = false
		if most != 1 {
			t.Errorf("%d tries at once", most)
		}
		d.mu.Unlock()
		time.Sleep(2 * lastRetry)
		synctest.Wait()
		if got := d.endings(); len(got) == 0 {
			t.Error("never ended")
		}
	})
}
