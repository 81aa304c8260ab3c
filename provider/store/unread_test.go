package store

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/dexidp/dex/storage"
)

func TestOnlyUnread(t *testing.T) {
	one := fmt.Errorf("read: %w", &UnreadError{KindSession, fmt.Errorf("%w: %w", ErrSealed, errors.New("no key"))})
	down := errors.New("connection refused")
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"nothing":                       {nil, false},
		"another error":                 {down, false},
		"one that is only like it":      {ErrSealed, false},
		"one record":                    {one, true},
		"several":                       {errors.Join(one, fmt.Errorf("x: %w", errors.Join(one, one))), true},
		"a record and a storage":        {errors.Join(one, down), false},
		"a storage, deep among records": {errors.Join(one, fmt.Errorf("x: %w", errors.Join(one, down))), false},
		"no record":                     {storage.ErrNotFound, false},
	} {
		if got := OnlyUnread(tt.err); got != tt.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
	var all Unreads
	if all.Err() != nil || all.Add(down) || all.Add(nil) || all.N() != 0 {
		t.Error("it notes what is no record")
	}
	for range 3 {
		if !all.Add(one) {
			t.Error("it does not note a record")
		}
	}
	if err := all.Err(); !OnlyUnread(err) || !errors.Is(err, ErrSealed) || all.N() != 3 {
		t.Errorf("got %v of %d", err, all.N())
	}
}

func FuzzPair(f *testing.F) {
	f.Add("u1", "local")
	f.Add("", "")
	f.Add("a:b", ":c")
	f.Add("\xff", "1:2:3")
	f.Fuzz(func(t *testing.T, a, b string) {
		if x, y, ok := unpair(pair(a, b)); !ok || x != a || y != b {
			t.Errorf("%q and %q come back as %q and %q, %v", a, b, x, y, ok)
		}
		if x, y, ok := unpair(a); ok && pair(x, y) != a {
			t.Errorf("%q is taken for the pair of %q and %q", a, x, y)
		}
	})
}

// What cannot be read is passed over with its name, wherever it is among the others.
func TestDamagedRecordsArePassedOver(t *testing.T) {
	d := MemoryDriver()
	s, err := New(t.Context(), d, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		id := fmt.Sprintf("u%d", i)
		err := errors.Join(s.CreateUserIdentity(t.Context(), storage.UserIdentity{UserID: id, ConnectorID: "c"}),
			s.CreateAuthSession(t.Context(), storage.AuthSession{ID: "s" + id, UserID: id, ConnectorID: "c", IdleExpiry: s.opts.Now().Add(1e12), AbsoluteExpiry: s.opts.Now().Add(1e12)}))
		if err != nil {
			t.Fatal(err)
		}
	}
	for id, kind := range map[string]Kind{"2:u0:c": KindIdentity, "2:u4:c": KindIdentity, "2:u8:c": KindIdentity, "su5": KindSession} {
		r, err := d.Read(t.Context(), kind, id)
		if err != nil {
			t.Fatal(err)
		}
		r.Data = []byte(sealedMark + "x")
		if _, err := d.Write(t.Context(), []Op{{Verb: Put, Record: r}}); err != nil {
			t.Fatal(err)
		}
	}
	var known, unread []string
	for u, err := range s.Users(t.Context()) {
		if err == nil {
			known = append(known, u.UserID)
			continue
		}
		if !OnlyUnread(err) || !errors.Is(err, ErrSealed) || errors.Is(err, storage.ErrNotFound) || u.ConnectorID != "c" {
			t.Errorf("%+v: %v", u, err)
		}
		unread = append(unread, u.UserID)
	}
	slices.Sort(known)
	slices.Sort(unread)
	if !slices.Equal(known, []string{"u1", "u2", "u3", "u5", "u6", "u7"}) || !slices.Equal(unread, []string{"u0", "u4", "u8"}) {
		t.Errorf("users %v, and %v unread", known, unread)
	}
	n := 0
	for v, err := range s.AllSessions(t.Context()) {
		if n++; err != nil && (v.ID != "su5" || v.UserID != "u5" || v.ConnectorID != "c") {
			t.Errorf("%+v: %v", v, err)
		}
	}
	tally, err := s.TallySessions(t.Context(), s.opts.Now())
	if ids, listErr := s.UsersOf(t.Context(), "c"); err != nil || listErr != nil || n != 9 || len(ids) != 9 || tally.Of("u5", "c") != 1 {
		t.Errorf("%d sessions, %d users, %d of one who has a damaged one: %v, %v", n, len(ids), tally.Of("u5", "c"), err, listErr)
	}
	if all, err := s.ListUserIdentities(t.Context()); len(all) != 6 || !OnlyUnread(err) {
		t.Errorf("a list of %d, %v", len(all), err)
	}
}
