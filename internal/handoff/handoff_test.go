package handoff

import (
	"errors"
	"testing"
	"time"

	"gatehouse/internal/seal"
)

var t0 = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func ring(t *testing.T) *seal.Ring {
	t.Helper()
	r, err := seal.NewRing([][]byte{seal.NewKey()}, PurposeRequest, PurposeTicket, PurposeCookie)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTicketLivesUntilItsExpiry(t *testing.T) {
	r := ring(t)
	want := Ticket{Session: "s", Host: "app.example.com", Return: "/a?b=c", Bind: "b", Expiry: t0.Add(TicketLifetime)}
	sealed := want.Seal(r)
	if got, err := OpenTicket(r, sealed, t0.Add(TicketLifetime-1)); err != nil || got != want {
		t.Errorf("before its expiry: %+v, %v", got, err)
	}
	if _, err := OpenTicket(r, sealed, t0.Add(TicketLifetime)); !errors.Is(err, ErrExpired) {
		t.Errorf("at its expiry: %v, want ErrExpired", err)
	}
	if _, err := OpenRequest(r, sealed, t0); !errors.Is(err, seal.ErrInvalid) {
		t.Errorf("a ticket is a request: %v", err)
	}
}

func TestExpiredRequestStillTellsWhereToGo(t *testing.T) {
	r := ring(t)
	want := Request{Host: "app.example.com", Return: "/deep/page", Bind: "b", Expiry: t0}
	got, err := OpenRequest(r, want.Seal(r), t0.Add(time.Hour))
	if !errors.Is(err, ErrExpired) || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCookieIsOfOneHostAndSmall(t *testing.T) {
	r := ring(t)
	const session = "abcdefghijklmnopqrstuvwxyz234567"
	v := SealCookie(r, "app.example.com", session, t0)
	if len(v) >= 200 {
		t.Errorf("%d bytes, want under 200", len(v))
	}
	id, issued, err := OpenCookie(nil, r, "app.example.com", v)
	if err != nil || string(id) != session || !issued.Equal(t0) {
		t.Errorf("got %q, %v, %v", id, issued, err)
	}
	for name, got := range map[string]error{
		"another host": func() error { _, _, err := OpenCookie(nil, r, "other.example.com", v); return err }(),
		"another key":  func() error { _, _, err := OpenCookie(nil, ring(t), "app.example.com", v); return err }(),
		"no session": func() error {
			_, _, err := OpenCookie(nil, r, "app.example.com", SealCookie(r, "app.example.com", "", t0))
			return err
		}(),
	} {
		if !errors.Is(got, seal.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, got)
		}
	}
}

func TestPreCookie(t *testing.T) {
	c := NewPreCookie(t0)
	back, ok := ParsePreCookie(c.String())
	if !ok || back.Random != c.Random || !back.Since.Equal(t0) {
		t.Fatalf("ParsePreCookie(%q) = %+v, %v", c.String(), back, ok)
	}
	if !back.Bound(c.Bind()) || back.Bound(NewPreCookie(t0).Bind()) || (PreCookie{}).Bound(PreCookie{}.Bind()) {
		t.Error("a pre-cookie is bound to what is not its own")
	}
	for _, bad := range []string{"", ".", "a.b.c", c.Random, c.Random + ".0", c.Random + ".-1.0", c.Random + ".999.0", c.Random + ".0.0.0", "x" + c.String()} {
		if _, ok := ParsePreCookie(bad); ok {
			t.Errorf("ParsePreCookie(%q) is accepted", bad)
		}
	}
}

func TestLoopIsSeenAndForgotten(t *testing.T) {
	c := NewPreCookie(t0)
	now := t0
	for range MaxRounds {
		if c.Looping(now) {
			t.Fatalf("a loop after %d rounds, want %d", c.Rounds, MaxRounds)
		}
		now = now.Add(time.Second)
		next := c.Next(now, false)
		if next.Bound(c.Bind()) {
			t.Fatal("the replaced pre-cookie still redeems")
		}
		c = next
	}
	if !c.Looping(now) {
		t.Error("no loop is seen")
	}
	if c.Looping(t0.Add(RoundsWindow)) {
		t.Error("a loop is never forgotten")
	}
	if c.Next(now, true).Looping(now) {
		t.Error("a browser that shows its session is taken for a loop")
	}
}
