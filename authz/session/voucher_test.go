package session

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A clerk is a Voucher that says what it is told to.
type clerk struct {
	calls atomic.Int64
	vouch func(ctx context.Context, signedIn time.Time) (bool, error) // nil: at once
}

func (c *clerk) Vouch(ctx context.Context, signedIn, _ time.Time) (bool, error) {
	c.calls.Add(1)
	if c.vouch == nil {
		return false, nil
	}
	return c.vouch(ctx, signedIn)
}

func TestVouched(t *testing.T) {
	lost := errors.New("directory is down")
	for name, tt := range map[string]struct {
		err  error
		want func(error) bool
	}{
		"a user who may go on":  {nil, func(err error) bool { return err == nil }},
		"a user who is gone":    {ErrNotFound, func(err error) bool { return errors.Is(err, ErrNotFound) }},
		"nobody could tell":     {lost, func(err error) bool { return unavailable(err) && errors.Is(err, lost) }},
		"nobody could tell yet": {&UnavailableError{lost}, unavailable},
	} {
		for _, waited := range []bool{false, true} {
			inBubble(t, "a", func(t *testing.T, store *fake, v *View) {
				at := store.sessions["a"].SignedInAt
				store.sessions["a"].Voucher = &clerk{vouch: func(_ context.Context, signedIn time.Time) (bool, error) {
					if !signedIn.Equal(at) {
						t.Errorf("%s: asked for a sign-in at %s, want %s", name, signedIn, at)
					}
					return waited, tt.err
				}}
				for range 2 { // from the store, and from memory
					if s, err := v.Lookup(t.Context(), "a", time.Now()); !tt.want(err) || (err == nil) != (s != nil) {
						t.Errorf("%s, waited %v: got %v, %v", name, waited, s, err)
					}
				}
			})
		}
	}
}

func unavailable(err error) bool {
	var u *UnavailableError
	return errors.As(err, &u)
}

// What a lookup has waited for is true for it: a user whose groups have become others, and one whose session has been ended.
func TestVouchedAnew(t *testing.T) {
	inBubble(t, "a b", func(t *testing.T, store *fake, v *View) {
		store.sessions["a"].Voucher = &clerk{vouch: func(context.Context, time.Time) (bool, error) {
			store.set(func() {
				next := newSession("a", "a", time.Now())
				next.Identity.Groups = []string{"new"}
				store.sessions["a"] = next
			})
			store.tell(Change{User: User{"ldap", "a"}})
			return true, nil
		}}
		store.sessions["b"].Voucher = &clerk{vouch: func(context.Context, time.Time) (bool, error) {
			store.end("b")
			return true, nil
		}}
		if s := wantLive(t, v, "a"); len(s.Identity.Groups) != 1 {
			t.Errorf("got the groups %v, want the new one", s.Identity.Groups)
		}
		wantError(t, v, "b", ErrNotFound)
	})
}

// Who waits for a voucher holds up nobody: not even the lookup of another session of the same shard.
func TestVoucherThatHangs(t *testing.T) {
	inBubble(t, "slow b c d", func(t *testing.T, store *fake, v *View) {
		store.sessions["slow"].Voucher = &clerk{vouch: func(ctx context.Context, _ time.Time) (bool, error) {
			<-ctx.Done()
			return true, ctx.Err()
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		done := make(chan error)
		go func() {
			_, err := v.Lookup(ctx, "slow", time.Now())
			done <- err
		}()
		synctest.Wait()
		start := time.Now()
		for _, id := range []string{"b", "c", "d"} {
			wantLive(t, v, id)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("others waited %s", took)
		}
		if err := <-done; !unavailable(err) {
			t.Errorf("got %v, want it unavailable", err)
		}
	})
}
