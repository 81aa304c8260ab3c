package store

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
)

// A readsDriver counts reads, and runs something before one answers.
type readsDriver struct {
	Driver
	reads  int
	before func()
}

// Read implements Backend.
func (d *readsDriver) Read(ctx context.Context, kind Kind, id string) (Record, error) {
	d.reads++
	r, err := d.Driver.Read(ctx, kind, id)
	if f := d.before; f != nil {
		d.before = nil
		f()
	}
	return r, err
}

// memoStore is a Store with a session "s", which somebody else may change, and a clock.
func memoStore(t *testing.T) (s *Store, d *readsDriver, clock *time.Time) {
	t.Helper()
	clock = new(time.Unix(1_000_000, 0))
	d = &readsDriver{Driver: newMemory()}
	s, err := New(t.Context(), d, Options{Now: func() time.Time { return *clock }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateAuthSession(t.Context(), storage.AuthSession{ID: "s", UserID: "u", ConnectorID: "c", IPAddress: "first"}); err != nil {
		t.Fatal(err)
	}
	return s, d, clock
}

func setAddress(t *testing.T, ctx context.Context, s *Store, to string) {
	t.Helper()
	err := s.UpdateAuthSession(ctx, "s", func(v storage.AuthSession) (storage.AuthSession, error) {
		v.IPAddress = to
		return v, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func address(t *testing.T, ctx context.Context, s *Store) string {
	t.Helper()
	v, err := s.GetAuthSession(ctx, "s")
	if err != nil {
		t.Fatal(err)
	}
	return v.IPAddress
}

func TestRemember(t *testing.T) {
	someoneElse := context.Background() //nolint:usetesting // not of this request
	tests := map[string]struct {
		between func(ctx context.Context, s *Store, clock *time.Time)
		then    func(ctx context.Context) context.Context // nil: the same
		fresh   bool
	}{
		"nothing happens":           {fresh: false},
		"a write of another record": {fresh: true, between: func(ctx context.Context, s *Store, _ *time.Time) { _ = s.DeleteAuthCode(ctx, "no such") }},
		"a write that changes nothing": {fresh: true, between: func(ctx context.Context, s *Store, _ *time.Time) {
			_ = s.CreateAuthSession(ctx, storage.AuthSession{ID: "s"})
		}},
		"a code is spent":                {fresh: true, between: func(ctx context.Context, s *Store, _ *time.Time) { _ = s.SpendAuthCode(ctx, "no such", SpentCode{}) }},
		"a write under Fresh":            {fresh: true, between: func(ctx context.Context, s *Store, _ *time.Time) { _ = s.DeleteAuthCode(Fresh(ctx), "no such") }},
		"somebody else is asked":         {fresh: true, between: func(ctx context.Context, _ *Store, _ *time.Time) { Forget(ctx) }},
		"almost a second":                {fresh: false, between: func(_ context.Context, _ *Store, clock *time.Time) { *clock = clock.Add(time.Second - 1) }},
		"a second":                       {fresh: true, between: func(_ context.Context, _ *Store, clock *time.Time) { *clock = clock.Add(time.Second) }},
		"the clock is set back":          {fresh: true, between: func(_ context.Context, _ *Store, clock *time.Time) { *clock = clock.Add(-time.Hour) }},
		"a look":                         {fresh: true, then: Fresh},
		"in a context that goes on":      {fresh: false, then: context.WithoutCancel},
		"another request":                {fresh: true, then: func(ctx context.Context) context.Context { ctx, _ = Remember(ctx); return ctx }},
		"a second store in this context": {fresh: false, between: func(ctx context.Context, s *Store, _ *time.Time) { _, _ = Memory(Options{}).GetAuthSession(ctx, "s") }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, _, clock := memoStore(t)
			ctx, done := Remember(t.Context())
			defer done()
			if got := address(t, ctx, s); got != "first" {
				t.Fatal(got)
			}
			setAddress(t, someoneElse, s, "second")
			if tt.between != nil {
				tt.between(ctx, s, clock)
			}
			if tt.then != nil {
				ctx = tt.then(ctx)
			}
			want := map[bool]string{true: "second", false: "first"}[tt.fresh]
			if got := address(t, ctx, s); got != want {
				t.Errorf("got the %s address, want the %s", got, want)
			}
		})
	}
}

func TestRememberEndsWithItsRequest(t *testing.T) {
	s, _, _ := memoStore(t)
	ctx, done := Remember(t.Context())
	address(t, ctx, s)
	done()
	setAddress(t, t.Context(), s, "second")
	if got := address(t, ctx, s); got != "second" {
		t.Errorf("got the %s address", got)
	}
	setAddress(t, t.Context(), s, "third")
	if got := address(t, ctx, s); got != "third" {
		t.Errorf("got the %s address: it remembers on", got)
	}
}

func TestRememberThatThereIsNone(t *testing.T) {
	s, d, _ := memoStore(t)
	ctx, done := Remember(t.Context())
	defer done()
	before := d.reads
	for range 3 {
		if _, err := s.GetUserIdentity(ctx, "u", "c"); !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if n := d.reads - before; n != 1 {
		t.Errorf("%d reads", n)
	}
	if err := s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: "u", ConnectorID: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetUserIdentity(ctx, "u", "c"); err != nil {
		t.Errorf("what it has just made: %v", err)
	}
}

// Values that were remembered share no memory.
func TestRememberedValuesAreOnesOwn(t *testing.T) {
	s, _, _ := memoStore(t)
	if err := s.CreateUserIdentity(t.Context(), storage.UserIdentity{UserID: "u", ConnectorID: "c", Claims: storage.Claims{Groups: []string{"a"}}}); err != nil {
		t.Fatal(err)
	}
	ctx, done := Remember(t.Context())
	defer done()
	one, err := s.GetUserIdentity(ctx, "u", "c")
	if err != nil {
		t.Fatal(err)
	}
	one.Claims.Groups[0] = "changed"
	if two, err := s.GetUserIdentity(ctx, "u", "c"); err != nil || two.Claims.Groups[0] != "a" {
		t.Errorf("got %v, %v", two.Claims.Groups, err)
	}
}

// A read that was under way during a write may be from before it.
func TestReadDuringAWriteIsNotRemembered(t *testing.T) {
	s, d, _ := memoStore(t)
	ctx, done := Remember(t.Context())
	defer done()
	d.before = func() { setAddress(t, ctx, s, "second") }
	if got := address(t, ctx, s); got != "first" {
		t.Fatalf("got %s: the test shows nothing", got)
	}
	if got := address(t, ctx, s); got != "second" {
		t.Errorf("got the %s address", got)
	}
}

// An update of what was remembered, and has changed since, starts again from what is stored.
func TestUpdateOfWhatWasRemembered(t *testing.T) {
	s, d, _ := memoStore(t)
	ctx, done := Remember(t.Context())
	defer done()
	address(t, ctx, s)
	before, runs := d.reads, 0
	add := func(v storage.AuthSession) (storage.AuthSession, error) {
		runs++
		v.IPAddress += " and mine"
		return v, nil
	}
	if err := s.UpdateAuthSession(ctx, "s", add); err != nil || d.reads != before || runs != 1 {
		t.Errorf("%d reads, %d runs, %v", d.reads-before, runs, err)
	}
	address(t, ctx, s)
	setAddress(t, t.Context(), s, "another's")
	if err := s.UpdateAuthSession(ctx, "s", add); err != nil || runs != 3 {
		t.Errorf("%d runs, %v", runs, err)
	}
	if got := address(t, t.Context(), s); got != "another's and mine" {
		t.Errorf("got %q", got)
	}
}

// Whoever takes turns sees what the one before has done; and keys are published in the order of their reads.
func TestWhatIsNeverRemembered(t *testing.T) {
	s, _, _ := memoStore(t)
	if err := s.CreateRefresh(t.Context(), storage.RefreshToken{ID: "r", Token: "1"}); err != nil {
		t.Fatal(err)
	}
	ctx, done := Remember(t.Context())
	defer done()
	if _, err := s.GetRefresh(ctx, "r"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SigningKeys(ctx); err != nil {
		t.Fatal(err)
	}
	rotate := func(v storage.RefreshToken) (storage.RefreshToken, error) { v.Token += "1"; return v, nil }
	if err := s.UpdateRefreshToken(t.Context(), "r", rotate); err != nil {
		t.Fatal(err)
	}
	if err := s.UpdateSigningKeys(t.Context(), func(k Keys) (Keys, error) { k.NextRotation = time.Unix(5, 0); return k, nil }); err != nil {
		t.Fatal(err)
	}
	if k, err := s.SigningKeys(ctx); err != nil || k.NextRotation.IsZero() {
		t.Errorf("keys %v, %v", k.NextRotation, err)
	}
	first := ""
	err := s.UpdateRefreshToken(ctx, "r", func(v storage.RefreshToken) (storage.RefreshToken, error) {
		if first == "" {
			first = v.Token
		}
		return rotate(v)
	})
	if err != nil || first != "11" {
		t.Errorf("the token is %q at first, %v", first, err)
	}
}

// What is decoded once is of the version that was read, and kinds that are decoded once are flat.
func TestDecodedOnce(t *testing.T) {
	s, _, _ := memoStore(t)
	if _, err := s.SetMark(t.Context(), MarkClient, "web", "one", time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	ctx, done := Remember(t.Context())
	defer done()
	for _, want := range []string{"one", "one", "two", "two"} {
		if want == "two" {
			if _, err := s.SetMark(t.Context(), MarkClient, "web", "two", time.Unix(2, 0)); err != nil {
				t.Fatal(err)
			}
			Forget(ctx)
		}
		if m, err := s.GetMark(ctx, MarkClient, "web"); err != nil || m.Print != want {
			t.Errorf("got %+v, %v; want %q", m, err, want)
		}
	}
	if !marks.flat || pointsAnywhere(reflect.TypeFor[Mark]()) || sessions.flat || !pointsAnywhere(reflect.TypeFor[storage.AuthSession]()) {
		t.Error("only what points nowhere may be flat")
	}
}

// pointsAnywhere reports whether copies of a value share what can be modified. A time's location is never modified.
func pointsAnywhere(t reflect.Type) bool {
	if t == reflect.TypeFor[time.Time]() {
		return false
	}
	switch t.Kind() {
	case reflect.Struct:
		for f := range t.Fields() {
			if pointsAnywhere(f.Type) {
				return true
			}
		}
		return false
	case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Interface, reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return true
	default:
		return false
	}
}
