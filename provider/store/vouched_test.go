package store

import (
	"fmt"
	"testing"
	"time"
)

func TestVouched(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		ctx, start := t.Context(), time.Now().UTC().Truncate(time.Second)
		s := newStore(d, Options{}, 0)
		told := 0
		defer s.Subscribe(func(Change) { told++ })()
		at := func(user string) time.Time {
			t.Helper()
			got, err := s.VouchedAt(ctx, user, "ldap")
			must(t, err)
			return got
		}
		if got := at("ada"); !got.IsZero() {
			t.Errorf("got %s for somebody unknown", got)
		}
		for i := range 3 {
			now := start.Add(time.Duration(i) * time.Minute)
			must(t, s.Vouch(ctx, []Vouched{{"ada", "ldap", now, now.Add(time.Hour)}, {"eve", "ldap", now, now.Add(time.Second)}}[:2-i%2]))
			if got := at("ada"); !got.Equal(now) {
				t.Errorf("got %s, want %s", got, now)
			}
		}
		_, err := s.GarbageCollect(ctx, start.Add(10*time.Minute))
		must(t, err)
		if at("ada").IsZero() || !at("eve").IsZero() {
			t.Errorf("after the garbage collection: got %s and %s, want the first only", at("ada"), at("eve"))
		}
		if told != 0 {
			t.Errorf("%d changes were told", told)
		}
		for range 2 { // first made, then replaced
			var many []Vouched
			for i := range 128 { // a whole answer of a directory
				start = start.Add(time.Second)
				many = append(many, Vouched{fmt.Sprint(i), "ldap", start, start.Add(time.Hour)})
			}
			must(t, s.Vouch(ctx, many))
			if got := at("127"); !got.Equal(start) {
				t.Errorf("the last of many: got %s, want %s", got, start)
			}
		}
		if err := s.Vouch(ctx, []Vouched{{"ada", "ldap", start, start}, {"", "", start, start}}); err == nil || at("ada").Equal(start) {
			t.Errorf("half of a list was written: %v", err)
		}
	})
}
